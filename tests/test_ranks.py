"""Several processes train one model: what they compute equals one process that accumulates, and
they begin, save and end together.

Real processes that talk by gloo. Each rank is a fork of a process that has all imports done.
"""
import os, signal, socket, sys, time

import pytest
import torch

from gptlab.checkpoints import checkpoints_in, find_checkpoint, load_checkpoint
from kills import ends, Forks, start
from test_resume import litter, same

def more(*args): return pytest.param(*args, marks=pytest.mark.exhaustive)

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='Windows has no fork')

SCRIPT = '''
import atexit, os, sys, time, traceback
import torch, torch._dynamo, torch.distributed
from gptlab.checkpoints import checkpoints_in, join_ranks, Ranks
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.loader import shard
from gptlab.model import GPT, GPTConfig, lm_loss
from gptlab.moe import balance_experts, MoE
from gptlab.optimizers import Opt, adamw, hidden, muon
from gptlab.packing import batches, FixedBatches
from gptlab.schedules import linear
from gptlab.steering import EarlyStop, TailAverage, WeightAverage
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer
from gptlab.watching import Lines
from functools import partial

TEXT = make_stories(40)

class Steps:
    "Tells whoever listens which step is done, and leaves time to strike"
    def __init__(self, pause): self.pause = pause
    def after_step(self, trainer):
        print('step', trainer.step, flush=True)
        time.sleep(self.pause)

class Averaged:
    "Notes for each micro-batch whether its gradients are averaged over the ranks"
    def __init__(self): self.seen = []
    def after_loss(self, trainer):
        if trainer.ranks.many: self.seen.append(trainer._called.require_backward_grad_sync)
    def after_fit(self, trainer):
        expected = [i == trainer.accumulate - 1 for i in range(trainer.accumulate)]*6
        assert not trainer.ranks.many or self.seen == expected, self.seen

class Spike:
    "A loss that is large on one rank, at one call"
    def __init__(self, rank, at): self.rank, self.at, self.calls = rank, at, 0
    def __call__(self, model, batch):
        self.calls += 1
        total, n = lm_loss(model, batch)
        return total*(50 if self.rank and self.calls == self.at else 1), n

class Broken:
    "A model that cannot be scored on rank 1"
    def __init__(self, rank): self.rank = rank
    def __call__(self, model, batch):
        inner = model.module
        right = type(inner).forward
        if self.rank: inner.forward = lambda **b: right(inner, **b) if inner.training else 1/0
        return lm_loss(model, batch)

def rows(n=24, unequal=False):
    "Batches of two rows; of unequal ones many targets are ignored"
    stream, _ = batches(TEXT, ByteTokenizer(), B=2, T=16)
    found = [next(stream) for _ in range(n)]
    if unequal:
        for i, b in enumerate(found): b['targets'][:, :i*7 % 15] = -100
    return found

def valid_rows(rank, world_size, kind):
    fixed = batches(TEXT, ByteTokenizer(), B=2, T=16, valid_rows=14)[1]
    if kind == 'few': fixed = FixedBatches(fixed[:1], fixed.tok)
    return fixed if kind == 'whole' else shard(fixed, rank, world_size)

def model_and_opt(opt, **kw):
    set_seed(7)
    cfg = GPTConfig(vocab_size=257, context_length=16, n_layers=2, n_heads=2, d_model=16, **kw)
    model = GPT(cfg)
    groups = [muon(precision='float32', at=hidden)] if opt == 'muon' else []
    return model, Opt(model, *groups, adamw(lr=3e-3))

def equal(ranks, accumulate, opt, unequal, kind, folder):
    "This rank's part of the rows, every world_size-th batch"
    model, opt = model_and_opt(opt)
    data = rows(unequal=bool(unequal))[ranks.rank::ranks.world_size]
    return Trainer(model, opt, data, valid_rows(ranks.rank, ranks.world_size, kind), eval_every=3,
                   accumulate=int(accumulate), schedule=linear(), device='cpu', dir=folder,
                   callbacks=[Lines(), Averaged()]).fit(6)

def streamed(ranks, folder, pause, settings):
    "A stream of its own for each rank, dropout, and steps that can be struck"
    model, opt = model_and_opt('muon', dropout=.1)
    set_seed(7 + ranks.rank)
    train, valid = batches(TEXT, ByteTokenizer(), B=2, T=16, seed=ranks.rank, valid_rows=4)
    run = Trainer(model, opt, train, valid, schedule=linear(), eval_every=5, device='cpu',
                  dir=folder, callbacks=[Steps(float(pause))], **eval(settings))
    return run.resume() if checkpoints_in(folder) else run

def trained(ranks, folder, pause, settings, budget):
    return streamed(ranks, folder, pause, settings).fit(**eval(budget))

def mixed(ranks, folder):
    "A mixture whose experts are not all asked on every rank"
    model, opt = model_and_opt('adamw', mlp=partial(MoE, n_experts=8, k=1))
    data = rows()[ranks.rank::ranks.world_size]
    data = [{k: v[:1, :2] for k, v in b.items()} for b in data]
    return Trainer(model, opt, data, device='cpu', callbacks=[],
                   accumulate=2//ranks.world_size).fit(6)

def steered(ranks, accumulate, folder, pause):
    "Averages, and a stop by one of them that nothing improves"
    model, opt = model_and_opt('muon')
    data = rows()[ranks.rank::ranks.world_size]
    steer = [EarlyStop(2, 9., 'valid_mean'), WeightAverage(.9, 'mean'), TailAverage(.9)]
    run = Trainer(model, opt, data, valid_rows(ranks.rank, ranks.world_size, 'shard'),
                  accumulate=int(accumulate), schedule=linear(), device='cpu', dir=folder,
                  eval_every=3, save_every=2, callbacks=[Steps(float(pause)), *steer])
    if checkpoints_in(folder): run.resume()
    return run.fit(30)

class Halves(torch.nn.Module):
    "A model of which each call uses one half"
    def __init__(self):
        super().__init__()
        self.parts, self.calls = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in 'ab']), 0
    def forward(self, x):
        self.calls += 1
        return self.parts[self.calls % 2](x)

def halved(ranks, accumulate, find):
    "The same batches on every rank, so that it should equal one process alone"
    set_seed(0)
    model, mine = Halves(), type('Mine', (Trainer,), dict(find_unused=bool(find)))
    loss = lambda model, batch: (model(batch['x']).square().sum(), 2)
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    data = [dict(x=torch.full((2, 2), float(i))) for i in range(1, 6)]
    return mine(model, opt, data, loss=loss, accumulate=int(accumulate), device='cpu',
                callbacks=[]).fit(5)

def threads():
    tasks = [f'/proc/self/task/{t}/comm' for t in os.listdir('/proc/self/task')]
    return [open(t).read().strip() for t in tasks]

def destroyed(ranks):
    "A script that ends the group while a trainer lives, and then the program"
    run = equal(ranks, 1, 'adamw', '', 'whole', None)
    print('before:', *threads())
    torch.distributed.destroy_process_group()
    try: run.fit(8)
    except RuntimeError as e: print(e)
    again = equal(Ranks(), 1, 'adamw', '', 'whole', None)     # alone
    model, run._called = run._called, None
    del model                                                 # what hung
    atexit._run_exitfuncs()
    print('after:', *threads())
    return again

def go(case, result, rank, world_size, port, *args):
    if int(world_size) > 1:
        os.environ.update(RANK=rank, WORLD_SIZE=world_size, MASTER_PORT=port,
                          MASTER_ADDR='127.0.0.1', GLOO_SOCKET_IFNAME='lo')
    ranks = join_ranks()
    run = globals()[case](ranks, *args)
    states = [cb.state_dict() for cb in run.callbacks if hasattr(cb, 'state_dict')]
    torch.save(dict(weights=run.model.state_dict(), log=run.log, step=run.step, states=states),
               result + rank)
    if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
'''


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Group:
    "Processes from which ranks are forked; run them once, or start them to strike one"
    def __init__(self, folder): self.folder, self.n, self.forks = folder, 0, Forks(folder, SCRIPT)

    def start(self, world_size, case, *args):
        self.n += 1
        self.result = self.folder/f'result_{self.n}_'
        common = world_size, free_port(), *args
        calls = [(case, self.result, rank, *common) for rank in range(world_size)]
        return self.forks.start_all(calls)

    def end(self, victims):
        "What each rank has at its end"
        codes = [v.end() for v in victims]
        assert not any(codes), '\n'.join([f'ended with {codes}', *(v.said() for v in victims)])
        return [torch.load(f'{self.result}{rank}') for rank in range(len(victims))]

    def __call__(self, world_size, case, *args):
        self.victims = self.start(world_size, case, *args)
        return self.end(self.victims)

    def close(self): self.forks.close()


