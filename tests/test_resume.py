"""A run that is killed and taken up again in another process ends like one that was never touched,
to the last bit.

Real processes and real signals. A victim prints its steps; the test kills it at a random moment,
and a new process goes on. What is compared is the last checkpoint: all weights, the optimizer's
memory, the dice, the place in the data, and every line of the log but its clock.
"""
import os, random, re, shutil, signal, subprocess, sys, time

import pytest
import torch

from gptlab.checkpoints import (checkpoints_in, latest_checkpoint, load_checkpoint, load_model,
                                save_checkpoint)
from gptlab.core import set_seed
from gptlab.data import corpus
from gptlab.generation import generate_text, sample_from
from gptlab.loader import Grow
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import Opt, adamw, hidden, muon
from gptlab.packing import batches
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer
from kills import Forks

posix = pytest.mark.skipif(os.name == 'nt',
                           reason='Windows has no SIGKILL, and sends SIGINT to a whole console')

SCRIPT = '''
import os, sys, time, traceback
from functools import partial
import torch._dynamo             # torch's optimizers load it; here, once for all
from gptlab.checkpoints import checkpoints_in
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.generation import generate_text, sample_from
from gptlab.loader import fast_batches, Grow, Prefetch
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import Opt, adamw, hidden, muon
from gptlab.packing import batches, best_fit
from gptlab.schedules import linear, wsd
from gptlab.steering import EarlyStop, TailAverage, WeightAverage
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer

TEXT, STEPS = make_stories(60), dict(steps=24)
DATA = dict(tok=ByteTokenizer(), B=4, T=32, valid_rows=4)
AHEAD = DATA | dict(size=8, depth=3)             # blocks of few documents: several in a run

class Steps:
    "Tells whoever listens which step is done, and leaves time to strike"
    def __init__(self, pause): self.pause = pause
    def after_step(self, trainer): print('step', trainer.step, flush=True); time.sleep(self.pause)

class Samples:
    "Draws texts all along"
    def after_step(self, trainer): ''.join(generate_text(trainer.model, trainer.tok, 'Once', 3))
    def after_eval(self, trainer): sample_from(trainer, 'Once', 5)

class Average:
    "A moving average of the weights"
    kept = None
    def after_step(self, trainer):
        now = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        before, self.kept = self.kept or now, now
        for n in now: now[n].lerp_(before[n], .9)
    def state_dict(self): return self.kept
    def load_state_dict(self, state): self.kept = state

def ahead(train, valid): return Prefetch(train, 3), valid

# data, settings of the trainer, budget, callbacks
CASES = dict(
    steps    = (lambda: batches(TEXT, **DATA), dict(), STEPS, [Samples]),
    tokens   = (lambda: batches(TEXT, **DATA), dict(accumulate=2), dict(tokens=24*2*4*32), []),
    flops    = (lambda: batches(TEXT, **DATA, docs=True), dict(), dict(flops=24*4*32), []),
    notices  = (lambda: batches(TEXT, **DATA, docs=True), dict(accumulate=2), STEPS, [Samples]),
    workers  = (lambda: fast_batches(TEXT, workers=1, **AHEAD), dict(), STEPS, []),
    packed   = (lambda: fast_batches(TEXT, pack=partial(best_fit, buffer=4), **AHEAD, docs=True),
                dict(accumulate=2), STEPS, []),
    growing  = (lambda: ahead(*batches(TEXT, **DATA)), dict(save_every=1), STEPS,
                [lambda: Grow({6: (6, 32), 12: (4, 48), 18: (7, 40)})]),
    saves    = (lambda: batches(TEXT, **DATA),
                dict(save_every=1, keep=dict(keep=1, best=1, every=6)), STEPS, [Average]),
    half     = (lambda: fast_batches(TEXT, **AHEAD),
                dict(save_every=1, dtype='float16', schedule=wsd(warmup=.2)), STEPS, [Average]),
    steered  = (lambda: batches(TEXT, **DATA), dict(save_every=1, eval_every=2), STEPS,
                [lambda: WeightAverage(.9), lambda: TailAverage(.5),
                 lambda: EarlyStop(9, key='valid_average'), lambda: EarlyStop(99, 9., 'valid')]),
    )

def make(case, folder, pause):
    data, kw, budget, callbacks = CASES[case]
    set_seed(7)
    train, valid = data()
    model = GPT(GPTConfig(vocab_size=257, context_length=48, n_layers=2, n_heads=2, d_model=32,
                          dropout=.1))
    if 'flops' in budget: budget = dict(flops=budget['flops']*model.flops_per_token(32))
    opt = Opt(model, muon(at=hidden, wd=.1), adamw(lr=3e-3, wd=.01))
    kw = dict(schedule=linear(), save_every=2, eval_every=5, device='cpu') | kw
    return budget, Trainer(model, opt, train, valid, dir=folder,
                           callbacks=[Steps(pause), *(c() for c in callbacks)], **kw)

def go(pause, case, folder):
    budget, run = make(case, folder, float(pause))
    if checkpoints_in(folder): run.resume().fit()
    else: run.fit(**budget)
    if hasattr(run.train, 'close'): run.train.close()
'''


