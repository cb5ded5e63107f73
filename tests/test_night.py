"""A run of a night: whatever happens, what worked is not lost, and what is said is true.

Each test names the fault it stands for, where there is one; `small` makes a run of a second.
"""
import copy
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gptlab import checkpoints
from gptlab.checkpoints import (CheckpointWriter, checkpoints_in, find_checkpoint, load_checkpoint,
                                load_model, load_weights, new_folder, prune_checkpoints, run_lock,
                                SafeRun, save_checkpoint)
from gptlab.core import set_seed
from gptlab.data import corpus
from gptlab.loader import fast_batches
from gptlab.model import GPT, GPTConfig, lm_loss
from gptlab.optimizers import adamw, hidden, muon, Opt
from gptlab.packing import batches
from gptlab.schedules import constant
from gptlab.steering import WeightAverage
from gptlab.tokenizer import ByteTokenizer
from gptlab.tokenizers import AsciiTokenizer
from gptlab.trainer import EVENTS, Trainer
from gptlab.watching import Lines, LiveView, status_line
from kills import ends, start
from test_resume import same

DOCS = ['Once upon a time there was a cat. ', 'It sat on the mat. ', 'Then it went home. ']*30
posix = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals')


def small(lr=1e-2, B=4, tok=None, V=None, valid=..., width=16, **kw):
    "A small run, ready to fit"
    set_seed(3)
    tok = tok or ByteTokenizer()
    train, fixed = batches(DOCS, tok, B=B, T=16, valid_rows=4)
    cfg = GPTConfig(vocab_size=V or tok.vocab_size, n_layers=1, n_heads=2, d_model=width,
                    context_length=16, dropout=.1)
    model = GPT(cfg)
    kw = dict(callbacks=[], eval_every=0, device='cpu') | kw
    return Trainer(model, Opt(model, adamw(lr=lr)), train, fixed if valid is ... else valid, **kw)


def names(folder): return sorted(p.name for p in Path(folder).iterdir() if p.name != '.lock')
def weights(run): return {k: v.clone() for k, v in run.model.state_dict().items()}
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class After:
    "A callback that does something once, after a step"
    def __init__(self, step, do): self.step, self.do = step, do
    def after_step(self, trainer):
        if trainer.step == self.step: self.do(trainer)


# ---- 1. nothing is lost

def test_a_copy_kept_beside_the_checkpoints_is_nobodys(tmp_path):
    "A01: never the latest, never counted, never deleted"
    small(dir=tmp_path, save_every=2).fit(4)
    for name in ('step_000004_good', 'step_000004 copy', 'step_000004.bak', 'step_4', 'mine'):
        shutil.copytree(tmp_path/'step_000004', tmp_path/name)
    run = small(dir=tmp_path, save_every=2).resume().fit(10)
    assert find_checkpoint(tmp_path).name == 'step_000010' and run.step == 10
    assert [p.name for p in checkpoints_in(tmp_path)] == ['step_000008', 'step_000010']
    assert {'step_000004_good', 'step_000004 copy', 'step_000004.bak', 'step_4',
            'mine'} <= set(names(tmp_path))


@pytest.mark.parametrize('tok, V', [(AsciiTokenizer(), None), (ByteTokenizer(), 512)])
def test_a_sample_for_show_does_not_end_a_run(tmp_path, tok, V):
    "A02: no mark to begin with, or ids that the tokenizer lacks"
    view = LiveView()
    run = small(tok=tok, V=V, callbacks=[view], eval_every=5, dir=tmp_path).fit(20)
    assert run.step == 20 and 'step_000020' in names(tmp_path)
    assert '(no sample could be made' in view.samples[-1][1] or V
    assert run._repr_html_()


class Broken:
    "A view that fails at every event"
    for_show = True
    def __getattr__(self, name):
        if name not in EVENTS: raise AttributeError(name)
        def fail(trainer): raise RuntimeError('no screen')
        return fail


def test_a_view_that_fails_is_left_out_and_said_once(tmp_path, capsys):
    run = small(callbacks=[Broken()], dir=tmp_path).fit(5)
    said = capsys.readouterr().out
    assert run.step == 5 and said.count('Broken failed') == 1 and 'no screen' in said


def test_a_validation_that_fails_does_not_lose_the_run(tmp_path, capsys):
    "A03: the run is saved before it, and an empty list is no list"
    bad = [dict(ids=torch.full((1, 4), 999), targets=torch.full((1, 4), 1))]
    run = small(valid=bad, dir=tmp_path/'bad', eval_every=5).fit(10)
    said = capsys.readouterr().out
    assert run.step == 10 and 'no validation at step 5, training goes on' in said
    assert find_checkpoint(tmp_path/'bad').name == 'step_000010'
    assert small(valid=[], dir=tmp_path/'none', eval_every=2).fit(4).step == 4


def test_saved_before_it_is_scored(tmp_path):
    seen = []
    class Look:
        def before_eval(self, trainer):
            trainer._writer.wait()
            seen.append(names(tmp_path))
    run = small(dir=tmp_path, callbacks=[Look()]).fit(3)
    assert seen == [['.lock.json', 'step_000003']]
    log = load_checkpoint(find_checkpoint(tmp_path), 'trainer')['trainer']['log']
    assert log[-1]['valid'] == run.log[-1]['valid']           # and saved again with its score


def test_an_error_of_a_callback_saves_what_is_not_saved(tmp_path):
    "R05: what leaves fit is raised, and the run goes on from the step before"
    def fail(trainer): raise KeyError('mine')
    with pytest.raises(KeyError): small(dir=tmp_path, callbacks=[After(7, fail)]).fit(20)
    assert small(dir=tmp_path).resume().step in (6, 7)
    clean = small().fit(20)
    run = small(dir=tmp_path).resume().fit(20)
    assert equal(weights(run), weights(clean))


def test_an_error_within_a_step_is_undone(tmp_path):
    "No batch, no random number and no count is lost, here and in the file"
    class Fail:
        def after_loss(self, trainer):
            if trainer.step == 4 and not hasattr(self, 'done'):
                self.done = True
                raise RuntimeError('out of memory')
    clean = small(accumulate=2).fit(8)
    run = small(dir=tmp_path, callbacks=[Fail()], accumulate=2)
    with pytest.raises(RuntimeError): run.fit(8)
    run.dir = None
    run.fit()                                                 # here
    other = small(dir=tmp_path, accumulate=2).resume().fit()  # and in another process
    for r in (run, other):
        assert equal(weights(r), weights(clean))
        assert [x['tokens'] for x in r.log] == [x['tokens'] for x in clean.log]