@pytest.fixture(scope='module')
def group(tmp_path_factory):
    group = Group(tmp_path_factory.mktemp('ranks'))
    yield group
    group.close()


def series(run, key): return torch.tensor([line[key] for line in run['log']], dtype=torch.float64)


def farthest(a, b):
    "The largest difference of losses, gradient norms and weights"
    logs = [(series(a, k) - series(b, k)).abs().max() for k in ('loss', 'grad_norm')]
    weights = [(a['weights'][k] - b['weights'][k]).abs().max() for k in a['weights']]
    return max(map(float, logs + weights))


@pytest.mark.parametrize('opt, unequal, each', [
    ('muon', 'unequal', 1), ('adamw', 'unequal', 2), more('adamw', '', 1), more('muon', '', 2)])
def test_two_ranks_equal_one_that_accumulates(group, tmp_path, opt, unequal, each):
    one, = group(1, 'equal', 2*each, opt, unequal, 'whole', tmp_path/'one')
    two = group(2, 'equal', each, opt, unequal, 'whole', tmp_path/'two')
    said = [v.said() for v in group.victims]
    assert farthest(one, two[0]) < 1e-5
    assert not same(two[0]['weights'], two[1]['weights'])
    assert [r['tokens'] for r in one['log']] == [r['tokens'] for r in two[0]['log']]
    # one folder, one log, and only rank 0 prints
    assert not litter(tmp_path/'two')
    assert [p.name for p in checkpoints_in(tmp_path/'two')] == ['step_000006']
    log = load_checkpoint(tmp_path/'two'/'step_000006')['trainer']['log']
    assert [line['step'] for line in log] == [*range(1, 7)]
    assert 'step 6' in said[0] and not said[1]


