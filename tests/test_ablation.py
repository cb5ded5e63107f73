"""Studies that are interrupted, names and seeds of every kind, tables of one variant, bands of runs
that were logged at different times."""
import copy
import itertools
import json
import math
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same

from gptlab.ablation import (ablate, alarm_levels, describe, Runs, _band, run_log, t_factor,
                             verdict_of)
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.model import GPT, GPTConfig
from gptlab.optimizers import adamw, Opt
from gptlab.packing import batches
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer


def value(variant, seed):
    "A run of one number"
    return hash(variant) % 7 + .01*hash(seed)


class Stub:
    "What a trainer looks like to an ablation"
    def __init__(self, interrupted):
        self.log, self.interrupted = [dict(loss=1.), dict(loss=.5)], interrupted


# ---- interrupts: R04, and U01, the stop button in a sweep

def ended_by_key(): raise KeyboardInterrupt
def ended_by_signal(): return Stub('SIGINT')
def ended_early(): return Stub(True)


@pytest.mark.parametrize('end', [ended_by_key, ended_by_signal, ended_early])
def test_r04_an_interrupted_run_ends_the_study_and_is_run_again(tmp_path, capsys, end):
    path, calls = tmp_path/'runs.json', []

    def run(variant, seed):
        calls.append((variant, seed))
        return end() if len(calls) == 4 else Stub(False)

    runs = ablate(run, ['a', 'b'], path=path)
    same([(r['variant'], r['seed']) for r in runs.records], [('a', 0), ('b', 0), ('a', 1)])
    same(Runs.from_json(path), runs)
    told = capsys.readouterr().out
    same(told.splitlines(), ["interrupted in variant 'b', seed 1, which is not recorded; "
                             '3 finished runs are'])
    whole = ablate(run, ['a', 'b'], path=path)
    same(calls[3:], [('b', 1), ('b', 1), ('a', 2), ('b', 2)])
    same(len(whole.records), 6)
    same(capsys.readouterr().out, '')


def test_the_first_run_may_be_interrupted(tmp_path, capsys):
    def run(variant, seed): raise KeyboardInterrupt
    runs = ablate(run, ['a', 'b'], path=tmp_path/'runs.json', verbose=False)
    same((runs.records, (tmp_path/'runs.json').exists()), ([], False))
    assert '0 finished runs' in capsys.readouterr().out


def test_an_interrupted_trainer_is_not_a_run(capsys):
    train, _ = batches(make_stories(30, seed=0), ByteTokenizer(), B=2, T=16)
    cfg = GPTConfig(vocab_size=257, context_length=16, n_layers=1, n_heads=2, d_model=16)

    def run(steps, seed):
        set_seed(seed)
        model = GPT(cfg)
        trainer = Trainer(model, Opt(model, adamw(1e-3)), train.reseed(seed), callbacks=[])
        trainer.fit(steps)
        if (steps, seed) == (2, 1): trainer.interrupted = True      # as Ctrl-C would have left it
        return trainer

    runs = ablate(run, dict(one=1, two=2), seeds=range(3))
    same([(r['variant'], r['seed']) for r in runs.records], [('one', 0), ('two', 0), ('one', 1)])
    same({len(v) for v in runs.final('loss').values()}, {1, 2})
    assert "variant 'two', seed 1" in capsys.readouterr().out


def test_an_error_keeps_what_is_finished():
    def run(variant, seed): return 1/(2 - seed)
    with pytest.raises(RuntimeError, match="variant 'a', seed 2: ZeroDivisionError") as e:
        ablate(run, ['a'])
    same(len(e.value.runs.records), 2)


# ---- names and seeds

SEEDS = dict(numpy=np.arange(3), torch=torch.arange(3), item=[np.int64(4)], text=['x', 'y|z'],
             pairs=[(1, 2), (np.int32(3), 'a')], floats=np.linspace(0, 1, 3))
NAMES = dict(tuples={('muon', .01): 1, ('adamw', (1, 2)): 2}, numbers={1: 1, 2.5: 2},
             numpy={np.int64(3): 1, np.str_('q'): 2}, bars={'a|b': 1, 'c': 2}, listed=[('a', 1), 3])