NOTICES = dict(sigint=signal.SIGINT, sigterm=signal.SIGTERM)
KILLED = 'workers packed growing saves half steps tokens flops steered'.split()
STRUCK = ['sigint', *KILLED, 'sigterm']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp('runs'), SCRIPT)
    yield forks
    forks.close()


@pytest.fixture(scope='module')
def whole(runs): return Whole(runs)


class Whole:
    "The last checkpoint of each case's run that nobody touched, made once"
    def __init__(self, runs): self.runs, self.made = runs, {}

    def __call__(self, case):
        if case not in self.made:
            folder = self.runs.folder/f'whole_{case}'
            victim = self.runs.start(0, case, folder)
            assert victim.end() == 0, victim.said()
            assert not litter(folder)
            self.made[case] = state(folder)
        return self.made[case]


def struck(runs, rng, case, folder, how, aim='step'):
    """Run a case, or go on with it, and strike it: as it starts, at a random part of a random step,
    or while a checkpoint is written or removed"""
    victim, at = runs.start(.02 if aim == 'step' else 0, case, folder), rng.randrange(3, 11)
    ended = lambda: not alive(victim.pid)
    if aim == 'start': at = 0
    victim.until(lambda: victim.said().count('step ') >= at or ended())
    if aim in ('save', 'prune'):
        victim.until(lambda: aim in at_work(folder) or ended(), pause=0)
        time.sleep(rng.random()*.002)
    else: time.sleep(rng.random()*dict(start=.2, step=.05)[aim])
    victim.strike(how)
    return victim


SCRATCH = re.compile(r'\.step_(\d+)\.[0-9a-f]{8}(\.old)?')

def at_work(folder):
    "What goes on in a run's folder: is a checkpoint being written (save), or removed (prune)?"
    names = os.listdir(folder) if folder.exists() else []
    done = [int(n[5:]) for n in names if n.startswith('step_')]
    scratch = [m for m in map(SCRATCH.fullmatch, names) if m]
    return {'save' if int(m[1]) >= max(done, default=0) and not m[2] else 'prune' for m in scratch}


def litter(folder):
    "What lies in the folder of a run that has ended beside its checkpoints and its lock"
    names = (p.name for p in folder.iterdir())
    return [n for n in names if n != '.lock' and not re.fullmatch(r'step_\d{6}', n)]


def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return True


CLOCK = {'seconds', 'tokens_per_second', 'wait', 'memory', 'mfu'}