@pytest.mark.parametrize('kind', ['shard', more('whole'), more('few')])
def test_a_validation_list_whole_or_in_parts_gives_one_score(group, tmp_path, kind):
    one, = group(1, 'equal', 2, 'adamw', '', kind, tmp_path/'one')
    two = group(2, 'equal', 1, 'adamw', '', kind, tmp_path/'two')
    for key in ('valid', 'bpb'):
        scores = [[r[key] for r in run['log'] if key in r] for run in (one, *two)]
        assert len(scores[0]) == 2 and scores[1] == scores[2]
        assert scores[1] == pytest.approx(scores[0], abs=1e-5)


def test_a_run_on_two_ranks_goes_on_to_the_last_bit(group, tmp_path):
    fit = "dict(save_every=2)", "dict(steps=8)"
    whole = group(2, 'trained', tmp_path/'whole', 0, *fit)
    victims = group.start(2, 'trained', tmp_path/'run', .05, *fit)
    victims[0].until(lambda: 'step 5' in victims[0].said())
    for v in victims: v.strike()
    taken = group(2, 'trained', tmp_path/'run', 0, *fit)
    assert 'step 1\n' not in group.victims[0].said() and not litter(tmp_path/'run')
    assert not same([r['weights'] for r in whole], [r['weights'] for r in taken])
    assert not same(whole[0]['log'], taken[0]['log'])
    found = [load_checkpoint(find_checkpoint(tmp_path/n))['trainer'] for n in ('whole', 'run')]
    assert not same(found[0]['ranks'], found[1]['ranks']) and len(found[0]['ranks']) == 2
    # as many as there were
    alone, = group.start(1, 'trained', tmp_path/'run', 0, *fit)
    assert alone.end() == 1
    assert 'saved by 2 processes, and here are 1: start as many' in alone.said()


