"""A folder of runs: what is listed and compared is what is on disk, what is renamed and deleted is
ours and idle; and one run on several processes.

`saved` makes a run of a second; torchrun starts two processes that talk by gloo.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gptlab.checkpoints import checkpoints_in, load_checkpoint, run_lock, save_checkpoint
from gptlab.core import set_seed
from gptlab.loader import Grow
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches
from gptlab.runs import (compare_runs, delete_run, find_run, list_runs, RankRows, rename_run,
                         run_identity, RunTable)
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer
from kills import start

DOCS = ['Once upon a time there was a cat. ', 'It sat on the mat. ', 'Then it went home. ']*30
posix = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such signals')


def trainer(dir=None, lr=1e-2, text='tales', B=4, **kw):
    set_seed(3)
    train, valid = batches(DOCS, ByteTokenizer(), B=B, T=16, valid_rows=4)
    model = GPT(GPTConfig(vocab_size=257, n_layers=1, n_heads=2, d_model=16, context_length=16))
    kw = dict(callbacks=[], device='cpu', notes=dict(text=text)) | kw
    return Trainer(model, Opt(model, adamw(lr=lr)), train, valid, dir=dir, **kw)


def saved(dir, steps=3, **kw): return trainer(dir, **kw).fit(steps)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Two runs, copied by the tests"
    d = tmp_path_factory.mktemp('made')
    saved(d/'slow', lr=1e-4, eval_every=1)
    saved(d/'fast', steps=5)
    return d


@pytest.fixture
def runs(made, tmp_path):
    shutil.copytree(made, tmp_path/'runs')
    return tmp_path/'runs'


def contents(folder):
    "Every file with its bytes and its date"
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def by_name(table): return {r['name']: r for r in table}


# ---- the list

def test_a_list_tells_what_is_there_and_changes_nothing(runs):
    (runs/'notes').mkdir()
    (runs/'notes'/'step_000001').mkdir()
    (runs/'.slow.0123abcd').mkdir()
    (runs/'a file').write_text('x')
    (runs/'begun').mkdir()
    (runs/'begun'/'settings.json').write_text('{"text": "/books/a.txt", "seed": 1}')
    (runs/'others').mkdir()
    (runs/'others'/'settings.json').write_text('[1]')
    before = contents(runs)
    found = by_name(list_runs(runs))
    assert contents(runs) == before
    assert set(found) == {'slow', 'fast', 'begun'}
    log = load_checkpoint(runs/'slow'/'step_000003', 'trainer')['trainer']['log']
    assert found['slow']['bpb'] == min(line['bpb'] for line in log)
    assert (found['fast']['steps'], found['fast']['text']) == (5, 'tales')
    assert found['fast']['size'] == sum(len(b) for k, (b, _) in before.items()
                                        if k.startswith('fast' + os.sep))
    assert found['begun']['note'] == 'nothing saved yet' and found['begun']['text'] == 'a.txt'


def test_the_last_written_comes_first(runs):
    os.utime(runs/'slow'/'step_000003'/'manifest.json', (1, 1))
    assert [r['name'] for r in list_runs(runs)] == ['fast', 'slow']
    os.utime(runs/'slow'/'step_000003'/'manifest.json', (9e9, 9e9))   # a clock that was set back
    assert [r['name'] for r in list_runs(runs)] == ['slow', 'fast']
    assert '0 s' in repr(list_runs(runs))


@pytest.mark.parametrize('harm', [
    lambda d: (d/'trainer.json').write_text('{}'),
    lambda d: (d/'trainer.json').unlink(),
    lambda d: (d/'manifest.json').write_text('{"files": 3}'),
    lambda d: (d/'manifest.json').write_bytes(b'\xff\xfe'),
    lambda d: (shutil.rmtree(d), save_checkpoint(d, model=dict(w=torch.ones(2))))])
def test_a_damaged_run_is_listed_as_such(runs, harm):
    harm(runs/'slow'/'step_000003')
    found = by_name(list_runs(runs))
    assert 'damaged' in found['slow']['note'] or 'No such file' in found['slow']['note']
    assert found['slow']['steps'] is None and found['fast']['steps'] == 5
    with pytest.raises((ValueError, OSError)): run_identity(runs/'slow')


def test_one_run_and_no_folder(runs, tmp_path):
    assert [r['name'] for r in list_runs(runs/'slow')] == ['slow']
    with pytest.raises(FileNotFoundError, match='no folder'): list_runs(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='no folder'): list_runs(runs/'slow'/'.lock')
    assert repr(RunTable()) == RunTable()._repr_markdown_() == '(no rows)'


def test_names_of_others_cannot_break_a_table(runs):
    "Neither Markdown, nor HTML, nor a terminal's control codes"
    odd = 'a|b `c` <img src=x> *d* [e](f) \x1b[31m\r'
    (runs/'fast').rename(runs/odd)
    table = list_runs(runs)
    assert '\x1b' not in repr(table) and '\r' not in repr(table) and len(table) == 2
    shown = table._repr_markdown_()
    assert '<img' not in shown and '\x1b' not in shown
    cells = [re.split(r'(?<!\\)\|', line) for line in shown.splitlines()]
    assert len({len(c) for c in cells}) == 1
    assert r'\`c\` &lt;img src=x&gt; \*d\* \[e\](f)' in shown


# ---- compared

def test_what_differs_and_what_came_of_it(runs):
    table = compare_runs('slow', 'fast', runs)
    rows = {r['what']: (r['slow'], r['fast']) for r in table}
    assert list(rows)[:2] == ['optimizer.adamw.lr', 'budget']
    assert rows['optimizer.adamw.lr'] == (1e-4, 1e-2) and rows['steps'] == (3, 5)
    assert {'tokens', 'seconds', 'last loss', 'best loss', 'last bpb', 'best bpb'} < set(rows)
    assert 'run_id' not in rows and table.caption == '2 settings differ'


def test_a_trainer_and_its_own_checkpoint_are_the_same(tmp_path):
    run = saved(tmp_path/'a')
    table = compare_runs(run, tmp_path/'a')
    assert table.caption == 'no setting differs'
    outcome = [r for r in table if r['what'] != 'best loss']
    assert outcome and all(r['a (a)'] == r['a (b)'] for r in outcome)
    assert compare_runs(run, trainer(clip=.5, text=None))[0]['what'] in ('clip', 'budget', 'text')
    shown = {r['what']: r['value'] for r in run_identity(run)}
    assert shown['run_id'] == run.info['run_id'] and shown['torch'] == torch.__version__
    assert shown['device'] == 'cpu' and shown['model.d_model'] == 16 and shown['commit']


def test_a_setting_that_one_run_lacks(runs):
    file = runs/'slow'/'step_000003'
    trees = load_checkpoint(file)
    trees['trainer']['info']['settings']['why'] = None
    shutil.rmtree(file)
    save_checkpoint(file, **trees)
    assert 'why' in [r['what'] for r in compare_runs('slow', 'fast', runs)]
    del trees['trainer']['info']['settings']                      # a run of 0.1
    shutil.rmtree(file)
    save_checkpoint(file, **trees)
    assert by_name(list_runs(runs))['slow']['text'] is None
    assert compare_runs('slow', 'fast', runs)


def test_a_run_by_path_or_name(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    assert find_run('slow') == Path('runs/slow') == find_run('runs/slow')
    assert find_run(runs/'slow'/'step_000003').name == 'step_000003'
    with pytest.raises(FileNotFoundError, match='did you mean slow'): find_run('slwo')
    shutil.copytree('runs/slow', 'slow')
    with pytest.raises(ValueError, match='two runs slow'): find_run('slow')
    assert find_run('./slow') == Path('slow')


# ---- renamed, deleted

def test_a_renamed_run_goes_on(runs):
    new = rename_run(runs/'slow', 'a new name')
    assert new == runs/'a new name' and not (runs/'slow').exists()
    assert {p.name for p in new.iterdir()} <= {'step_000003', '.lock'}
    assert trainer(new, lr=1e-4).resume().fit(4).step == 4


@pytest.mark.parametrize('name', ['', ' ', '.', '..', '.hidden', 'a/b', '/a', '../a', 'a\\b', 'C:a',
                                  'a\nb', 'a\0b'])
def test_names_that_are_none(runs, name):
    before = contents(runs)
    with pytest.raises(ValueError, match='is not named'): rename_run(runs/'slow', name)
    assert contents(runs) == before


def test_what_is_refused_stays_as_it_was(runs):
    (runs/'mine').mkdir()
    (runs/'mine'/'thesis.txt').write_text('x')
    (runs/'link').symlink_to(runs/'slow', target_is_directory=True)
    (runs/'dangling').symlink_to(runs/'nothing')
    before = contents(runs)
    for name in ('fast', 'mine', 'link', 'dangling'):
        with pytest.raises(FileExistsError, match='another name'): rename_run(runs/'slow', name)
    for path in (runs/'mine', runs, runs/'nowhere', runs/'slow'/'step_000003'):
        with pytest.raises(FileNotFoundError, match='no run'): rename_run(path, 'x')
        with pytest.raises(FileNotFoundError, match='no run'): delete_run(path, force=True)
    with pytest.raises(ValueError, match='is a link'): delete_run(runs/'link', force=True)
    with run_lock(runs/'slow'):
        with pytest.raises(BlockingIOError, match=f'in use by process {os.getpid()}'):
            rename_run(runs/'slow', 'x')
        with pytest.raises(BlockingIOError, match='in use'): delete_run(runs/'slow', force=True)
    after = contents(runs)
    assert {k: v for k, v in after.items() if '.lock' not in k} == {
        k: v for k, v in before.items() if '.lock' not in k}


FOREIGN = ['notes.txt', 'step_000003_good/model.safetensors', 'step_3', 'step_000003/plot.png',
           '.hidden', 'step_000003/own/x', 'Settings.json', 'model.json']

@pytest.mark.parametrize('name', FOREIGN)
def test_what_is_not_ours_is_named_and_kept(runs, name):
    file = runs/'slow'/name
    file.parent.mkdir(exist_ok=True)
    file.write_text('mine')
    with pytest.raises(ValueError, match=re.escape(name.split('/')[0])): delete_run(runs/'slow')
    assert file.read_text() == 'mine' and checkpoints_in(runs/'slow')
    delete_run(runs/'slow', force=True)
    assert [p.name for p in runs.iterdir()] == ['fast']


def test_all_that_a_trainer_writes_is_ours(tmp_path):
    "Checkpoints, a bad batch, what a crash left, what was set aside, the settings"
    run = saved(tmp_path/'a', steps=4, save_every=2, keep=3)
    d = tmp_path/'a'
    trainer(d).resume(d/'step_000002').fit(3)
    for name in ('.step_000009.0123abcd', '.step_000004.0123abcd.old', 'bad_batch_000002'):
        shutil.copytree(d/'step_000002', d/name)
    for name in ('settings.json', 'STOP', '.settings.json.0123abcd'): (d/name).write_text('{}')
    assert any('_left_' in p.name for p in d.iterdir()) and run.step == 4
    delete_run(d)
    assert list(tmp_path.iterdir()) == []


def test_what_a_link_leads_to_is_never_deleted(runs, tmp_path):
    (tmp_path/'books').mkdir()
    (tmp_path/'books'/'a.txt').write_text('x')
    (runs/'slow'/'step_000009').symlink_to(tmp_path/'books', target_is_directory=True)
    with pytest.raises(ValueError, match='step_000009'): delete_run(runs/'slow')
    delete_run(runs/'slow', force=True)
    assert (tmp_path/'books'/'a.txt').read_text() == 'x'


# ---- several processes

def stream(B=6): return batches(DOCS, ByteTokenizer(), B=B, T=16, valid_rows=4)[0]


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_the_rows_of_all_ranks_are_the_batch(world_size):
    "Also after a change of shape, and when a state is loaded"
    whole, parts = stream(), [RankRows(stream(), r, world_size) for r in range(world_size)]
    for n in range(8):
        got = [next(p) for p in parts]
        for k, v in next(whole).items(): assert torch.equal(torch.cat([g[k] for g in got]), v)
        if n == 3:
            whole.resize(2*world_size, 8)
            for p in parts: p.resize(2, 8)
            assert parts[0].B == 2 and parts[0].T == 8
    other = RankRows(stream(), 0, world_size)
    other.load_state_dict(parts[0].state_dict())
    assert torch.equal(next(other)['ids'], next(parts[0])['ids'])


def test_a_trainer_and_growth_take_the_rows_of_a_rank():
    run = trainer(B=4, callbacks=[Grow({0: (2, 16), 2: (3, 8)})])
    run.train = RankRows(stream(4), 1, 2)
    assert run.fit(3).log[-1]['tokens'] == 2*16*2 + 3*8 and run.train.stream.B == 6


def torchrun(cwd, *args, **kw):
    "`torchrun --nproc_per_node=2 -m gptlab train …`, begun"
    line = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2',
            '--rdzv_backend=c10d', '--rdzv_endpoint=127.0.0.1:0', '--local_addr=127.0.0.1',
            *kw.pop('options', []), '-m', 'gptlab', 'train', '--text', 'stories', '--vocab', '300',
            '--layers', '1', '--width', '32', *args]
    return start(line, cwd/'said.txt', cwd=cwd, **kw)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def rank_pid(victim, rank):
    "The process of a rank below torchrun's"
    parent = str(victim.pid)
    out = subprocess.run(['ps', '-o', 'pid=', '--ppid', parent], capture_output=True, text=True)
    for pid in out.stdout.split():
        try: env = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
        except OSError: continue
        if f'RANK={rank}'.encode() in env: return int(pid)
    raise AssertionError(f'rank {rank} was not found')


def the_run(cwd):
    (run,) = (cwd/'runs').iterdir()
    return run


def state_of(run): return load_checkpoint(checkpoints_in(run)[-1], 'trainer')['trainer']


@posix
@pytest.mark.exhaustive
def test_two_processes_are_one_run(tmp_path):
    "One folder, one log, one report; both end when rank 0's clock says so"
    victim = torchrun(tmp_path, '--seconds', '3')
    assert victim.end() == 0, victim.said()
    said, run = victim.said(), the_run(tmp_path)
    assert said.count('of training, saved in') == said.count('--- sample 1') == 1
    state = state_of(run)
    settings = state['info']['settings']
    assert settings['world_size'] == 2 and settings['data']['B'] == 32
    assert [r['step'] for r in state['log']] == [*range(1, state['step'] + 1)]
    assert state['tokens'] == state['step']*2*32*128 and 3 <= state['seconds'] < 20
    assert state['log'][-1]['bpb'] < 8 and len(state['ranks']) == 2


needs_proc = pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='needs /proc')


@posix
@needs_proc
@pytest.mark.exhaustive
@pytest.mark.parametrize('who, how', [(1, signal.SIGINT), (0, signal.SIGTERM),
                                      ('torchrun', signal.SIGINT)])
def test_a_signal_to_any_process_ends_all_after_the_same_step(tmp_path, who, how):
    "With one checkpoint, and torchrun starts nothing again"
    victim = torchrun(tmp_path, '--steps', '100000', options=['--max-restarts=2'])
    victim.until(lambda: 'of training, saved in' in victim.said(), pause=.1)
    time.sleep(2)
    if who == 'torchrun': victim.strike(how)
    else:
        os.kill(rank_pid(victim, who), how)
        assert victim.end() == 0, victim.said()
    said, run = victim.said(), the_run(tmp_path)
    assert said.count('loading PyTorch') == 1 and 'stopped by' in said, said
    assert f'torchrun --nproc_per_node=2 -m gptlab train --resume --dir runs/{run.name}' in said
    (point,), step = checkpoints_in(run), state_of(run)['step']
    assert point.name == f'step_{step:06}' and f'after step {step}' in said


@posix
@needs_proc
@pytest.mark.exhaustive
def test_a_killed_rank_is_started_again_and_goes_on(tmp_path):
    """From the last checkpoint, in the same folder

    With torchrun's default rendezvous, whose store still holds the addresses of the dead."""
    options = ['--max-restarts=1', '--rdzv_backend=static', '--rdzv_endpoint=',
               '--master_addr=127.0.0.1', f'--master_port={free_port()}']
    victim = torchrun(tmp_path, '--steps', '260', options=options)
    victim.until(lambda: list(tmp_path.glob('runs/*/step_000200/manifest.json')), 120, .05)
    os.kill(rank_pid(victim, 1), signal.SIGKILL)
    assert victim.end() == 0, victim.said()
    said, run = victim.said(), the_run(tmp_path)
    assert f'going on from runs/{run.name}/step_000200' in said, said
    state = state_of(run)
    assert state['step'] == 260 and [r['step'] for r in state['log']] == [*range(1, 261)]
    launch = json.loads((run/'settings.json').read_text())['launch']
    assert launch.endswith(f'-{victim.pid}')