@pytest.mark.parametrize('seeds', SEEDS.values(), ids=list(SEEDS))
@pytest.mark.parametrize('names', NAMES.values(), ids=list(NAMES))
def test_a13_names_and_seeds_survive_a_file(tmp_path, names, seeds):
    path, calls = tmp_path/'runs.json', []

    def run(variant, seed):
        calls.append(seed)
        return float(len(calls))

    runs = ablate(run, names, seeds, path)
    same(Runs.from_json(path), runs)
    n = len(calls)
    same((ablate(run, names, seeds, path), len(calls)), (runs, n))      # nothing is run twice
    same(n, len(names)*len(seeds))
    first = runs.variants[0]
    assert runs.has(first, calls[0]) and len(runs.final('value')[first]) == len(seeds)
    assert repr(runs) and repr(runs.table('value', first))


def test_seeds_without_end_need_a_run_that_stops(capsys):
    def run(variant, seed):
        if seed == 3: raise KeyboardInterrupt
        return 1.
    same(len(ablate(run, ['a', 'b'], itertools.count()).records), 6)


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"records": [{"log": []}]}', '{"records": 3}'])
def test_a_file_that_holds_something_else_is_refused(tmp_path, text):
    (tmp_path/'runs.json').write_text(text)
    with pytest.raises(ValueError, match='does not hold runs'):
        ablate(value, ['a'], path=tmp_path/'runs.json')


# ---- what a run returns

class Trained:
    log = [dict(step=0, loss=torch.tensor(2.)),
           dict(step=1, loss=torch.tensor(1.), weights=torch.ones(3))]


@pytest.mark.parametrize('result, log', [
    (Trained(), [dict(step=0, loss=2.), dict(step=1, loss=1.)]), (1.5, [dict(value=1.5)]),
    (np.float64(2), [dict(value=2.)]), (dict(a=1), [dict(a=1)]),
    (torch.tensor([[3.]]), [dict(value=3.)]), (np.array(4), [dict(value=4)]),
    (dict(a=np.float32(.5), b=np.ones(1), c='x'), [dict(a=.5, c='x')])])
def test_all_results_become_a_log_that_json_holds(result, log):
    same(run_log(result), log)
    same(json.loads(json.dumps(run_log(result))), log)


# ---- tables

@pytest.mark.parametrize('correct', ['holm', 'bonferroni', None])
def test_u02_a_single_variant_has_nothing_to_compare_with(correct):
    table = ablate(lambda v, s: s, ['a']).table('value', 'a', correct=correct)
    same(table['a'], dict(mean=1., verdict='nothing to compare with'))
    same(repr(table), 'a · 1 · nothing to compare with')
    same(table._repr_markdown_().splitlines()[-1], '| a | 1 |  |  |  | nothing to compare with |')


@pytest.mark.parametrize('names', [['a'], ['a', 'b']])
def test_another_correction_is_refused(names):
    with pytest.raises(ValueError, match="'holm', 'bonferroni' or None"):
        ablate(lambda v, s: s, names).table('value', 'a', correct='none')


def test_a_key_that_was_never_logged():
    with pytest.raises(ValueError, match="never logged 'bpb'"):
        ablate(lambda v, s: s, ['a', 'b']).table('bpb', 'a')


def test_a_bar_in_a_name_keeps_its_cell():
    runs = ablate(lambda v, s: s, ['a|b', 'c'])
    for shown in (runs, runs.table('value', 'c')):
        row = next(r for r in shown._repr_markdown_().splitlines() if 'a' in r and 'b' in r[:8])
        assert row.startswith(r'| a\|b |')


def test_levels():
    same(alarm_levels([.04, .5, .03], .06, 'holm'), [.02, .02, .02])   # if the best fails, all do
    same(alarm_levels([.04, .5], .06, 'bonferroni'), [.03, .03])
    same(alarm_levels([], .06, 'holm'), [])


@pytest.mark.parametrize('n, diff, half, told', [
    (3, -.1, .05, 'clearly lower'), (3, .1, .05, 'clearly higher'),
    (2, -.1, .01, 'no verdict: 2 shared seeds, run at least three'),
    (3, math.nan, .1, 'no verdict: a run ended in nan or infinity'),
    (3, 0., 0., 'the same on every seed')])
def test_verdicts(n, diff, half, told): same(verdict_of(n, diff, half), told)


# ---- bands