@pytest.mark.parametrize('rank', [1, more(0)])
def test_an_interrupt_of_one_rank_ends_all_after_the_same_step(group, tmp_path, rank):
    victims = group.start(2, 'trained', tmp_path/'run', .05, "dict()", "dict(steps=99)")
    victims[0].until(lambda: 'step 3' in victims[0].said())
    os.kill(victims[rank].pid, signal.SIGINT)
    ends = group.end(victims)
    step = ends[0]['step']
    assert ends[1]['step'] == step < 20
    assert [p.name for p in checkpoints_in(tmp_path/'run')] == [f'step_{step:06}']
    assert not litter(tmp_path/'run')
    assert f'after step {step}; fit() goes on' in victims[0].said()
    assert 'stopped by' not in victims[1].said()


@pytest.mark.exhaustive
def test_averages_and_early_stop_on_two_ranks(group, tmp_path):
    "As one process that accumulates, the same on both, and to the last bit after a kill"
    one, = group(1, 'steered', 2, tmp_path/'one', 0)
    two = group(2, 'steered', 1, tmp_path/'two', 0)
    assert one['step'] == two[0]['step'] == two[1]['step'] == 9          # stopped early
    assert group.victims[0].said().count('stopped early at step 9') == 1
    assert 'stopped early' not in group.victims[1].said()
    assert not same(two[0]['states'], two[1]['states'])
    for a, b in zip(one['states'], two[0]['states']):
        assert a.keys() == b.keys()
        for k, v in a.items():
            if k == 'tensors': assert max((v[n] - b[k][n]).abs().max() for n in v) < 1e-5
            else: assert v == pytest.approx(b[k], abs=1e-5)
    key = 'valid_mean'
    assert [r[key] for r in one['log'] if key in r] == pytest.approx(
        [r[key] for r in two[0]['log'] if key in r], abs=1e-5)
    victims = group.start(2, 'steered', 1, tmp_path/'run', .05)
    victims[0].until(lambda: 'step 7' in victims[0].said())
    for v in victims: v.strike()
    taken = group(2, 'steered', 1, tmp_path/'run', 0)
    assert 'step 1\n' not in group.victims[0].said() and not litter(tmp_path/'run')
    for a, b in zip(two, taken):
        assert not same(a['states'], b['states']) and not same(a['weights'], b['weights'])
        assert not same(a['log'], b['log'])


@pytest.mark.exhaustive
@pytest.mark.parametrize('patient, kept', [(0, [6]), (1, [*range(1, 7)])])
def test_saved_by_the_clock_of_rank_0(group, tmp_path, patient, kept):
    settings = f"dict(save_seconds=999 if ranks.rank == {patient} else .001, keep=99)"
    group(2, 'trained', tmp_path/'run', 0, settings, "dict(steps=6)")
    assert [int(p.name[5:]) for p in checkpoints_in(tmp_path/'run')] == kept


def test_a_budget_in_seconds_ends_after_the_same_step(group, tmp_path):
    ends = group(2, 'trained', tmp_path/'run', 0, "dict()", "dict(seconds=.5)")
    assert ends[0]['step'] == ends[1]['step'] > 2
    assert not same(ends[0]['weights'], ends[1]['weights'])


@pytest.mark.exhaustive
@pytest.mark.parametrize('accumulate', [1, 3])
def test_parameters_that_a_step_leaves_out(group, accumulate):
    "They must be allowed; without, the error says what it is about"
    one, = group(1, 'halved', accumulate, '')
    two = group(2, 'halved', accumulate, 'find')
    assert farthest(one, two[0]) < 1e-5 and not same(two[0]['weights'], two[1]['weights'])
    if accumulate > 1: return
    victims = group.start(2, 'halved', accumulate, '')
    assert [v.end() for v in victims] == [1, 1]
    assert 'parameters that were not used in producing loss' in victims[0].said()


def test_experts_that_nobody_asked(group, tmp_path):
    one, = group(1, 'mixed', tmp_path)
    two = group(2, 'mixed', tmp_path)
    assert farthest(one, two[0]) < 1e-3                      # each rank balances its own tokens
    assert not same(two[0]['weights'], two[1]['weights'])


def test_a_bad_step_of_one_rank_is_left_out_by_all(group, tmp_path):
    "A loss far above the others, which no gradient tells: all skip it, or the weights part"
    args = "dict(on_nan='skip', spike=3., loss=Spike(ranks.rank, 25))", "dict(steps=28)"
    ends = group(2, 'trained', tmp_path/'run', 0, *args)
    for end in ends: assert [r['step'] for r in end['log'] if r.get('skipped')] == [25]
    assert not same(ends[0]['weights'], ends[1]['weights'])