def test_a_save_that_fails_is_shouted_and_training_goes_on(tmp_path, capsys, monkeypatch):
    def full(*a, **kw): raise OSError(28, 'No space left on device')
    run = small(dir=tmp_path, save_every=2)
    run.callbacks = [After(3, lambda t: monkeypatch.setattr(os, 'fsync', full)),
                     After(7, lambda t: monkeypatch.undo())]
    run.fit(10)
    said = capsys.readouterr().out
    assert run.step == 10 and 'NOT SAVED' in said and 'No space left' in said
    assert [p.name for p in checkpoints_in(tmp_path)] == ['step_000008', 'step_000010']


def test_where_nothing_can_be_saved_there_is_an_error_at_the_end(tmp_path, monkeypatch):
    run = small(dir=tmp_path)
    run.callbacks = [After(1, lambda t: monkeypatch.setattr(
        os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(5, 'Input/output error'))))]
    with pytest.raises(OSError, match='could not write the checkpoint.*Input/output'): run.fit(4)
    assert run.step == 4
    monkeypatch.undo()
    assert run.save().exists()


def test_a_number_of_numpy_in_the_log_can_be_saved(tmp_path):
    "R05: np.float32 in the log"
    note = After(2, lambda t: t.log[-1].update(mine=np.float32(.5)))
    small(dir=tmp_path, callbacks=[note]).fit(3)
    assert load_checkpoint(find_checkpoint(tmp_path))['trainer']['log'][1]['mine'] == .5


def test_saved_by_the_clock(tmp_path):
    run = small(dir=tmp_path, save_seconds=.05, callbacks=[After(3, lambda t: time.sleep(.1))])
    saved = []
    run.callbacks.append(After(5, lambda t: (t._writer.wait(), saved.extend(names(tmp_path)))))
    run.fit(6)
    assert any(n.startswith('step_') for n in saved)
    assert small(dir=tmp_path/'b').save_seconds == 300
    spent = small(dir=tmp_path/'c', save_every=1).fit(5).seconds
    assert spent < 5                                          # saving is no training time


def test_weights_that_are_not_finite_are_not_saved(tmp_path, capsys):
    "R03: the last good checkpoint stays"
    def poison(trainer): trainer.model.norm.weight.data[0] = math.nan
    run = small(dir=tmp_path, save_every=2, on_nan='skip', callbacks=[After(5, poison)])
    with pytest.raises(FloatingPointError, match='10th such step in a row'): run.fit(40)
    assert 'not finite' in capsys.readouterr().out
    model, _ = load_model(tmp_path, device='cpu')
    assert all(w.isfinite().all() for w in model.state_dict().values())


# ---- 2. foreign things, and two at once

def test_readers_never_rename_or_delete(tmp_path):
    "R02"
    small(dir=tmp_path/'run').fit(2)
    foreign = ['.my-shell-settings.old', '.vimrc.old', 'run/.notes.12345678.old', 'run/.step_1']
    for name in foreign: (tmp_path/name).mkdir()
    load_model(tmp_path, device='cpu')
    load_model(tmp_path/'run', device='cpu')
    small(dir=tmp_path/'run').resume().fit(6)
    prune_checkpoints(tmp_path/'run', keep=1)
    assert all((tmp_path/name).is_dir() for name in foreign)


def test_a_folder_or_file_that_is_no_checkpoint_is_refused(tmp_path):
    "A08, R02"
    (tmp_path/'thesis').mkdir()
    (tmp_path/'thesis'/'chapter1.txt').write_text('x')
    (tmp_path/'file').write_text('x')
    for name in ('thesis', 'file'):
        with pytest.raises(FileExistsError, match='something else'):
            save_checkpoint(tmp_path/name, model=dict(a=1))
    assert names(tmp_path) == ['file', 'thesis'] and names(tmp_path/'thesis') == ['chapter1.txt']


def test_what_crashes_left_is_swept_and_nothing_else(tmp_path):
    "R08: pruning renames first; a half-deleted folder is none of the checkpoints"
    small(dir=tmp_path, save_every=2).fit(4)
    half = tmp_path/'.step_000002.0a1b2c3d'
    shutil.copytree(tmp_path/'step_000002', half)
    (half/'manifest.json').unlink()
    (tmp_path/'step_000009').mkdir()                          # without a manifest: not listed
    assert len(checkpoints_in(tmp_path)) == 2
    prune_checkpoints(tmp_path, keep=1)
    assert names(tmp_path) == ['step_000004', 'step_000009']
    with pytest.raises(ValueError, match='at least 1'): prune_checkpoints(tmp_path, keep=0)


@posix
def test_a_kill_between_the_renames_of_a_prune(tmp_path):
    code = f'''
import os, shutil
from pathlib import Path
from gptlab.checkpoints import prune_checkpoints
shutil.rmtree = lambda *a, **kw: os._exit(9)
prune_checkpoints(Path({str(tmp_path)!r}), keep=1)'''
    for n in (1, 2, 3): save_checkpoint(tmp_path/f'step_{n:06}', a=dict(n=n))
    assert subprocess.run([sys.executable, '-c', code]).returncode == 9
    assert [p.name for p in checkpoints_in(tmp_path)] == ['step_000003']
    prune_checkpoints(tmp_path, keep=1)
    assert names(tmp_path) == ['step_000003']


def test_the_most_recent_run_is_the_one_written_last(tmp_path):
    "A21: not the one that was copied last"
    small(dir=tmp_path/'old').fit(2)
    time.sleep(.01)
    small(dir=tmp_path/'new').fit(3)
    for name in ('new', 'old'):
        shutil.copytree(tmp_path/name, tmp_path/'usb'/name, copy_function=shutil.copy)
        os.utime(tmp_path/'usb'/name)
    assert find_checkpoint(tmp_path).parent.name == 'new'
    assert find_checkpoint(tmp_path/'usb').parent.name == 'new'


def test_a_folder_in_use_names_who_uses_it(tmp_path):
    "A09, R07"
    with run_lock(tmp_path):
        with pytest.raises(BlockingIOError, match=f'in use by process {os.getpid()} on'):
            small(dir=tmp_path).fit(2)
    assert small(dir=tmp_path).fit(2).step == 2
    assert names(tmp_path) == ['step_000002']                 # and no litter


@posix
def test_a_lock_ends_with_its_process(tmp_path):
    code = f'''
import os, time
from gptlab.checkpoints import run_lock
with run_lock({str(tmp_path)!r}):
    print('held', flush=True)
    time.sleep(60)'''
    victim = start([sys.executable, '-c', code], tmp_path/'said.txt')
    victim.until(lambda: 'held' in victim.said())
    with pytest.raises(BlockingIOError, match=f'process {victim.pid}'):
        with run_lock(tmp_path): pass
    victim.strike()
    with run_lock(tmp_path): pass