def test_a_band_is_the_mean_and_its_interval():
    logs = [[dict(step=s, loss=s + d) for s in range(4)] for d in (0., 1., 5.)]
    at, mean, half = _band(logs, 'loss', 'step')
    same(list(at), [0, 1, 2, 3])
    assert np.allclose(mean, at + 2)
    assert np.allclose(half, t_factor(3)*np.std([0, 1, 5], ddof=1)/3**.5)


# ---- what makes no sense is refused before anything is run

@pytest.mark.parametrize('kw, said', [
    (dict(run=None), 'run must be'), (dict(variants='ab'), 'variants must be'),
    (dict(variants=None), 'variants must be'), (dict(variants=[]), 'variants is empty'),
    (dict(seeds=3), 'seeds must be'), (dict(seeds='012'), 'seeds must be'),
    (dict(seeds=[]), 'seeds is empty'), (dict(seeds=np.zeros((2, 2))), 'seeds must be'),
    (dict(path=''), 'path is empty'), (dict(path=3), 'a path is expected')], ids=str)
def test_r11_a_study_that_cannot_be(kw, said):
    calls = []
    study = dict(run=lambda v, s: calls.append(v) or 1., variants=['a'], seeds=range(2)) | kw
    with pytest.raises((TypeError, ValueError), match=said): ablate(**study)
    same(calls, [])


@pytest.mark.parametrize('alpha', [-1, 0, 1, 1.5, math.nan, math.inf, True, None, 'x'], ids=str)
def test_r11_an_alpha_that_is_no_probability(alpha):
    runs = ablate(lambda v, s: s, ['a', 'b'])
    with pytest.raises((TypeError, ValueError), match='alpha'): t_factor(3, alpha)
    with pytest.raises((TypeError, ValueError), match='alpha'): runs.table('value', 'a', alpha)


@pytest.mark.parametrize('records', [
    None, 'x', {}, [None], [dict(variant='a', seed=0)], [dict(variant='a', seed=0, log=None)],
    [dict(variant='a', seed=0, log=[1.])], [dict(variant='a', log=[])]], ids=str)
def test_u13_records_of_others(records, tmp_path):
    with pytest.raises(TypeError, match='record'): Runs(records)
    (tmp_path/'runs.json').write_text(json.dumps(dict(records=records)))
    with pytest.raises(ValueError, match='runs.json does not hold runs'):
        Runs.from_json(tmp_path/'runs.json')


@pytest.mark.parametrize('content', [b'\xff\xfe', b'[' * 100_000, b''])
def test_u13_a_file_that_is_no_json(content, tmp_path):
    (tmp_path/'runs.json').write_bytes(content)
    with pytest.raises(ValueError, match='runs.json does not hold runs'):
        Runs.from_json(tmp_path/'runs.json')


def test_u13_names_of_others_are_only_text():
    hostile = 'a|b <img src=x onerror=alert(1)> *c* \x1b[2J\nd'
    runs = ablate(lambda v, s: s, [hostile, 'c'])
    for shown in (runs, runs.table('value', 'c'), runs.table('value', hostile)):
        assert '\x1b' not in repr(shown)
        rows = shown._repr_markdown_().splitlines()
        same(len(rows), 4)
        same({len(r.replace(r'\|', '').split('|')) for r in rows}, {len(rows[1].split('|'))})
        assert '<' not in ''.join(rows) and '\x1b' not in ''.join(rows)


