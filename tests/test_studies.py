"""Studies on every kind of executor: the same table, whatever is killed; folders of others stay."""
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same

from gptlab.ablation import ablate, Runs, t_factor
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches
from gptlab.studies import (join_studies, noise_floor, noise_sources, open_study, paired_scatter,
                            signal_to_noise, study, study_status)
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer
from common import extra


def curve(slope, seed):
    "A run of three steps; what it draws depends on its seed alone"
    rng = np.random.default_rng([int(10*slope), seed])
    return [dict(step=s, loss=float(1 - slope*s + .01*rng.standard_normal())) for s in range(3)]


VARIANTS = dict(slow=.1, fast=.2)


def table(runs): return repr(runs) + repr(runs.table('loss', 'slow'))


@functools.cache
def serial():
    import tempfile
    return table(study(curve, VARIANTS, path=tempfile.mkdtemp()))


def test_a_study_is_what_ablate_gives(tmp_path):
    same(table(study(curve, VARIANTS, path=tmp_path/'s')), table(ablate(curve, VARIANTS)))


# ---- every kind of executor

def spawned(): return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'))


def of_loky():
    from loky import ProcessPoolExecutor
    return ProcessPoolExecutor(2)


def test_threads_of_this_process(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        same(table(study(curve, VARIANTS, path=tmp_path/'s', executor=pool)), serial())


@pytest.mark.exhaustive
@pytest.mark.parametrize('make', [spawned, of_loky])
def test_processes(tmp_path, make):
    same(table(study(curve, VARIANTS, path=tmp_path/'s', executor=make)), serial())


def dying(slope, seed, folder):
    "The first worker that comes to seed 1 dies in the middle of it"
    if seed == 1 and not (folder.parent/'died').exists():
        (folder.parent/'died').touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return curve(slope, seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize('make', [spawned, of_loky])
def test_workers_that_die_cost_nothing_but_time(tmp_path, make):
    same(table(study(dying, VARIANTS, path=tmp_path/'s', executor=make)), serial())
    same(len(list((tmp_path/'s').glob('*/died'))), 2)


class Dies:
    "A callback that ends the process in the middle of a run, once"
    def __init__(self, mark): self.mark = mark

    def after_step(self, trainer):
        if trainer.step == 5 and self.mark and not self.mark.exists():
            self.mark.touch()
            os._exit(9)


def a_trainer(dies, seed, folder):
    train, valid = batches(make_stories(30, seed=0), ByteTokenizer(), B=2, T=16)
    set_seed(seed)
    model = GPT(GPTConfig(vocab_size=257, context_length=16, n_layers=1, n_heads=2, d_model=16))
    view = Dies(folder.parent/'died' if dies else None)
    trainer = Trainer(model, Opt(model, adamw(1e-2)), train.reseed(seed), valid[:2], dir=folder,
                      save_every=2, callbacks=[view])
    with contextlib.suppress(FileNotFoundError): trainer.resume()
    return trainer.fit(8)


@pytest.mark.exhaustive
def test_a_run_goes_on_from_its_checkpoint_to_the_last_bit(tmp_path):
    dies = study(a_trainer, dict(run=True), range(2), path=tmp_path/'dies', executor=of_loky)
    whole = study(a_trainer, dict(run=False), range(2), path=tmp_path/'whole')
    same(len(list((tmp_path/'dies').glob('*/died'))), 2)
    clocks = {'seconds', 'tokens_per_second', 'wait', 'mfu', 'memory'}
    def rows(s): return [[{k: v for k, v in row.items() if k not in clocks} for row in r['log']]
                         for r in s.records]
    same(rows(dies), rows(whole))


@pytest.mark.exhaustive
def test_dask_with_a_worker_that_dies(tmp_path):
    extra('distributed')
    from distributed import Client, LocalCluster
    here = dict(dashboard_address=None, local_directory=str(tmp_path/'dask'))
    with LocalCluster(2, processes=True, threads_per_worker=1, **here) as cluster:
        with Client(cluster) as client:
            pool = client.get_executor()
            same(table(study(dying, VARIANTS, path=tmp_path/'s', executor=pool)), serial())
    same(len(list((tmp_path/'s').glob('*/died'))), 2)


@pytest.mark.exhaustive
def test_dask_from_the_command_line(tmp_path):
    extra('distributed')
    from distributed import Client
    at, procs = tmp_path/'scheduler.json', []
    dask = [sys.executable, '-m', 'dask']
    common = dict(cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        local = ['--host', '127.0.0.1', '--port', '0', '--no-dashboard']
        procs.append(subprocess.Popen([*dask, 'scheduler', *local, '--scheduler-file', str(at)],
                                      **common))
        for _ in range(2):
            procs.append(subprocess.Popen([*dask, 'worker', '--nthreads', '1', '--no-dashboard',
                                           '--scheduler-file', str(at)], **common))
        with Client(scheduler_file=str(at), timeout=120) as client:
            client.wait_for_workers(2, timeout=120)
            got = study(curve, VARIANTS, path=tmp_path/'s', executor=client.get_executor())
            same(table(got), serial())
    finally:
        for p in procs: p.terminate()
        for p in procs: p.wait(timeout=60)


@pytest.mark.exhaustive
def test_submitit_on_this_machine(tmp_path):
    submitit = extra('submitit')
    pool = submitit.LocalExecutor(folder=tmp_path/'slurm')
    pool.update_parameters(timeout_min=5)
    got = study(curve, dict(slow=.1, fast=.2), range(3), path=tmp_path/'s', executor=pool)
    same(table(got), serial())


# ---- kills of the whole study

WHOLE = """
import sys, time
from gptlab.studies import study
def run(slope, seed, folder):
    import numpy as np, time
    rng = np.random.default_rng([int(10*slope), seed])
    time.sleep(.15)
    return [dict(step=s, loss=float(1 - slope*s + .01*rng.standard_normal())) for s in range(3)]
s = study(run, dict(slow=.1, fast=.2), range(3), path=sys.argv[1], workers=int(sys.argv[2]) or None)
print(repr(s) + repr(s.table('loss', 'slow')))
"""


def run_until_whole(folder, workers, rng):
    "Kill the study, with all its processes, at random moments; then let it end by itself"
    kills = 0
    while True:
        p = subprocess.Popen([sys.executable, '-c', WHOLE, str(folder), str(workers)], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             start_new_session=True)
        wait_for_plan(folder, p)
        try: return p.communicate(timeout=rng.uniform(0, .8) if kills < 4 else 300)[0], kills
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.communicate()
            kills += 1


def wait_for_plan(folder, p):
    "Importing is not what is tested"
    while p.poll() is None and not (folder/'study.json').exists(): time.sleep(.01)


@pytest.mark.exhaustive
@pytest.mark.parametrize('seed', range(int(os.environ.get('GPTLAB_STUDY_KILLS', 2))))
def test_a_study_that_is_killed_ends_in_the_same_table(tmp_path, seed):
    said, kills = run_until_whole(tmp_path/'s', 2*(seed % 2), random.Random(seed))
    same((said, kills > 0), (serial() + '\n', True))
    assert not list((tmp_path/'s').glob('*/running.json'))
    assert not [p for p in (tmp_path/'s').rglob('*') if p.name.endswith(('.tmp', '.part'))]


@pytest.mark.exhaustive
def test_two_studies_in_one_folder_share_the_work(tmp_path):
    args = [sys.executable, '-c', WHOLE, str(tmp_path/'s'), '0']
    both = [subprocess.Popen(args, text=True, stdout=subprocess.PIPE) for _ in range(2)]
    same([p.communicate(timeout=300)[0] for p in both], [serial() + '\n']*2)


def test_a_study_that_another_process_has_just_begun_is_no_strangers_folder(tmp_path):
    "Before its plan has a name there is a lock, and the plan's scratch; what else is there counts"
    (tmp_path/'s').mkdir()
    for name in ('.lock', '.study.json.0123abcd'): (tmp_path/'s'/name).touch()
    run = lambda slope, seed, folder: curve(slope, seed)
    same(len(study(run, VARIANTS, seeds=range(1), path=tmp_path/'s').failed), 0)
    for name in ('.lock', 'mine.txt', '.git'):
        (tmp_path/'t').mkdir(exist_ok=True)
        (tmp_path/'t'/name).touch()
        if name == '.lock': continue
        with pytest.raises(FileExistsError, match='holds something else than a study'):
            study(run, VARIANTS, seeds=range(1), path=tmp_path/'t')
        (tmp_path/'t'/name).unlink()


# ---- what is run again, and what is not

def counted(tmp_path, **change):
    "How many runs a study makes"
    def run(slope, seed, folder): return curve(slope, seed)
    before = len(list(tmp_path.glob('s/*/result.json')))
    study(run, **dict(variants=VARIANTS, seeds=range(2), path=tmp_path/'s') | change)
    return len(list(tmp_path.glob('s/*/result.json'))) - before


@pytest.mark.parametrize('change, n', [
    (dict(), 0), (dict(seeds=range(3)), 2), (dict(seeds=np.arange(2)), 0),
    (dict(variants=dict(fast=.2, slow=.1)), 0), (dict(variants=dict(slow=.1, fast=.3)), 2),
    (dict(variants=dict(VARIANTS, more=.4)), 2), (dict(threads=2), 4)], ids=str)
def test_only_what_changed_is_run(tmp_path, change, n):
    same(counted(tmp_path), 4)
    same(counted(tmp_path, **change), n)


def test_a_failed_run_is_a_row_and_is_tried_again(tmp_path):
    def run(slope, seed, folder):
        if seed == 1 and not (tmp_path/'mended').exists(): raise MemoryError('none left')
        return curve(slope, seed)
    s = study(run, VARIANTS, path=tmp_path/'s')
    same([(f['variant'], f['seed'], f['error']) for f in s.failed],
         [(v, 1, 'MemoryError: none left') for v in VARIANTS])
    assert 'in run' in s.failed[0]['traceback'] and 'MemoryError' in repr(s)
    same(s.final('loss').keys(), VARIANTS.keys())
    (tmp_path/'mended').touch()
    again = study(run, VARIANTS, path=tmp_path/'s')
    same((again.failed, len(again.records)), ([], 6))


def test_a_run_that_diverges_is_kept(tmp_path):
    s = study(lambda v, s: dict(loss=float('nan') if s == 1 else v), VARIANTS, path=tmp_path/'s')
    same(len(s.records), 6)
    assert 'a run ended in nan' in repr(s.table('loss', 'slow'))
    same(len(open_study(tmp_path/'s').records), 6)


def test_an_interrupt_keeps_what_is_finished(tmp_path, capsys):
    stop = tmp_path/'stop'
    stop.touch()

    def run(slope, seed, folder):
        if seed == 1 and stop.exists(): raise KeyboardInterrupt
        return curve(slope, seed)
    same(len(study(run, VARIANTS, path=tmp_path/'s').records), 2)
    assert 'interrupted: 2 of 6 runs' in capsys.readouterr().out
    stop.unlink()
    same(table(study(run, VARIANTS, path=tmp_path/'s')), serial())


def test_threads_are_set_and_put_back(tmp_path):
    before = torch.get_num_threads()
    def run(variant, seed): return dict(n=torch.get_num_threads())
    s = study(run, ['a'], [0], path=tmp_path/'s', threads=3)
    same((s.final('n'), torch.get_num_threads()), ({'a': {0: 3}}, before))


def test_a_job_changes_nothing_here(tmp_path):
    seen = []
    study(lambda v, s: seen.append(s) or 1., ['a'], path=tmp_path/'s')
    same(seen, [])


def test_variants_that_do_not_differ_are_told(tmp_path, capsys):
    study(curve, dict(a=.1, b=.1, c=.2), [0], path=tmp_path/'s')
    assert "'a' and 'b' differ in name alone" in capsys.readouterr().out


@pytest.mark.parametrize('name', [('muon', .01), 1, 2.5, 'a|b', '../x', '<img>', 'ü'*90], ids=str)
def test_names_of_every_kind(tmp_path, name):
    s = study(lambda v, s: float(v), {name: 1}, [0, (1, 'x')], path=tmp_path/'s')
    same(s.variants, [name])
    same(open_study(tmp_path/'s').records, s.records)
    same(sorted(p.name for p in tmp_path.iterdir()), ['s'])


# ---- status

def test_status_of_a_study_elsewhere(tmp_path):
    study(curve, VARIANTS, [0], path=tmp_path/'s')
    job = next((tmp_path/'s').glob('fast*'))
    (job/'result.json').unlink()
    status = study_status(tmp_path/'s')
    same((status.finished, status.failed, status.running, status.waiting), (1, 0, [], 1))
    (job/'running.json').write_text(json.dumps(dict(pid=1, host='x', since=0)))
    same(study_status(tmp_path/'s').running, [])                        # it died: nobody holds it
    from filelock import FileLock
    with FileLock(job/'.lock'): same(study_status(tmp_path/'s').running[0]['host'], 'x')
    assert '1 of 2 runs finished' in repr(status)


def noting(variant, seed):
    "A run whose log is written when its process ends, as logging does by itself"
    import logging.handlers
    file = logging.FileHandler(variant/f'{seed}.log')
    logger = logging.getLogger(f'{seed}')
    logger.addHandler(logging.handlers.MemoryHandler(1000, target=file))
    logger.warning('seed %d was here', seed)
    return [dict(loss=float(seed))]


def test_a_worker_ends_in_order_and_its_logs_are_whole(tmp_path):
    study(noting, dict(one=tmp_path), range(3), path=tmp_path/'s', workers=2)
    same([(tmp_path/f'{n}.log').read_text() for n in range(3)],
         [f'seed {n} was here\n' for n in range(3)])


def test_a_clock_that_jumps(tmp_path, monkeypatch):
    "Set back an hour whenever somebody looks, and once a year ahead"
    now = itertools.chain([3e9], itertools.count(2e9, -3600))
    monkeypatch.setattr('gptlab.studies.time.time', lambda: float(next(now)))
    runs = study(curve, VARIANTS, path=tmp_path/'s')
    same(table(runs), serial())
    took = [json.loads(f.read_bytes())['seconds'] for f in (tmp_path/'s').glob('*/result.json')]
    assert len(took) == 6 and all(0 <= t < 60 for t in took)
    (next((tmp_path/'s').glob('fast*'))/'result.json').unlink()
    assert 0 <= study_status(tmp_path/'s').seconds_left < 60
    same(table(study(curve, VARIANTS, path=tmp_path/'s')), serial())


# ---- statistics

def runs_of(values): return Runs([dict(variant=v, seed=s, log=[dict(loss=float(x))])
                                  for v, row in values.items() for s, x in enumerate(row)])


def test_the_noise_floor_is_where_differences_are_found():
    rng = np.random.default_rng(0)
    base = rng.standard_normal(4000)
    pair = runs_of(dict(a=base, b=base + .5*rng.standard_normal(4000)))
    assert abs(paired_scatter(pair, 'loss') - .5) < .02
    assert abs(paired_scatter(runs_of(dict(a=base)), 'loss') - 2**.5) < .05
    floor = noise_floor(pair, 'loss', seeds=(2, 3, 5, 10, 100))
    for n in (3, 5, 10):
        d = floor[n] + .5*rng.standard_normal((20000, n))
        found = abs(d.mean(1)) > t_factor(n)*d.std(1, ddof=1)/n**.5
        assert abs(found.mean() - .8) < .02
    assert sorted(floor.values(), reverse=True) == list(floor.values())


def crossing(m, n, sd, rng):
    "Runs of one variant whose seeds are pairs, with this scatter by start, order and both"
    x = rng.normal(0, sd[0], (m,1)) + rng.normal(0, sd[1], (1,n)) + rng.normal(0, sd[2], (m,n))
    return Runs([dict(variant='a', seed=(i, j), log=[dict(loss=float(x[i,j]))])
                 for i in range(m) for j in range(n)])


def test_scatter_is_told_by_its_source():
    rng, sd = np.random.default_rng(0), (.3, .1, .05)
    found = [noise_sources(crossing(6, 5, sd, rng), 'loss') for _ in range(400)]
    for name, true in zip(('start', 'order', 'both'), sd):
        assert abs(np.mean([f[name]**2 for f in found]) - true**2) < .1*true**2
    one = noise_sources(crossing(3, 4, (0., 0., 1.), rng), 'loss', names=('a', 'b'))
    same([*one], ['a', 'b', 'both'])


def test_scatter_needs_a_full_crossing():
    whole = crossing(2, 3, (1., 1., 1.), np.random.default_rng(0)).records
    for part, said in ((whole[:-1], 'no full crossing'), (whole[:3], 'no full crossing'),
                       (whole + [dict(variant='b', seed=(0, 0), log=whole[0]['log'])], 'variant')):
        with pytest.raises(ValueError, match=said): noise_sources(Runs(part), 'loss')
    with pytest.raises(ValueError, match='must be pairs'):
        noise_sources(runs_of(dict(a=[1., 2., 3.])), 'loss')


def test_the_number_with_the_clearest_signal_comes_first():
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 1., 8)
    def log(v, s): return [dict(step=1, loss=v + luck[s] + .1*float(rng.normal()), lr=.1,
                                noisy=.5*v + float(rng.normal()), seconds=float(v))]
    table = signal_to_noise(Runs([dict(variant=str(v), seed=s, log=log(v, s))
                                  for v in (0, 1) for s in range(8)]))
    same([r['number'] for r in table], ['loss', 'noisy'])
    assert 3 < float(table[0]['ratio']) < 20 and float(table[1]['ratio']) < 2
    with pytest.raises(ValueError, match='two variants'): signal_to_noise(runs_of(dict(a=[1., 2.])))


@pytest.mark.exhaustive
@pytest.mark.parametrize('n', [3, 5, 10])
@pytest.mark.parametrize('k', [1, 5])
def test_intervals_hold_and_false_alarms_are_as_announced(n, k):
    rng, trials, held, alarms = np.random.default_rng(n + 100*k), 4000, 0, 0
    for _ in range(trials):
        luck = rng.normal(0, .05, n)
        values = {f'v{i}': luck + rng.normal(.02*(i == k), .01, n) for i in range(k+1)}
        row = runs_of(values).table('loss', 'v0', correct=None)[f'v{k}']
        held += abs(row['diff'] - .02) < row['half']
        values[f'v{k}'] = luck + rng.normal(0, .01, n)
        rows = runs_of(values).table('loss', 'v0').rows.values()
        alarms += any('clearly' in r.get('verdict', '') for r in rows)
    assert abs(held/trials - .95) < .01
    assert alarms/trials < .06 and (k > 1 or alarms/trials > .04)


# ---- two studies

def test_studies_are_joined_only_if_their_validation_is_the_same(tmp_path, capsys):
    def made(valid, rate):
        def run(variant, seed): return rate*variant + seed + sum(valid)
        return run
    one = study(made([1, 2], 1.), dict(a=1), path=tmp_path/'one')
    two = study(made([1, 2], 2.), dict(a=1), path=tmp_path/'two')
    other = study(made([1, 3], 1.), dict(a=1), path=tmp_path/'other')
    both = join_studies(dict(one=one, two=two))
    same(both.variants, ['one: a', 'two: a'])
    assert 'not the same in all: rate' in capsys.readouterr().out
    with pytest.raises(ValueError, match='valid differs'): join_studies(dict(a=one, b=other))
    same(len(join_studies(dict(a=one, b=other), same=['rate']).records), 6)
    with pytest.raises(ValueError, match="no 'text' is referred to"):
        join_studies(dict(a=one, b=two), same=['text'])


# ---- bad input

@pytest.mark.parametrize('change, said', [
    (dict(workers=0), 'workers'), (dict(workers='2'), 'workers'), (dict(threads=0), 'threads'),
    (dict(workers=2, executor=print), 'not both'), (dict(executor=3), 'executor must have submit'),
    (dict(path=''), 'path is empty'), (dict(path=None), 'path'), (dict(retries=-1), 'retries'),
    (dict(variants={}), 'variants is empty'), (dict(seeds=[]), 'seeds is empty'),
    (dict(run=3), 'run must be')], ids=str)
def test_a_study_that_cannot_be(tmp_path, change, said):
    given = dict(run=curve, variants=VARIANTS, seeds=range(2), path=tmp_path/'s') | change
    with pytest.raises((TypeError, ValueError), match=said): study(**given)
    assert not (tmp_path/'s').exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path/'mine.txt').write_text('x')
    with pytest.raises(FileExistsError, match='holds something else'):
        study(curve, VARIANTS, path=tmp_path)
    same([p.name for p in tmp_path.iterdir()], ['mine.txt'])
    with pytest.raises(FileNotFoundError, match='no study'): open_study(tmp_path)


def test_what_cannot_travel_is_named(tmp_path):
    import threading
    lock = threading.Lock()
    def run(variant, seed): return lock.locked()
    with pytest.raises(TypeError, match='lock: what determines a lock cannot be told'):
        study(run, ['a'], path=tmp_path/'s')


class Broken:
    "Loses all that it is given"
    def __init__(self): self.n = 0
    def submit(self, f, job):
        self.n += 1
        raise BrokenPipeError('gone')


def test_workers_that_are_always_lost_end_the_study(tmp_path):
    pool = Broken()
    with pytest.raises(RuntimeError, match="again and again, the last by BrokenPipeError: gone"):
        study(curve, VARIANTS, path=tmp_path/'s', executor=pool, retries=2)
    same(pool.n, 3*6)
    same(len(open_study(tmp_path/'s').records), 0)


@pytest.mark.parametrize('text', ['', '{', '[]', '{"jobs": 3}', '{"jobs": [3]}', '[' * 100_000])
def test_a_plan_that_is_damaged(tmp_path, text):
    study(curve, VARIANTS, [0], path=tmp_path/'s')
    (tmp_path/'s'/'study.json').write_text(text)
    with pytest.raises(ValueError, match='study.json'): open_study(tmp_path/'s')


def test_a_result_that_is_damaged_is_run_again(tmp_path):
    study(curve, VARIANTS, path=tmp_path/'s')
    for p in sorted((tmp_path/'s').glob('*/result.json'))[:2]: p.write_text('{"log": [')
    same(len(open_study(tmp_path/'s').records), 4)
    same(table(study(curve, VARIANTS, path=tmp_path/'s')), serial())