def test_folders_are_made_anew(tmp_path):
    "A09: many at once, each gets one of its own"
    made = []
    threads = [threading.Thread(target=lambda: made.append(new_folder(tmp_path/'a'/'run')))
               for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(set(made)) == 8 and all(p.is_dir() for p in made)


def test_checkpoints_ahead_of_a_run_are_set_aside(tmp_path, capsys):
    small(dir=tmp_path, save_every=2).fit(4)
    run = small(dir=tmp_path).resume(which=2).fit(3)
    assert 'step_000004 is ahead of this run' in capsys.readouterr().out
    assert [p.name for p in checkpoints_in(tmp_path)] == ['step_000002', 'step_000003']
    assert run.step == 3 and any(n.startswith('step_000004_left') for n in names(tmp_path))


# ---- 3. interrupts

@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
@posix
def test_signals(tmp_path, name, capsys):
    "The step is finished, saved; SIGTERM and SIGHUP then end the program (C04)"
    hit = After(3, lambda t: signal.raise_signal(getattr(signal, name)))
    run = small(dir=tmp_path, callbacks=[hit])
    if name == 'SIGINT': run.fit(8)
    else:
        with pytest.raises(SystemExit) as e: run.fit(8)
        assert e.value.code == 128 + getattr(signal, name)
    assert f'stopped by {name} after step 3' in capsys.readouterr().out
    assert run.interrupted == name and find_checkpoint(tmp_path).name == 'step_000003'
    run.callbacks = []
    assert run.fit().step == 8 and equal(weights(run), weights(small().fit(8)))


@posix
def test_what_is_ignored_stays_ignored_and_a_programs_own_handler_is_called(tmp_path):
    "SIGHUP under nohup; a script with its own SIGTERM"
    hang_up = After(3, lambda t: signal.raise_signal(signal.SIGHUP))
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try: assert small(callbacks=[hang_up]).fit(8).step == 8
    finally: signal.signal(signal.SIGHUP, old)
    called = []
    old = signal.signal(signal.SIGTERM, lambda *_: called.append(1))
    try:
        end = After(3, lambda t: signal.raise_signal(signal.SIGTERM))
        run = small(dir=tmp_path, callbacks=[end]).fit(8)
    finally: signal.signal(signal.SIGTERM, old)
    assert called == [1] and run.step == 3 and find_checkpoint(tmp_path).name == 'step_000003'


def test_a_file_called_stop(tmp_path, capsys):
    touch = After(4, lambda t: (tmp_path/'STOP').touch())
    run = small(dir=tmp_path, callbacks=[touch]).fit(9)
    assert run.step == 4 and not (tmp_path/'STOP').exists()
    assert 'stopped by the file STOP after step 4' in capsys.readouterr().out
    assert run.fit().step == 9


def test_the_buttons_of_the_live_view(tmp_path):
    view = LiveView(every=0)
    stop, save = view.buttons
    run = small(dir=tmp_path, callbacks=[After(2, lambda t: save.click()), view,
                                         After(6, lambda t: stop.click())])
    saved = []
    run.callbacks.append(After(4, lambda t: (t._writer.wait(), saved.extend(names(tmp_path)))))
    run.fit(20)
    assert run.step == 6 and run.interrupted == 'the stop button'
    assert any(n.startswith('step_00000') for n in saved)


@posix
def test_workers_outlive_an_interrupt(tmp_path):
    "A11: Ctrl-C goes to the whole group; fit() goes on"
    code = f'''
from gptlab.all import *
if __name__ == '__main__':
    s, v = fast_batches(['hello world number %d '%i*50 for i in range(4000)], ByteTokenizer(),
                        B=8, T=64, size=64, workers=2, valid_rows=4)
    m = GPT(GPTConfig(vocab_size=257, n_layers=1, n_heads=2, d_model=16, context_length=64))
    class Go:
        def after_step(self, t):
            if t.step == 5: print('go', flush=True)
    r = Trainer(m, Opt(m, adamw()), s, v, callbacks=[Go()], eval_every=0)
    r.fit(100000)
    first = r.step
    r.fit(first + 300)
    print('went on from', first, 'to', r.step - first, flush=True)
'''
    (tmp_path/'run.py').write_text(code)
    victim = start([sys.executable, 'run.py'], tmp_path/'said.txt', cwd=tmp_path)
    try:
        victim.until(lambda: 'go' in victim.said(), 120)
        os.killpg(victim.pid, signal.SIGINT)
        assert victim.end() == 0, victim.said()
    finally: victim.strike()
    assert 'stopped by SIGINT' in victim.said() and 'to 300' in victim.said(), victim.said()
    assert ends(victim.pid)


# ---- 4. resume

@pytest.mark.parametrize('kind', ['list', 'loader'])
def test_lists_and_loaders_go_on_where_they_were(tmp_path, kind):
    "A17"
    data = [dict(ids=torch.full((1, 4), i), targets=torch.full((1, 4), i)) for i in range(10)]
    if kind == 'loader': data = torch.utils.data.DataLoader(data, batch_size=None)
    seen = []
    class See:
        def after_loss(self, trainer): seen.append(int(trainer.batch['ids'][0, 0]))
    def make():
        m = GPT(GPTConfig(vocab_size=16, n_layers=1, n_heads=2, d_model=16))
        return Trainer(m, Opt(m, adamw()), data, None, dir=tmp_path, callbacks=[See()])
    make().fit(4)
    make().resume().fit(13)
    assert seen == [*range(10), 0, 1, 2]


def test_a_generator_cannot_go_on_and_that_is_said(tmp_path, capsys):
    def endless():
        while True: yield dict(ids=torch.ones(1, 4).long(), targets=torch.ones(1, 4).long())
    def make():
        m = GPT(GPTConfig(vocab_size=16, n_layers=1, n_heads=2, d_model=16))
        return Trainer(m, Opt(m, adamw()), endless(), dir=tmp_path, callbacks=[])
    make().fit(2)
    make().resume()
    assert 'has no state_dict: 2 batches were read before' in capsys.readouterr().out


def test_what_was_built_differently_wins_and_is_said(tmp_path, capsys):
    "A12"
    small(dir=tmp_path).fit(3)
    run = small(dir=tmp_path, lr=1e-4, B=8, schedule=constant(), clip=.5).resume()
    said = capsys.readouterr().out
    for words in ('lr 0.0001, before it was 0.01', 'B 8, before it was 4', 'clip 0.5',
                  'schedule'): assert words in said
    before = run.tokens
    run.fit(5)
    assert run.train.B == 8 and run.tokens - before == 2*8*16
    assert run.opt.param_groups[0]['lr'] == pytest.approx(1e-4, rel=.01)
    assert not small(dir=tmp_path, lr=1e-4, B=8, schedule=constant(), clip=.5).resume() is None
    assert 'before it was' not in capsys.readouterr().out     # now it is as it was


@pytest.mark.parametrize('other', ['model', 'heads', 'tokenizer', 'text', 'optimizer'])
def test_a_refused_resume_has_changed_nothing(tmp_path, other):
    "R12"
    small(dir=tmp_path).fit(4)
    if other == 'model': run = small(width=32)
    if other == 'tokenizer': run = small(tok=AsciiTokenizer(), V=257)
    if other in ('heads', 'text', 'optimizer'): run = small()
    if other == 'heads': run.model.cfg.n_heads = 1
    if other == 'text': run.train = batches(DOCS[:20], ByteTokenizer(), B=4, T=16)[0]
    if other == 'optimizer':
        run.opt = Opt(run.model, muon(at=hidden), adamw())
    before, place, rng = weights(run), run.train.state_dict(), torch.get_rng_state()
    with pytest.raises(ValueError): run.resume(tmp_path)
    assert equal(before, weights(run)) and run.step == 0 and not run.log
    assert run.train.state_dict() == place and torch.equal(rng, torch.get_rng_state())
    assert not run.opt.state


def test_a_run_of_lora_that_is_opened_says_so(tmp_path):
    "U13"
    from gptlab.surgery import add_lora
    run = small(dir=tmp_path)
    add_lora(run.model, r=2)
    run.opt = Opt(run.model, adamw())
    run.fit(2)
    with pytest.raises(ValueError, match='LoRA'): load_model(tmp_path, device='cpu')


# ---- 5. bad steps

class Bad:
    "A loss that is NaN at some calls, or much too large"
    def __init__(self, *at, by=math.nan): self.calls, self.at, self.by = 0, at, by
    def __call__(self, model, batch):
        self.calls += 1
        total, n = lm_loss(model, batch)
        return total*(self.by if self.calls in self.at else 1), n


@pytest.mark.parametrize('saved', [True, False], ids=['from a checkpoint', 'from memory'])
def test_read_late_a_bad_step_goes_back(tmp_path, saved):
    run = small(loss=Bad(6), dir=tmp_path, save_every=2*saved, keep=9)
    run.read_late = True
    with pytest.raises(FloatingPointError, match='was nan at step 5') as e: run.fit(20)
    run._writer.wait()
    back = 4 if saved else 0
    assert run.step == back == len(run.log) and f'back at step {back}' in str(e.value)
    reference = small().fit(20 if not back else 4) if back else small()
    if not back: assert equal(weights(run), weights(reference))
    assert all(w.isfinite().all() for w in weights(run).values())
    kept = load_checkpoint(tmp_path/'bad_batch_000005')
    assert kept['report']['text'] and kept['report']['batches'][0]['ids'].shape == (4, 16)
    assert run.fit().step == 20


def test_rewind_goes_on_behind_the_bad_batch(tmp_path, capsys):
    run = small(loss=Bad(6), on_nan='rewind', dir=tmp_path)
    run.read_late = True
    run.fit(12)
    assert run.step == 12 and 'on behind that batch' in capsys.readouterr().out
    assert all(math.isfinite(line['loss']) for line in run.log)
    assert [line['step'] for line in run.log] == [*range(1, 13)]


def test_skipped_steps_are_counted_and_end_the_run_after_ten(tmp_path):
    run = small(loss=Bad(3, 5), on_nan='skip').fit(8)
    assert [r['step'] for r in run.log if r.get('skipped')] == [3, 5]
    with pytest.raises(FloatingPointError, match='10th such step in a row'):
        small(loss=Bad(*range(3, 99)), on_nan='skip', dir=tmp_path).fit(50)


def test_skip_reads_each_norm_too_where_numbers_come_late():
    "A finite loss with a gradient of 0·∞"
    def rooted(model, batch):
        total, n = lm_loss(model, batch)
        return total + 0*(total - total.detach()).abs().sqrt(), n
    run = small(loss=rooted, on_nan='skip')
    run.read_late = True
    run.fit(3)
    assert all(r['skipped'] for r in run.log)
    assert all(w.isfinite().all() for w in weights(run).values())


def test_a_spike_is_bad_too(tmp_path):
    run = small(loss=Bad(25, by=50.), on_nan='skip', spike=3.).fit(30)
    assert [r['step'] for r in run.log if r.get('skipped')] == [25]
    assert not any(r.get('skipped') for r in small(loss=Bad(25, by=50.)).fit(30).log)


@pytest.mark.parametrize('error', [PermissionError('no'), ValueError('no'), RuntimeError('no')])
def test_a_bad_batch_that_cannot_be_kept_hides_no_bad_step(tmp_path, monkeypatch, error):
    "A NaN loss where nothing may be written showed as an OSError about a checkpoint"
    def fails(*a, **kw): raise error
    monkeypatch.setattr(checkpoints, 'save_checkpoint', fails)
    with pytest.raises(FloatingPointError, match='could not be kept'): small(loss=Bad(2)).fit(5)


def test_a_bad_batch_where_nothing_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, 'fsync', lambda fd: (_ for _ in ()).throw(OSError(30, 'Read-only')))
    with pytest.raises(FloatingPointError, match='could not be kept'): small(loss=Bad(2)).fit(5)