def test_a24_the_home_folder_of_a_study(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    calls = []

    def run(variant, seed): return calls.append(seed) or seed

    ablate(run, ['a'], path='~/runs.json')
    same(len(Runs.from_json('~/runs.json').records), 3)
    ablate(run, ['a'], path='~/runs.json')
    same(calls, [0, 1, 2])


# ---- A13, U02: what was edited is run again; two processes share a file; Holm counts tests

def made(source, **names):
    "A function as a notebook's cell makes it"
    exec(source, names)
    return names['run']


RUN = 'def run(variant, seed):\n    return rate*variant + seed\n'


@pytest.mark.parametrize('after, again', [
    (dict(), []), (dict(source='# said otherwise\n\n' + RUN), []),
    (dict(variants=dict(b=2, a=1)), []),
    (dict(variants=dict(a=1, b=5)), ['b']), (dict(rate=2.), ['a', 'b']),
    (dict(source=RUN.replace('+ seed', '- seed')), ['a', 'b']),
    (dict(variants=dict(a=1, b=2, c=3)), ['c'])], ids=str)
def test_u02_an_edited_variant_is_run_again(tmp_path, capsys, after, again):
    def study(source=RUN, rate=1., variants=dict(a=1, b=2)):
        runs = ablate(made(source, rate=rate), variants, path=tmp_path/'runs.json', verbose=False)
        return runs.final('value')

    old, new = study(), study(**after)
    same([v for v in new if new[v] != old.get(v)], again)
    edited = [v for v in again if v in old]
    told = capsys.readouterr().out
    same('edited since' in told, bool(edited))
    same((tmp_path/'runs-before-1.json').exists(), bool(edited))
    if edited: same(Runs.from_json(tmp_path/'runs-before-1.json').final('value'), old)


PARTS = dict(number=(1, 2), text=('x'*100, 'x'*99 + 'y'), array=(np.zeros(3), np.ones(3)),
             tensor=(torch.zeros(3), torch.zeros(3).bfloat16()), functions=(lambda: 1, lambda: 2),
             partials=(partial(max, key=len), partial(max, key=abs)), sets=({1, 2}, {1, 3}),
             layers=(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), paths=(Path('a'), Path('b')),
             patterns=(re.compile('a'), re.compile('b')),
             nested=(dict(a=[1, (2,)]), dict(a=[1, 2])),
             long=(list(range(100)), [*range(99), 0]), config=(
                 GPTConfig(vocab_size=8, context_length=4),
                 GPTConfig(vocab_size=9, context_length=4)))


@pytest.mark.parametrize('one, other', PARTS.values(), ids=list(PARTS))
def test_u02_a_description_tells_things_apart_and_is_the_same_for_a_copy(one, other):
    assert describe(one) != describe(other)
    same(describe(copy.deepcopy(one)), describe(one))
    same(json.loads(json.dumps(describe(one))), describe(one))


def test_u02_a_stream_that_was_read_is_described_as_before():
    train, valid = batches(make_stories(30, seed=0), ByteTokenizer(), B=2, T=16)
    before = describe([train, valid])
    next(train)
    same(describe([train, valid]), before)
    assert describe(train.reseed(1)) != describe(train)


def test_u02_what_cannot_be_described_is_named():
    lock = threading.Lock()
    def run(variant, seed): return lock.locked()
    said = 'lock: what determines a lock cannot be told'
    with pytest.raises(TypeError, match=said): describe(run)


TWO = """
import sys
from gptlab.ablation import ablate
def run(variant, seed):
    import time
    time.sleep(.02)
    return variant + seed
for _ in range(3): ablate(run, {str(n): n for n in map(int, sys.argv[2:])}, range(6), sys.argv[1])
"""


@pytest.mark.exhaustive
def test_u02_two_processes_on_one_path_lose_nothing(tmp_path):
    args = [[sys.executable, '-c', TWO, str(tmp_path/'runs.json'), *names]
            for names in (('1', '2', '3'), ('3', '4', '5'))]
    for p in [subprocess.Popen(a, cwd=tmp_path) for a in args]: same(p.wait(timeout=300), 0)
    runs = Runs.from_json(tmp_path/'runs.json')
    same(sorted((r['variant'], r['seed']) for r in runs.records),
         [(v, s) for v in '12345' for s in range(6)])
    same({r['log'][0]['value'] - int(r['variant']) - r['seed'] for r in runs.records}, {0})


def test_u02_variants_without_shared_seeds_do_not_widen_the_intervals():
    def records(name, seeds, off):
        return [dict(variant=name, seed=s, log=[dict(loss=off + .01*(s*s % 7))]) for s in seeds]
    today = records('base', range(5), 1.) + records('new', range(5), .9)
    last_week = records('old', range(50, 55), 1.) + records('older', range(3, 5), 1.)
    alone, beside = Runs(today), Runs(today + last_week)
    same(beside.table('loss', 'base')['new'], alone.table('loss', 'base')['new'])
    for v in ('old', 'older'): assert 'no verdict' in beside.table('loss', 'base')[v]['verdict']


@pytest.mark.parametrize('correct', ['holm', 'bonferroni'])
def test_u02_a_p_of_nan_is_no_test(correct):
    same(alarm_levels([math.nan, .5, .01], .06, correct)[1:], alarm_levels([.5, .01], .06, correct))
    same(alarm_levels([math.nan], .06, correct), [.06])