@pytest.mark.exhaustive
def test_a_rank_that_cannot_score_lets_none_wait(group, tmp_path):
    args = "dict(loss=Broken(ranks.rank))", "dict(steps=6)"
    ends = group(2, 'trained', tmp_path/'run', 0, *args)
    said = group.victims[0].said()
    assert [e['step'] for e in ends] == [6, 6] and 'valid' not in ends[0]['log'][-1]
    assert said.count('no validation at step') == 2 and 'failed on another rank' in said


@pytest.mark.skipif(sys.platform != 'linux', reason='threads are read from /proc')
def test_a_group_that_is_destroyed_while_a_trainer_lives(group):
    "The trainer says so, nothing hangs, and gloo's threads end before Python does"
    group(2, 'destroyed')
    for said in (v.said() for v in group.victims):
        before, after = (next(s for s in said.splitlines() if s.startswith(k))
                         for k in ('before:', 'after:'))
        assert 'gloo' in before and 'gloo' not in after
        assert 'the process group of this trainer was destroyed: make a new trainer' in said


# ---- torchrun

TORCHRUN = """
import os, signal, sys, time
from pathlib import Path
from gptlab.all import *

if __name__ == '__main__':
    ranks = join_ranks()
    Path('begun').touch()
    class Strike:
        def after_backward(self, trainer): time.sleep(1.5*('--slow' in sys.argv))
        def after_step(self, trainer):
            if ranks.rank == 0: print('step', trainer.step, flush=True)
            time.sleep(.05)
            struck = Path('struck')
            if '--kill' in sys.argv and ranks.rank and trainer.step == 5 and not struck.exists():
                struck.touch()
                os.kill(os.getpid(), signal.SIGKILL)
    set_seed(3)
    docs = ['Once upon a time. ', 'There was a cat. ']*200
    train, valid = batches(docs, ByteTokenizer(), B=2, T=16, seed=ranks.rank, valid_rows=4)
    model = GPT(GPTConfig(vocab_size=257, n_layers=1, n_heads=2, d_model=16, context_length=16))
    run = Trainer(model, Opt(model, adamw()), train, valid, dir='run', save_every=2,
                  callbacks=[Strike()], device='cpu')
    if checkpoints_in('run'): run.resume()
    run.fit(int(sys.argv[1]))
    print('ended at', run.step, flush=True)
"""


def torchrun(folder, *args):
    "The launcher; where somebody took its port meanwhile, it is started again"
    (folder/'script.py').write_text(TORCHRUN)
    while True:
        job = launched(folder, *args)
        job.until(lambda: 'EADDRINUSE' in job.said() or (folder/'begun').exists(), 120, .05)
        if (folder/'begun').exists(): return job
        job.strike()


def launched(folder, *args):
    argv = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--max-restarts=1',
            '--monitor-interval=0.2', f'--master-port={free_port()}', 'script.py', *args]
    return start(argv, folder/'said.txt', cwd=folder)


@pytest.mark.exhaustive
def test_a_rank_that_is_killed_is_started_again_and_goes_on(tmp_path):
    job = torchrun(tmp_path, 8, '--kill')
    assert job.end() == 0, job.said()
    said = job.said()
    assert said.count('ended at 8') == 2 and (tmp_path/'struck').exists()
    assert said.count('step 1\n') == 1 and said.count('step 5\n') == 2
    assert checkpoints_in(tmp_path/'run')[-1].name == 'step_000008' and not litter(tmp_path/'run')


@pytest.mark.exhaustive
def test_ctrl_c_ends_all_ranks_and_is_saved(tmp_path):
    "It goes to the launcher, which sends it on to each rank, in the middle of a step"
    job = torchrun(tmp_path, 500, '--slow')
    job.until(lambda: 'step 2\n' in job.said(), 120)
    os.killpg(job.pid, signal.SIGINT)
    job.end()
    said = job.said()
    assert said.count('stopped by SIGINT after step') == 1 and said.count('ended at') == 2, said
    kept = checkpoints_in(tmp_path/'run')[-1].name
    assert f'step {int(kept[5:])}; fit() goes on' in said
    assert not litter(tmp_path/'run') and ends(job.pid)