# ---- 6. told truthfully

class Reads(torch.overrides.TorchFunctionMode):
    "Counts what would wait for a device: item(), tolist(), bool(), float() of tensors"
    def __init__(self):
        super().__init__()
        self.n = 0
    def __torch_function__(self, f, types, args=(), kwargs=None):
        name = getattr(f, '__name__', '')
        if name in ('item', 'tolist', '__bool__', '__float__', '__int__', 'cpu', 'numpy'):
            self.n += 1
        return f(*args, **kwargs or {})


def test_no_number_of_a_step_is_read_in_it(monkeypatch):
    "As on a device whose numbers cost a wait, where the model checks no values"
    from gptlab import attention, model
    for module in (attention, model): monkeypatch.setattr(module, 'has_values', lambda *a: False)
    run = small(accumulate=2)
    run.read_late, run.budget, run.seconds = True, ('steps', 99), 2.   # the peak is measured, too
    run._memory = run._snapshot()
    for _ in range(3): run.one_step()
    with Reads() as reads:
        seen = []
        class Before:
            def after_backward(self, t): seen.append(reads.n)
        run.callbacks = [Before()]
        n = reads.n
        run.one_step()
    assert seen == [n]                        # none until the gradients are there …
    assert reads.n - n <= 2                   # … and then those of the step before: loss and norm
    assert isinstance(run.log[-1]['loss'], torch.Tensor)
    assert isinstance(run.log[-2]['loss'], float) and run.log[-1]['mfu'] > 0