def same(a, b, at=''):
    "Where two trees differ, tensors to the last bit"
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [at]
    if isinstance(a, dict) and isinstance(b, dict):
        if (a.keys() ^ b.keys()) - CLOCK: return [f'{at}: {a.keys() ^ b.keys()}']
        return [x for k in a if k not in CLOCK for x in same(a[k], b[k], f'{at}.{k}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b): return [f'{at}: {len(a)} and {len(b)} entries']
        return [x for i, (x1, x2) in enumerate(zip(a, b)) for x in same(x1, x2, f'{at}[{i}]')]
    return [] if a == b and type(a) is type(b) else [f'{at}: {a!r} and {b!r}']


def state(folder):
    d = load_checkpoint(latest_checkpoint(folder))
    del d['trainer']['info'], d['summary']
    return d


def differences(runs, whole, case, folder):
    "Go on with a run to its end: where does what it leaves differ from the run nobody touched?"
    last = runs.start(0, case, folder)
    if last.end(): return [last.said()]
    found = state(folder)
    steps = [line['step'] for line in found['trainer']['log']]
    assert found['trainer']['opt']['state'] and found['model']       # there is something to compare
    bad = [] if steps == [*range(1, 25)] else [f'the log has steps {steps}']
    return bad + litter(folder) + same(whole(case), found)


@posix
@pytest.mark.repeat(quick=6, exhaustive=40)
def test_struck_and_taken_up_it_ends_the_same(runs, whole, seed):
    name, rng = STRUCK[seed % len(STRUCK)], random.Random(seed)
    folder, how = runs.folder/f'{name}_{seed}', NOTICES.get(name, signal.SIGKILL)
    case = 'notices' if name in NOTICES else name
    aim = 'step' if name in NOTICES else rng.choice(['step', 'save', 'prune'])
    first = struck(runs, rng, case, folder, how, aim)
    said = first.said()
    # on the way, not at the end
    if how == signal.SIGKILL: assert first.code == -signal.SIGKILL, (aim, said)
    else: a_notice_is_taken(first, name, checkpoints_in(folder))
    # killed, taken up, killed again; with a slow disk the first kill may come before the first save
    if rng.random() < .5:
        saved = checkpoints_in(folder)
        again = struck(runs, rng, case, folder, signal.SIGKILL)
        assert again.code in (0, -signal.SIGKILL)
        assert ('step 1\n' in again.said()) == (not saved), again.said()
    bad = differences(runs, whole, case, folder)
    assert not bad, f'{aim}, first {said}: {bad[:10]}'
    shutil.rmtree(folder)


def a_notice_is_taken(victim, name, kept):
    "SIGINT and SIGTERM: the step is finished, saved, what comes next is said; SIGTERM ends it all"
    said, code = victim.said(), dict(sigint=0, sigterm=128 + signal.SIGTERM)[name]
    last = [s for s in said.splitlines() if s.startswith('step')][-1].split()[1]
    assert victim.code == code and 'Traceback' not in said
    assert (f'stopped by {name.upper()} after step {last}' in said
            and 'resume() in a new process' in said)
    assert int(last) < 24 and kept[-1].name == f'step_{int(last):06}'


def small(**kw):
    "A small run, ready to fit"
    set_seed(3)
    train, valid = batches(corpus(['Once upon a time there was a cat. ', 'It sat on the mat. ']*40
                                  + ['Then it went home. ']), ByteTokenizer(), B=2, T=16)
    model = GPT(GPTConfig(vocab_size=257, context_length=16, n_layers=2, n_heads=2, d_model=16,
                          dropout=.2))
    return Trainer(model, Opt(model, muon(at=hidden), adamw(lr=3e-3)), train, valid,
                   **dict(callbacks=[], eval_every=0, device='cpu') | kw)


# ---- the impatient

class Strike:
    "Sends SIGINT so many times in the middle of a step, before the weights move"
    def __init__(self, times, at=3): self.times, self.at, self.ended = times, at, 0
    def after_backward(self, trainer):
        if trainer.step == self.at:
            for _ in range(self.times): signal.raise_signal(signal.SIGINT)
    def after_fit(self, trainer): self.ended += 1


def test_a_second_interrupt_ends_at_once_and_leaves_a_usable_trainer(tmp_path, capsys):
    before, strike = signal.getsignal(signal.SIGINT), Strike(2)
    run = small(callbacks=[strike], dir=tmp_path/'run')
    with pytest.raises(KeyboardInterrupt): run.fit(8)
    # callbacks could tidy up
    assert signal.getsignal(signal.SIGINT) is before and strike.ended == 1 and run.step == 3
    strike.times = 0
    assert run.fit().step == 8
    # nothing of the broken step is lost, not even its batch or a random number
    other, clean = small(callbacks=[Strike(2)]), small()
    set_seed(5)
    with pytest.raises(KeyboardInterrupt): other.fit(8)
    other.callbacks = []
    other.fit()
    set_seed(5)
    clean.fit(8)
    assert not same(other.model.state_dict(), clean.model.state_dict())
    assert [r['tokens'] for r in other.log] == [r['tokens'] for r in clean.log]


def test_one_interrupt_is_a_notice_also_when_a_callback_asked_to_stop(capsys):
    class Stop:
        def after_loss(self, trainer): trainer.stop = True
    run = small(callbacks=[Stop(), Strike(1, at=0)]).fit(8)
    assert (run.step == 1 and run.interrupted == 'SIGINT'
            and 'fit() goes on from here' in capsys.readouterr().out)


# ---- looking does not change the run

def weights(**kw): return small(**kw).fit(8).model.state_dict()


class Sampling:
    def after_step(self, trainer):
        sample_from(trainer, 'Once', 4)
        ''.join(generate_text(trainer.model, trainer.tok, 'It', 4))


@pytest.mark.parametrize('kw', [dict(callbacks=[Sampling()]), dict(eval_every=1),
                                dict(eval_every=3, callbacks=[Sampling()]), dict(save_every=1)],
                         ids=['samples', 'evaluation', 'both', 'checkpoints'])
def test_looking_does_not_change_the_run(kw, tmp_path):
    if 'save_every' in kw: kw = kw | dict(dir=tmp_path/'run')
    assert not same(weights(), weights(**kw))


def test_one_large_batch_is_two_small_ones():
    "accumulate=2 is the mean over all targets, also when the batches have unequal numbers of them"
    def grads(split):
        set_seed(0)
        model = GPT(GPTConfig(vocab_size=257, context_length=16, n_layers=1, n_heads=2,
                              d_model=16)).double()
        for p in model.parameters(): torch.nn.init.normal_(p, std=.1)
        ids = torch.randint(257, (4, 16))
        targets = ids.roll(-1, 1)
        targets[2:, 3:] = -100
        data = [dict(ids=i, targets=t) for i, t in zip(ids.split(split), targets.split(split))]
        run = Trainer(model, torch.optim.SGD(model.parameters(), lr=.1), iter(data), callbacks=[],
                      accumulate=4//split, device='cpu')
        return run.gradients(), [p.grad for p in model.parameters()]
    (one, a), (two, b) = grads(4), grads(2)
    assert abs(one - two) < 1e-5 and all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b))


# ---- the parts of a step are replaced one by one

class Doubled(Trainer):
    "Each method of a step, replaced: every batch twice, half the loss, double the gradient"
    def get_batch(self):
        return {k: torch.cat([v, v]) for k, v in super().get_batch().items()}

    def get_loss(self, batch):
        total, n = super().get_loss(batch)
        return total/2, n/2

    def backward(self, loss): super().backward(2*loss)

    def update(self):
        for p in self.model.parameters(): p.grad /= 2
        return super().update()


def test_a_subclass_replaces_the_parts_of_a_step():
    run = small()
    train, model, opt = run.train, run.model, run.opt
    new = Doubled(model, opt, train, callbacks=[], device='cpu').fit(3)
    old = small().fit(3)
    assert new.tokens == 2*old.tokens
    losses = [[r['loss'] for r in t.log] for t in (new, old)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=.1)


def test_a_callback_replaces_a_part_of_a_step():
    class Repeat:
        def before_fit(self, trainer): trainer.get_batch = lambda: batch
    batch, run = next(small().train), small(callbacks=[Repeat()], clip=None)
    run.fit(40)
    assert run.batch is batch and run.log[-1]['loss'] < run.log[0]['loss'] - 1


def test_a_log_line_may_hold_tensors(tmp_path):
    "A callback need not wait for the device: numbers are read when they are drawn or saved"
    class Norm:
        def after_step(self, trainer):
            trainer.log[-1]['norm'] = trainer.model.embed.weight.detach().norm()
    run = small(callbacks=[Norm()], dir=tmp_path/'run').fit(2)
    steps, norms = run.series('norm')
    assert steps == [1, 2] and all(type(n) is float for n in norms)
    assert small(dir=tmp_path/'run').resume().log[-1]['norm'] == norms[-1]


# ---- what shows a run is looked up, not put there by an import

PATIENT = """
import sys
from gptlab.trainer import Trainer
before = dict(vars(Trainer))
from gptlab import generation, watching
assert vars(Trainer) == before, vars(Trainer).items() ^ before.items()
"""

def test_an_import_does_not_change_the_trainer():
    done = subprocess.run([sys.executable, '-c', PATIENT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_defaults_are_those_of_watching_and_generation(monkeypatch):
    from gptlab import watching
    monkeypatch.delenv('IN_TEST', raising=False)
    monkeypatch.delenv('GPTLAB_SILENT', raising=False)
    run = small(callbacks=None)
    assert [type(cb) for cb in run.callbacks] == [type(watching.default_watcher())]
    assert run.sampler is sample_from


def test_a_sampler_of_your_own_is_shown():
    run = small().fit(2)
    run.sampler = lambda trainer: f'<step {trainer.step}>'
    assert '&lt;step 2&gt;' in run._repr_html_()
    class Mine(Trainer):
        default_callbacks, sampler = [Sampling], None
    mine = Mine(run.model, run.opt, run.train, device='cpu')
    assert [type(cb) for cb in mine.callbacks] == [Sampling] and mine.sampler is None
    assert '<pre' not in mine.fit(1)._repr_html_()


# ---- a model compiled as a whole

def whole_compiled(**kw):
    "The small run, its model inside torch.compile"
    run = small()
    model = torch.compile(run.model, backend='eager')
    kw = dict(callbacks=[], eval_every=2, device='cpu') | kw
    return Trainer(model, run.opt, run.train, run.valid, **kw)


def test_a_compiled_model_is_saved_under_plain_names_and_resumes(tmp_path):
    "A15"
    class Halfway:
        def after_step(self, trainer): trainer.stop = trainer.step == 2
    plain = small(eval_every=2).fit(4)
    whole_compiled(dir=tmp_path/'run', callbacks=[Halfway()]).fit(4)
    saved = load_checkpoint(latest_checkpoint(tmp_path/'run'))
    assert list(saved['model']) == list(plain.model.state_dict())
    assert '_orig_mod' not in repr(saved)
    for make in (whole_compiled, small):                 # taken up compiled, and by a plain model
        run = make(dir=tmp_path/'run', eval_every=2).resume().fit()
        shutil.rmtree(tmp_path/'run'/'step_000004')
        inside = getattr(run.model, '_orig_mod', run.model)
        assert not same(inside.state_dict(), plain.model.state_dict())
        assert not same(run.log, plain.log)
    model, tok = load_model(tmp_path/'run')
    text = ''.join(generate_text(whole_compiled().model, tok, 'It', 8, seed=0))
    assert text and '_orig_mod' not in str(model)


def test_the_parameters_of_a_compiled_model_are_told_by_plain_names():
    model = torch.compile(small().model, backend='eager')
    opt = torch.optim.SGD(model.embed.parameters(), lr=.1)
    with pytest.raises(ValueError, match='no optimizer group holds blocks.0'):
        Trainer(model, opt, [], callbacks=[])


# ---- a crash at any moment leaves a good checkpoint

def die_at(n, path, value):
    """Save a checkpoint in a forked process that ends, like a power cut, at its n-th touch of the
    file system; True if it got to the end"""
    pid = os.fork()
    if pid == 0:
        seen = [0]
        def hook(event, args):
            if (event in ('os.rename', 'os.mkdir', 'os.rmdir', 'os.remove', 'shutil.rmtree')
                or event == 'open' and str(path.parent) in str(args[0])):
                seen[0] += 1
                if seen[0] > n: os._exit(9)
        sys.addaudithook(hook)
        try:
            save_checkpoint(path, model=dict(w=torch.full((3,), float(value))),
                            note=dict(value=value))
            os._exit(0)
        except BaseException: os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@posix
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    "Saved over itself: what is found afterwards is the old one or the new one, never neither"
    path, codes = tmp_path/'run'/'step_000001', []
    save_checkpoint(path, model=dict(w=torch.full((3,), -1.)), note=dict(value=-1))
    while 0 not in codes:
        n, before = len(codes), load_checkpoint(latest_checkpoint(tmp_path/'run'))['note']['value']
        codes.append(die_at(n, path, n))
        found = load_checkpoint(path if n % 2 else latest_checkpoint(tmp_path/'run'))
        assert (found['note']['value'] in (before, n)
                and (found['model']['w'] == found['note']['value']).all())
        assert codes[-1] in (0, 9) and n < 100
    assert len(codes) > 10 and found['note']['value'] == n
    assert [p.name for p in (tmp_path/'run').iterdir()] == [path.name], (
        'what the crashes left behind is swept up')


def test_what_killed_processes_leave_in_a_run_is_swept(tmp_path):
    "Half a file of safetensors, half a note of who holds the lock, an older copy of what was saved"
    run = small(dir=tmp_path).fit(2)
    for name in ('.step_000001.0a1b2c3d', '.step_000002.0a1b2c3d.old'):
        shutil.copytree(tmp_path/'step_000002', tmp_path/name)
    (tmp_path/'.step_000001.0a1b2c3d'/'.tmpQ3cVzE').write_text('half')
    (tmp_path/'..lock.json.0a1b2c3d').write_text('half')
    shutil.copytree(tmp_path/'step_000002', tmp_path/'.step_000001.11111111')
    (tmp_path/'.step_000001.11111111'/'mine.txt').write_text('not from a checkpoint')
    run.keep = dict(keep=2, every=2)
    run.fit(4)
    assert sorted(litter(tmp_path)) == ['.step_000001.11111111']
    assert [p.name for p in checkpoints_in(tmp_path)] == ['step_000002', 'step_000004']


# ---- how far a model can read

SAID = "rows have 8 tokens, the model's context is 16"

def short_rows(**kw):
    "A run whose rows are half as long as its model's context"
    run = small(**kw)
    run.train.resize(2, 8)
    return run


def test_the_longest_row_is_said_saved_and_restored(tmp_path, capsys):
    run = short_rows(dir=tmp_path).fit(2)
    assert run.model.trained_length == 8 and capsys.readouterr().out.count(SAID) == 1
    assert load_model(tmp_path)[0].trained_length == 8
    again = small(dir=tmp_path).resume()
    assert again.model.trained_length == 8
    again.train.resize(2, 16)
    again.fit(4)
    assert again.model.trained_length == 16 and 'context' not in capsys.readouterr().out
    again.train.resize(2, 8)
    assert again.fit(6).model.trained_length == 16                   # it has learnt to, once


def test_a_checkpoint_of_before_does_not_know_its_longest_row(tmp_path):
    small(dir=tmp_path).fit(2)
    point = latest_checkpoint(tmp_path)
    trees = load_checkpoint(point)
    none = {k: v for k, v in trees.items() if k != 'summary'}
    for left in (trees | dict(summary=dict(step=2)), none):
        save_checkpoint(point, **left)
        assert load_model(point)[0].trained_length is None
        run = small(dir=tmp_path).resume()
        assert run.model.trained_length is None and run.fit(3).model.trained_length == 16
        shutil.rmtree(tmp_path/'step_000003')


def test_rows_that_grow_are_no_short_rows(capsys):
    run = short_rows(callbacks=[Grow({0: (2, 8), 2: (2, 16)})])
    assert run.fit(1).model.trained_length == 8 and run.fit(3).model.trained_length == 16
    assert 'context' not in capsys.readouterr().out


def test_the_longest_row_belongs_to_the_model_inside(tmp_path, capsys):
    run = small()
    inner, run.model = run.model, torch.compile(run.model, backend='eager')
    wrapped = Trainer(run.model, Opt(run.model, adamw()), run.train, callbacks=[], device='cpu')
    assert wrapped.fit(1) and inner.trained_length == 16