def test_read_late_or_at_once_the_run_is_the_same(tmp_path):
    late = small(dir=tmp_path)
    late.read_late = True
    late.fit(10)
    now = small().fit(10)
    assert equal(weights(late), weights(now))
    assert [r['loss'] for r in late.log] == [r['loss'] for r in now.log]


@pytest.mark.exhaustive
def test_compiling_is_outside_the_clock_and_announced(capsys):
    "U03"
    run = small(compile=True)
    if not run.compiled: pytest.skip('no C++ compiler here')
    begun = time.monotonic()
    run.fit(seconds=1.)
    took = time.monotonic() - begun
    said = capsys.readouterr().out
    assert 'compiling for cpu' in said and 'compiled in' in said
    assert run.step > 5 and took > run.seconds
    plain = small(compile=True).fit(3)
    assert [r['tokens'] for r in plain.log] == [64, 128, 192] # its batch was read again


def failing(graph, inputs): raise RuntimeError('fatal error: Python.h: No such file or directory')


def test_where_the_compiler_fails_training_says_why_and_goes_on(capsys, monkeypatch):
    "As it does where a C++ compiler is found, and Python's headers are not"
    def compile(run):
        for block in run.model.blocks: block.compile(backend=failing)
        return True
    monkeypatch.setattr(SafeRun, '_compile', compile)
    run = small(compile=True).fit(3)
    said = capsys.readouterr().out
    assert 'compiling failed (Python.h: No such file or directory)' in said and 'headers' in said
    assert 'goes on without compilation' in said and 'compiled in' not in said
    assert not run.compiled and run.info['settings']['compile'] is False
    monkeypatch.undo()
    plain = small().fit(3)
    assert equal(weights(run), weights(plain)) and [r['tokens'] for r in run.log] == [64, 128, 192]
    torch.compiler.reset()


def test_an_error_of_the_model_is_no_error_of_the_compiler(monkeypatch):
    def compile(run):
        for block in run.model.blocks: block.compile(backend='eager')
        run.model.blocks[0].attn.forward = lambda x, seq: x @ torch.ones(3, 3)
        return True
    monkeypatch.setattr(SafeRun, '_compile', compile)
    with pytest.raises(RuntimeError, match='cannot be multiplied|size'): small(compile=True).fit(3)
    torch.compiler.reset()


def test_fast_compiles_where_a_minute_of_the_clock_follows(monkeypatch):
    asked = []
    monkeypatch.setattr(SafeRun, '_compile', lambda run: asked.append(run.budget))
    def stopped(**budget):
        run = small(compile='fast', callbacks=[Stop()])
        run.fit(**budget)
        assert not run.compiled
    for budget in (dict(steps=1), dict(tokens=64), dict(seconds=59), dict(epochs=.01)):
        stopped(**budget)
    assert asked == []
    stopped(seconds=60)
    assert asked == [('seconds', 60)]
    monkeypatch.setenv('GPTLAB_MAX_STEPS', '1')
    stopped(seconds=60)
    assert len(asked) == 1
    with pytest.raises(TypeError, match="compile must be True, False or 'fast'"):
        small(compile='slow')


def test_fast_goes_on_as_it_was(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(SafeRun, '_compile', lambda run: asked.append(run.budget) or True)
    monkeypatch.setattr(SafeRun, '_warm_up', lambda run: None)
    small(dir=tmp_path/'long', compile='fast', callbacks=[Stop()]).fit(seconds=60)
    small(dir=tmp_path/'short', compile='fast').fit(2)
    assert len(asked) == 1
    again = small(dir=tmp_path/'long', compile='fast').resume()
    assert len(asked) == 2 and again.compiled and again.info['settings']['compile'] is True
    again.fit(3)
    other = small(dir=tmp_path/'short', compile='fast', callbacks=[Stop()]).resume()
    other.fit(seconds=60)
    assert len(asked) == 2 and not other.compiled and other.info['settings']['compile'] is False


class Stop:
    def after_step(self, run): run.stop = True


# ---- 7. precision

def test_what_saves_memory_changes_no_run():
    "remat and loss_chunk are the model's: set before fit"
    def trained(**kw):
        run = small()
        for k, v in kw.items(): setattr(run.model, k, v)
        return weights(run.fit(4))
    whole, remat, chunked = trained(), trained(remat=True), trained(loss_chunk=16)
    assert equal(whole, remat)
    for k in whole: assert torch.allclose(whole[k], chunked[k], atol=1e-5)


def test_names_of_precisions():
    assert small(dtype='bf16').dtype == torch.bfloat16 and small().dtype is None
    assert small(dtype=torch.float16).scaler is not None and small(dtype='float32').dtype is None
    with pytest.raises(ValueError, match='float32, bfloat16, float16 or'): small(dtype='int8')


def test_float16_is_scaled():
    "A gradient off by 89 % without; with a scaler as good as bfloat16's"
    def losses(dtype): return [r['loss'] for r in small(dtype=dtype).fit(30).log]
    full, half = losses('float32'), losses('float16')
    assert max(abs(a - b) for a, b in zip(full, half)) < .05
    assert half[-1] < half[0] - .3


def test_the_scaler_is_saved(tmp_path):
    half = After(4, lambda t: setattr(t, 'stop', True))
    small(dtype='float16', dir=tmp_path, callbacks=[half]).fit(8)
    run = small(dtype='float16', dir=tmp_path).resume().fit()
    assert equal(weights(run), weights(small(dtype='float16').fit(8)))


@pytest.mark.parametrize('units', ['', 'AMX'])
def test_a_hint_where_bfloat16_is_slow(units, capsys, monkeypatch):
    "U13; where it is fast there is no hint, and 'fast' is bfloat16"
    monkeypatch.setattr('gptlab.checkpoints.bfloat16_units', lambda device: units)
    small(dtype='bfloat16')
    assert ('often slower than float32' in capsys.readouterr().out) == (not units)
    run = small(dtype='fast')
    assert run.dtype == (torch.bfloat16 if units else None) and not capsys.readouterr().out
    assert math.isfinite(run.fit(2).log[-1]['loss'])
    with pytest.raises(ValueError, match="or 'fast', not 'quick'"): small(dtype='quick')


def test_epochs():
    data = [dict(ids=torch.ones(2, 4).long(), targets=torch.ones(2, 4).long())]*5
    m = GPT(GPTConfig(vocab_size=16, n_layers=1, n_heads=2, d_model=16))
    run = Trainer(m, Opt(m, adamw()), data, callbacks=[]).fit(epochs=2)
    assert run.step == 10
    run = small()
    assert run.fit(epochs=.05).tokens >= .05*len(run.train.tokens)


# ---- 8. checkpoints

def test_selectors(tmp_path):
    small(dir=tmp_path, save_every=2, eval_every=2, keep=9).fit(6)
    for which, name in (('latest', 6), (2, 2), (-2, 4)):
        assert find_checkpoint(tmp_path, which).name == f'step_{name:06}'
    best = find_checkpoint(tmp_path, 'best')
    summary = lambda p: load_checkpoint(p, 'summary')['summary']
    scores = {p: summary(p)['valid'] for p in checkpoints_in(tmp_path)}
    assert scores[best] == min(scores.values())
    for which in ('newest', 1.5, None, True):
        with pytest.raises(ValueError, match="'latest', 'best', a step"):
            find_checkpoint(tmp_path, which)


def test_retention(tmp_path):
    small(dir=tmp_path, save_every=1, eval_every=1, keep=dict(keep=1, best=1, every=4)).fit(10)
    kept = [p.name for p in checkpoints_in(tmp_path)]
    assert kept[-1] == 'step_000010' and {'step_000004', 'step_000008'} <= set(kept)
    assert len(kept) <= 4 and find_checkpoint(tmp_path, 'best').name in kept


def test_a_disk_with_room_for_two(tmp_path):
    "R05: the third save makes room first"
    if not shutil.which('mount'): pytest.skip('no mount here')
    d = tmp_path/'disk'
    d.mkdir()
    size = small(dir=tmp_path/'size').fit(1)
    room = sum(f.stat().st_size + 4096 for f in find_checkpoint(size.dir).iterdir())
    cmd = ['mount', '-t', 'tmpfs', '-o', f'size={int(room*2.4)//4096*4}k', 'tmpfs', str(d)]
    cmd[4] = f'size={int(room*2.4)//1024}k'
    if subprocess.run(cmd, capture_output=True).returncode: pytest.skip('no right to mount')
    try:
        run = small(dir=d/'run', save_every=1).fit(6)
        assert run.step == 6 and find_checkpoint(d/'run').name == 'step_000006'
    finally: subprocess.run(['umount', '-l', str(d)])


@posix
def test_files_have_the_mode_of_new_files(tmp_path):
    "R12"
    old = os.umask(0o022)
    try: path = save_checkpoint(tmp_path/'c', model=dict(w=torch.ones(2)))
    finally: os.umask(old)
    assert {stat.S_IMODE(f.stat().st_mode) for f in path.iterdir()} == {0o644}


def test_what_would_lose_digits_or_is_not_finite_is_refused():
    "R12"
    model = torch.nn.Linear(2, 2)
    wide = {k: v.double() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match='float64 in the checkpoint.*lose digits'):
        load_weights(model, wide)
    load_weights(model, {k: v.bfloat16() for k, v in model.state_dict().items()})
    with pytest.raises(ValueError, match='weight is not finite'):
        load_weights(model, dict(model.state_dict(), weight=torch.full((2, 2), math.nan)))


def test_names_that_meet_in_a_tree(tmp_path):
    "R09"
    x, y = torch.zeros(2), torch.ones(2)
    trees = [{'a.b': x, 'a': {'b': y}}, {1: x, '1': y}, dict(a=x, b=x.view(torch.int32))]
    for i, tree in enumerate(trees):
        back = load_checkpoint(save_checkpoint(tmp_path/str(i), t=tree))['t']
        flat = lambda t: [v for k in t for v in (flat(t[k]) if isinstance(t[k], dict) else [t[k]])]
        for a, b in zip(flat(tree), flat(back)): assert torch.equal(a, b) and a.dtype == b.dtype


def test_a_crafted_manifest_or_nesting(tmp_path):
    "R12"
    path = save_checkpoint(tmp_path/'c', t=dict(a=1))
    (tmp_path/'evil.json').write_text('{}')
    m = json.loads((path/'manifest.json').read_text())
    m['files'] = {'../evil.json': '0'}
    (path/'manifest.json').write_text(json.dumps(m))
    with pytest.raises(ValueError, match='damaged'): load_checkpoint(path)
    (path/'manifest.json').write_text('['*100_000)
    with pytest.raises(ValueError, match='damaged'): load_checkpoint(path)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    "The trees of a checkpoint"
    folder = tmp_path_factory.mktemp('saved')
    small(dir=folder).fit(1)
    return load_checkpoint(find_checkpoint(folder))


@pytest.mark.parametrize('kw', [dict(d_ff=10**9), dict(d_ff=10**30), dict(n_layers=10**9),
                                dict(vocab_size=10**12), dict(d_model=10**9),
                                dict(vocab_multiple=10**12), dict(n_heads=10**9)])
def test_r06_a_config_of_a_giant_is_refused_before_it_is_built(tmp_path, saved, kw):
    save_checkpoint(tmp_path/'step_000001', **saved | dict(config=saved['config'] | kw))
    begun = time.monotonic()
    with pytest.raises(ValueError, match='another architecture'): load_model(tmp_path)
    assert time.monotonic() - begun < 20


def test_r06_a_manifest_without_end_is_not_read(tmp_path):
    path = save_checkpoint(tmp_path/'c', t=dict(a=1))
    with open(path/'manifest.json', 'r+b') as f: f.truncate(2**34)   # takes no room on the disk
    with pytest.raises(ValueError, match='damaged'): load_checkpoint(path)


@pytest.mark.parametrize('name', ['config', 'model', 'tokenizer'])
@pytest.mark.parametrize('value', [[], 'x', 5, dict(a=1)])
def test_r06_trees_that_are_not_what_their_names_say(tmp_path, saved, name, value):
    save_checkpoint(tmp_path/'step_000001', **saved | {name: value})
    with pytest.raises((TypeError, ValueError)) as e: load_model(tmp_path, device='cpu')
    assert e.traceback[-1].path.name != 'nn.py' and any(
        w in str(e.value) for w in ('onfig', 'weights', 'tokenizer', 'part'))


@pytest.mark.parametrize('key, value', [
    (None, []), (None, 5), (None, None), (None, dict(a=1)), ('info', 5), ('log', 5), ('log', [1]),
    ('opt', 5), ('opt', {}), ('budget', 'x'), ('step', 'x'), ('data', 5), ('rng', 5), ('rng', {}),
    ('callbacks', 5), ('info', dict(settings=5))])
def test_r12_a_state_that_no_trainer_wrote_changes_nothing(tmp_path, saved, key, value):
    "Refused by name, and what was already taken up is put back"
    state = value if key is None else saved['trainer'] | {key: value}
    save_checkpoint(tmp_path/'step_000001', **saved | dict(trainer=state))
    run = small().fit(2)
    before, place, rng = weights(run), run.train.state_dict(), torch.get_rng_state()
    moments = copy.deepcopy(run.opt.state_dict())
    with pytest.raises(ValueError, match='step_000001'): run.resume(tmp_path)
    assert equal(before, weights(run)) and run.step == len(run.log) == 2
    assert run.train.state_dict() == place and torch.equal(rng, torch.get_rng_state())
    assert not same(moments, run.opt.state_dict())
    assert equal(weights(run.fit(4)), weights(small().fit(2).fit(4)))


def test_r12_a_callback_that_refuses_its_state_changes_nothing(tmp_path):
    "Averages in another order"
    def averages(): return [WeightAverage(.9), WeightAverage(.99, 'long')]
    small(dir=tmp_path, callbacks=averages()).fit(3)
    run = small(callbacks=averages()[::-1])
    before, place, info = weights(run), run.train.state_dict(), run.info
    with pytest.raises(ValueError, match='order'): run.resume(tmp_path)
    assert equal(before, weights(run)) and run.step == 0 and not run.log and not run.opt.state
    assert run.train.state_dict() == place and run.info is info
    assert not any(cb.n for cb in run.callbacks)


def test_a_writer_waits_for_nobody(tmp_path):
    writer, w = CheckpointWriter(), torch.zeros(1000)
    writer.save(tmp_path/'step_000001', model=dict(w=w))
    w += 1
    writer.wait()
    assert load_checkpoint(tmp_path/'step_000001')['model']['w'].sum() == 0
    (tmp_path/'step_000002').write_text('in the way')
    writer.save(tmp_path/'step_000002', model=dict(w=w))
    with pytest.raises(FileExistsError): writer.wait()
    writer.wait()


def test_how_large_a_checkpoint_is(tmp_path):
    "Parameters and the optimizer's state, and next to nothing else"
    set_seed(0)
    train, _ = batches(DOCS, ByteTokenizer(), B=2, T=16)
    model = GPT(GPTConfig(vocab_size=257, n_layers=4, n_heads=4, d_model=256, context_length=64))
    run = Trainer(model, Opt(model, adamw()), train, dir=tmp_path, callbacks=[]).fit(2)
    size = sum(f.stat().st_size for f in find_checkpoint(tmp_path).iterdir())
    n = sum(p.numel() for p in model.parameters())
    assert size < 1.01*(3*4*n) + 60_000 and run.step == 2
    saved = load_file(find_checkpoint(tmp_path)/'model.safetensors')
    assert sum(t.numel() for t in saved.values()) == n


# ---- 9. what made this?

def test_all_settings_are_in_log_checkpoint_and_config(tmp_path):
    "U12, P4"
    run = small(dir=tmp_path, notes=dict(text='cats')).fit(2)
    saved = load_checkpoint(find_checkpoint(tmp_path), 'trainer')['trainer']['info']
    s = saved['settings']
    assert saved['name'] == tmp_path.name and s['text'] == 'cats' and s['budget'] == ['steps', 2]
    assert s['optimizer'][0]['lr'] == .01 and s['data'] == dict(B=4, T=16, seed=0)
    assert {'schedule', 'clip', 'accumulate', 'dtype', 'device', 'tokenizer'} <= s.keys()
    assert {'commit', 'torch', 'machine', 'date', 'run_id'} <= saved.keys()
    assert {'flops', 'lr', 'tokens_per_second'} <= run.log[0].keys()


def test_notes_and_a_folder_that_comes_later(tmp_path):
    "U07: run.dir = 'x' after the first fit"
    run = small(notes=dict(purpose='try', clip='mine')).fit(2)
    assert run.info['settings']['purpose'] == 'try' and run.info['settings']['clip'] == 1.
    run.dir = str(tmp_path/'late')
    run.fit(4)
    assert find_checkpoint(tmp_path/'late').name == 'step_000004'


# ---- 10. callbacks and losses that are not what they seem

@pytest.mark.parametrize('name, near', [('on_step', 'after_step'), ('before_training', 'before_'),
                                        ('after_validation', 'after_'), ('on_fit', 'after_fit')])
def test_events_that_are_none(name, near):
    "U13"
    cb = type('Mine', (), {name: lambda self, trainer: None})()
    with pytest.raises(ValueError, match=f'Mine has {name}.*did you mean {near}'):
        small(callbacks=[cb])


def test_bits_per_byte_of_a_plain_list_are_known():
    "U13: they were nan"
    fixed = small().valid
    run = small(valid=list(fixed)).fit(2)
    assert run.log[-1]['bpb'] == small(valid=fixed).fit(2).log[-1]['bpb'] > 1


def compiled(model): return torch.compile(model, backend='eager')

@pytest.mark.parametrize('wrap', [torch.nn.DataParallel, compiled,
                                  lambda model: torch.nn.DataParallel(compiled(model))])
def test_a15_a_wrapped_model_is_saved_under_plain_names(tmp_path, wrap):
    "It keeps its config, is opened, and taken up plain"
    plain = small().fit(4)
    run = small()
    kw = dict(callbacks=[], device='cpu', eval_every=0, dir=tmp_path)
    half = Trainer(wrap(run.model), run.opt, run.train, run.valid, **kw)
    half.budget = 'steps', 4
    for _ in range(2): half.one_step()
    half.save()
    model, tok = load_model(tmp_path, device='cpu')
    assert equal(model.state_dict(), weights(run)) and tok is not None
    assert equal(weights(small(dir=tmp_path).resume().fit()), weights(plain))
    other = small()
    again = Trainer(wrap(other.model), other.opt, other.train, other.valid, **kw).resume(which=2)
    again.dir = None
    again.fit()
    assert equal(weights(other), weights(plain))


def test_a_loss_that_returns_a_mean():
    "U13"
    mean = lambda model, batch: lm_loss(model, batch)[0]/64
    with pytest.raises(TypeError, match='returns two things.*a mean'): small(loss=mean).fit(1)


@pytest.mark.parametrize('kw', [dict(clip=-1.), dict(clip='1'), dict(eval_every=-1),
                                dict(eval_every=1.5), dict(save_every=-2), dict(save_seconds=-1),
                                dict(spike='x'), dict(accumulate=0), dict(device='abacus'),
                                dict(clip=math.nan), dict(clip=0), dict(spike=.5), dict(spike=True),
                                dict(keep=0), dict(keep=1.5), dict(keep=None), dict(keep='x'),
                                dict(keep=dict(last=3)), dict(keep=dict(best=-1)),
                                dict(compile='x'), dict(deterministic='x'), dict(dtype='half-ish'),
                                dict(on_nan='go'), dict(notes='x'), dict(notes=dict(f=print)),
                                dict(loss='x'), dict(loss=5), dict(schedule='x'), dict(valid='x'),
                                dict(schedule=dict(hidden=1)), dict(callbacks=5),
                                dict(callbacks='lines'), dict(valid=7), dict(accumulate=True)])
def test_r11_a18_settings_that_make_no_sense(kw):
    "R11, A18"
    names = '|'.join([*kw, *(k for v in kw.values() if isinstance(v, dict) for k in v)])
    with pytest.raises((TypeError, ValueError), match=names): small(**kw)


@pytest.mark.parametrize('budget', [dict(steps=math.inf), dict(seconds=math.inf), dict(tokens=-1),
                                    dict(steps='3'), dict(epochs=0), dict(flops=math.nan),
                                    dict(steps=True), dict(tokens=-math.inf), dict(seconds=0)])
def test_a18_r11_budgets_that_make_no_sense(budget):
    "A18"
    with pytest.raises((TypeError, ValueError), match=next(iter(budget))): small().fit(**budget)
    assert small().fit(np.int64(2)).step == 2


@pytest.mark.parametrize('name, value', [
    ('model', None), ('model', 'gpt2'), ('model', dict(a=1)), ('opt', None), ('opt', 'adamw'),
    ('train', None), ('train', 5), ('train', 'text'), ('train', dict(ids=1)), ('callback', Lines),
    ('callback', 'lines'), ('callback', print), ('callback', None), ('path', ''), ('path', 5)])
def test_r11_parts_that_are_none(name, value):
    "Refused at once, and named"
    good = small()
    parts = dict(model=good.model, opt=good.opt, train=good.train) | {name: value}
    extra = dict(callbacks=[parts.pop('callback', Lines())], device='cpu')
    if name == 'path': extra['dir'] = parts.pop('path')
    with pytest.raises((TypeError, ValueError), match=name): Trainer(**parts, **extra)


def test_r11_numbers_of_numpy_are_numbers():
    two = np.int64(2)
    run = small(clip=np.float32(1), eval_every=two, accumulate=two, keep=np.int64(3))
    assert run.fit(two).step == 2 and type(run.eval_every) is int and run.keep == dict(keep=3)


@pytest.mark.parametrize('call', [
    lambda d: prune_checkpoints(d, keep=0), lambda d: prune_checkpoints(d, keep='x'),
    lambda d: prune_checkpoints(d, best=-1), lambda d: prune_checkpoints(d, every=1.5),
    lambda d: prune_checkpoints(''), lambda d: find_checkpoint(None), lambda d: find_checkpoint(''),
    lambda d: checkpoints_in(''), lambda d: load_checkpoint(5), lambda d: load_model(None),
    lambda d: load_model(d, parts='x'), lambda d: save_checkpoint('', a=1),
    lambda d: new_folder(None), lambda d: run_lock('').__enter__(),
    lambda d: run_lock(d/'none').__enter__(), lambda d: load_weights(None, {}),
    lambda d: load_weights(torch.nn.Linear(1, 1), dict(weight=1)),
    lambda d: CheckpointWriter().save(d/'step_000009', keep=0, a=1), lambda d: small().resume(''),
    lambda d: save_checkpoint(d/'c', a=round_tree())])
def test_r11_calls_about_checkpoints_that_make_no_sense(tmp_path, call):
    "And nothing has changed"
    for n in range(1, 5): save_checkpoint(tmp_path/f'step_{n:06}', a=dict(n=n))
    with pytest.raises((TypeError, ValueError, OSError)) as e: call(tmp_path)
    assert any(w in str(e.value) for w in ('keep', 'best', 'every', 'path', 'parts', 'folder',
                                           'model', 'weights', 'nested')), e.value
    assert len(checkpoints_in(tmp_path)) == 4


def round_tree():
    tree = []
    tree.append(tree)
    return tree


def test_the_folder_goes_away(tmp_path, capsys):
    run = small(dir=tmp_path/'run', save_every=2)
    run.callbacks = [After(3, lambda t: (t._writer.wait(), shutil.rmtree(tmp_path/'run')))]
    run.fit(6)
    assert find_checkpoint(tmp_path/'run').name == 'step_000006'


# ---- 12. the line

def test_the_line_says_what_is_going_on():
    run = small().fit(3)
    run.doing = 'scoring the validation batches'
    assert 'scoring the validation batches' in status_line(run)


def test_lines_say_that_the_end_is_scored(capsys):
    small(callbacks=[Lines()]).fit(3)
    assert 'scoring the validation batches …' in capsys.readouterr().out


# ---- a reader beside a writer, a clock that goes back

def test_a_reader_beside_a_writer_never_fails(tmp_path):
    "R07: 1.3 % of the reads failed, where the writer dropped what the reader had chosen"
    code = f'''
import itertools
import torch
from pathlib import Path
from gptlab.checkpoints import prune_checkpoints, save_checkpoint
from gptlab.model import GPT, GPTConfig
m = GPT(GPTConfig(vocab_size=9, n_layers=1, n_heads=1, d_model=4, context_length=4))
for i in itertools.count(1):
    save_checkpoint(f'{tmp_path}/step_{{i:06}}', model=m.state_dict(), config=m.cfg.to_dict(),
                    tokenizer=None)
    prune_checkpoints({str(tmp_path)!r}, keep=1)'''
    victim = start([sys.executable, '-c', code], tmp_path/'said.txt')
    victim.until(lambda: checkpoints_in(tmp_path), 60)
    try:
        for _ in range(150): load_model(tmp_path, device='cpu')
    finally: victim.strike()
    assert 'Traceback' not in victim.said()


def test_what_was_listed_may_be_gone_when_it_is_looked_at(tmp_path, monkeypatch):
    "With keep=1 the writer drops the only one that was listed: the reader lists again"
    save_checkpoint(tmp_path/'step_000001', model=dict(w=torch.ones(1)))
    look, gone = checkpoints._standing, tmp_path/'step_000001'
    def too_late(path):
        if gone.exists(): gone.rename(tmp_path/'step_000002')
        return look(path)
    monkeypatch.setattr(checkpoints, '_standing', too_late)
    assert [p.name for p in checkpoints_in(tmp_path)] == ['step_000002']
    (tmp_path/'step_000002'/'manifest.json').unlink()
    assert checkpoints_in(tmp_path) == []                            # damaged is not dropped


def test_the_clock_set_back(tmp_path, monkeypatch):
    "Within a run the step counts, not the time"
    small(dir=tmp_path, save_every=1).fit(1)
    class Past(checkpoints.datetime.datetime):
        @classmethod
        def now(cls, tz=None): return cls(1999, 1, 1, tzinfo=tz)
    monkeypatch.setattr(checkpoints.datetime, 'datetime', Past)
    run = small(dir=tmp_path).resume().fit(3)
    monkeypatch.undo()
    assert find_checkpoint(tmp_path).name == 'step_000003' and run.step == 3
