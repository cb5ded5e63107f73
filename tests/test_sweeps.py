"""Sweeps and budgets: every variant is tuned equally hard, what is killed goes on, and each
interval keeps its word when the truth is known."""
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same

from common import extra, refuses, ROOT
from gptlab.ablation import ablate, describe, Runs, t_factor
from gptlab.attention import Attention
from gptlab.budgets import (COSTS, control_variate, log_speedup, match_budgets, named_init,
                            speedup_table, step_seconds, tail_mean, trunk, variance_saved)
from gptlab.checkpoints import checkpoints_in
from gptlab.core import set_seed
from gptlab.data import make_stories
from gptlab.model import gpt2_init, GPT, GPTConfig, modern_init
from gptlab.optimizers import adamw, muon, Opt
from gptlab.packing import batches
from gptlab.schedules import constant
from gptlab.studies import open_study, study
from gptlab.sweeps import (Choice, Dimension, GridSearch, halve, OptunaSearch, RandomSearch, Range,
                           Sampler, tune, with_settings)
from gptlab.tokenizer import ByteTokenizer
from gptlab.trainer import Trainer

LR = Range(1e-4, 1., log=True)
quiet = dict(verbose=False)


def bowl(v, seed): return dict(valid=1 + (math.log10(v['lr']) + 2)**2 + .01*(seed % 7))


def two(): return dict(a=dict(lr=0., wd=0), b=dict(lr=0., wd=1))


def runs_of(values):
    return Runs([dict(variant=v, seed=s, log=[dict(loss=float(x))])
                 for v, row in values.items() for s, x in enumerate(row)])


# ---- a space

@pytest.mark.parametrize('d', [Range(-1, 3), LR, Range(1, 9, whole=True), Choice(1, 5, 3),
                               Range(1, 64, log=True, whole=True)])
def test_a_value_stands_where_it_was_taken(d):
    for u in np.linspace(0, 1, 41):
        v = d.at(float(u))
        assert d.at(min(1., max(0., u))) == v
        p = d.position(v)
        assert 0 <= p <= 1
        if isinstance(d, Range) and not d.whole: assert abs(p - u) < 1e-9
    same([d.position(d.at(0.)), d.position(d.at(1.))], [0, .5 if isinstance(d, Choice) else 1])


def test_draws_are_even_and_log_uniform_is_even_in_orders_of_magnitude():
    u = np.random.default_rng(0).random(9000).tolist()
    orders = np.floor(np.log10([LR.at(x) for x in u])).astype(int)
    assert all(abs((orders == k).mean() - .25) < .02 for k in (-4, -3, -2, -1))
    for d, n in ((Range(1, 3, whole=True), 3), (Choice('a', 'b', 'c'), 3)):
        drawn = [d.at(x) for x in u]
        same(len(set(drawn)), n)
        assert all(abs(drawn.count(v)/9000 - 1/n) < .02 for v in set(drawn))
    low = np.mean([Range(1, 63, log=True, whole=True).at(x) < 8 for x in u])
    assert abs(low - .5) < .02                                          # log 8 is half of log 64


@pytest.mark.parametrize('make, said', [
    (lambda: Range(2, 1), 'high'), (lambda: Range(1, 1), 'high'),
    (lambda: Range(0, 1, log=True), 'low'),
    (lambda: Range(-1, 1, log=True), 'low'), (lambda: Range(math.nan, 1), 'low'),
    (lambda: Choice(), 'at least one'),
    (lambda: Range(0, 1).at(1.5), 'u'), (lambda: Range(0, 1).position(2), 'value'),
    (lambda: RandomSearch({}), 'the space is empty'),
    (lambda: RandomSearch(dict(a=[])), 'at least one')])
def test_spaces_that_are_none(make, said):
    with refuses(ValueError, said): make()


def test_what_is_no_dimension_is_refused():
    with refuses(TypeError, 'Dimension'): RandomSearch(dict(a=3))
    with refuses(TypeError, 'whole'): Range(1, 2.5, whole=True)
    with refuses(TypeError, 'a dict such as'): RandomSearch([3])


# ---- settings

@dataclass
class Inner:
    width: int = 1
    more: tuple = (1, 2)


def test_settings_go_where_the_dots_lead_and_the_variant_stays():
    base = dict(cfg=Inner(), f=partial(max, key=abs), opt=[adamw(), muon(lr=.5)],
                deep=dict(x=Inner()))
    made = with_settings(base, {'cfg.width': 2, 'cfg.more.1': 9, 'opt.1.lr': .1, 'deep.x.width': 3,
                                'f.default': 0})
    same((made['cfg'], made['deep']['x'].width), (Inner(2, (1, 9)), 3))
    same((made['opt'][1].settings['lr'], base['opt'][1].settings['lr']), (.1, .5))
    same((made['opt'][1].at, made['opt'][1].rule), (base['opt'][1].at, base['opt'][1].rule))
    same((base['cfg'], base['f'].keywords), (Inner(), dict(key=abs)))
    same(made['f'].keywords, dict(key=abs, default=0))
    same(with_settings(lambda s: sorted(s), dict(b=1, a=2)), ['a', 'b'])
    cfg = with_settings(GPTConfig(), dict(d_model=64))
    same((cfg.d_model, cfg.n_layers), (64, 4))


@pytest.mark.parametrize('name', ['cfg.depth', 'opt.2.lr', 'opt.0.momentun', 'nothing',
                                  'cfg.width.x', ''])
def test_a_setting_that_leads_nowhere_is_named(name):
    with refuses(ValueError, repr(name).strip("'") if name != 'opt.0.momentun' else 'momentun'):
        with_settings(dict(cfg=Inner(), opt=[adamw()]), {name: 1})


# ---- samplers

def asked(sampler, n): return [s for _ in range(n) if (s := sampler.ask()) is not None]


def test_samplers_repeat_with_their_seed_and_propose_nothing_twice():
    space = dict(lr=LR, act=['x', 'y'])
    same(asked(RandomSearch(space, 3), 5), asked(RandomSearch(space, 3), 5))
    assert asked(RandomSearch(space, 3), 5) != asked(RandomSearch(space, 4), 5)
    same(sorted(s['act'] for s in asked(RandomSearch(dict(act=['x', 'y'])), 50)), ['x', 'y'])
    grid = asked(GridSearch(space, points=4), 99)
    same((len(grid), len({s['lr'] for s in grid})), (8, 4))
    same({min(s['lr'] for s in grid), max(s['lr'] for s in grid)}, {1e-4, 1.})


# ---- tuning

def test_every_variant_gets_the_same_trials(tmp_path):
    tuned = tune(bowl, two(), dict(lr=LR), 7, path=tmp_path/'s', **quiet)
    in_order = {n: sorted(tuned.of(n), key=lambda t: t['trial']) for n in 'ab'}
    settings = {n: [t['settings'] for t in trials] for n, trials in in_order.items()}
    same(settings['a'], settings['b'])
    same([len(s) for s in settings.values()], [7, 7])
    same(tuned.best['a'], min(settings['a'], key=lambda s: abs(math.log10(s['lr']) + 2)))
    same(tuned.variants['b'], tuned.best['b'] | dict(wd=1))
    more = tune(bowl, two(), dict(lr=LR), 9, path=tmp_path/'s', **quiet)
    same(more.trials[:14], tuned.trials)


class Greedy(Sampler):
    "Asks near the best so far, two at a time"
    batch = 2
    def __init__(self, space, seed):
        self.best, self.rng = (math.inf, .5), np.random.default_rng(seed)
    def ask(self):
        u = float(np.clip(self.best[1] + self.rng.normal(0, .2), 0, 1))
        return dict(lr=LR.at(u))
    def tell(self, settings, loss): self.best = min(self.best, (loss, LR.position(settings['lr'])))


def stopping(at):
    "bowl, interrupted once when so many results are there"
    def run(v, seed, folder):
        mark = folder.parents[2]/f'stopped-{at}'
        if len(list(folder.parents[1].glob('*/result.json'))) >= at and not mark.exists():
            mark.touch()
            raise KeyboardInterrupt
        return bowl(v, seed)
    return run


@pytest.mark.parametrize('sampler, at', [(RandomSearch, 3), (Greedy, 0), (Greedy, 6),
                                         (OptunaSearch, 3)])
def test_a_killed_sweep_goes_on_as_if_it_had_not_been_killed(tmp_path, sampler, at):
    if sampler is OptunaSearch: extra('optuna')
    do = partial(tune, variants=two(), space=dict(lr=LR), trials=4, sampler=sampler, **quiet)
    run = stopping(at)
    part = do(run, path=tmp_path/'s')
    counts = {len(part.of(n)) for n in 'ab'}
    assert len(counts) == 1 and counts < {0, 1, 2, 3, 4}
    times = {p: p.stat().st_mtime_ns for p in (tmp_path/'s').rglob('result.json')}
    same(len(times), at)
    same(do(run, path=tmp_path/'s').trials, do(bowl, path=tmp_path/'straight').trials)
    same({p: p.stat().st_mtime_ns for p in times}, times)


@pytest.mark.exhaustive
def test_a_sweep_is_the_same_on_two_processes(tmp_path):
    do = partial(tune, bowl, two(), dict(lr=LR), 5, seeds=(1, 2), **quiet)
    same(do(path=tmp_path/'two', workers=2).trials, do(path=tmp_path/'one').trials)


def test_diverged_trials_are_kept_and_counted_and_never_win(tmp_path):
    def run(v, seed):
        if v['lr'] > .1: raise FloatingPointError('the loss is not finite')
        return dict(valid=-math.inf if v['lr'] < 1e-3 else bowl(v, seed)['valid'])
    tuned = tune(run, two(), dict(lr=LR), 8, path=tmp_path/'s', **quiet)
    lrs = [t['settings']['lr'] for t in tuned.of('a')]
    bad = sum(lr > .1 or lr < 1e-3 for lr in lrs)
    assert 0 < bad < 8 and f'8 trials, {bad} diverged' in repr(tuned)
    assert 1e-3 <= tuned.best['a']['lr'] <= .1
    def worse(v, seed): raise ValueError('no')
    lost = tune(worse, two(), dict(lr=LR), 2, path=tmp_path/'lost', **quiet)
    assert '2 diverged, best valid – with none' in repr(lost)
    with refuses(ValueError, 'no trial of', "'a'"): lost.best


def test_the_mean_over_the_search_seeds_counts_and_high_may_be_good(tmp_path):
    def run(v, seed): return dict(acc=v['u']*(1 if seed == 5 else -3))
    tuned = tune(run, dict(a=dict(u=0)), dict(u=Range(0., 1.)), 6, path=tmp_path/'s', key='acc',
                 seeds=(5, 6), minimize=False, **quiet)
    same(tuned.best['a']['u'], min(t['settings']['u'] for t in tuned.trials))
    same(len(tuned.of('a')[0]['losses']), 2)


@pytest.mark.parametrize('centre, told', [(-4., 'lower'), (0., 'upper'), (-2., '')])
def test_a_best_value_at_an_edge_is_told(tmp_path, centre, told):
    def run(v, seed): return dict(valid=(math.log10(v['lr']) - centre)**2)
    tuned = tune(run, dict(a=dict(lr=0)), dict(lr=LR), 9, path=tmp_path/'s',
                 sampler=partial(GridSearch, points=9), **quiet)
    same([told in e for e in tuned.edges('a')], [True] if told else [])
    same('edge' in repr(tuned), bool(told))
    choice = tune(run, dict(a=dict(lr=0)), dict(lr=[1e-3, 1e-2]), 2, path=tmp_path/'c', **quiet)
    same(choice.edges('a'), [])


def test_the_setting_that_matters_is_told(tmp_path):
    "Of 24 trials: by itself each setting explains what was put in, and what does nothing, little"
    space = dict(u=Range(0., 1.), v=Range(0., 1.), w=['x', 'y'])
    def explained(name, loss, trials=24):
        def run(settings, seed): return dict(valid=loss(**settings))
        start = dict(a=dict.fromkeys(space, 0))
        return tune(run, start, space, trials, path=tmp_path/name, **quiet).explained('a')
    bowl_of_u = explained('u', lambda u, v, w: (u - .3)**2)
    assert bowl_of_u['u'] > .7 > .3 > max(bowl_of_u['v'], bowl_of_u['w']), bowl_of_u
    by_name = explained('w', lambda u, v, w: .01*u + (w == 'y'))
    assert by_name['w'] > .7 > .4 > max(by_name['u'], by_name['v']), by_name
    half_lost = explained('lost', lambda u, v, w: math.nan if u > .5 else v)
    assert half_lost['u'] > .5 > half_lost['w']
    same(explained('flat', lambda u, v, w: 1.), dict.fromkeys(space, 0.))
    with refuses(ValueError, 'has 5 trials: at least six'): explained('few', lambda u, v, w: u, 5)


def test_the_winners_meet_on_fresh_seeds(tmp_path):
    tuned = tune(bowl, two(), dict(lr=LR), 3, path=tmp_path/'s', seeds=(7, 8), **quiet)
    with refuses(ValueError, 'seed 8 was used for the search'): tuned.evaluate([1, 8])
    made = tuned.evaluate(range(3), **quiet)
    same(made.variants, ['a', 'b'])
    same(made.final('valid')['a'][0], bowl(tuned.variants['a'], 0)['valid'])
    same(repr(open_study(tmp_path/'s'/'winners')), repr(made))


@pytest.mark.parametrize('change, kind, said', [
    (dict(trials=0), ValueError, 'trials'), (dict(trials=1.5), TypeError, 'trials'),
    (dict(space={}), ValueError, 'the space is empty'),
    (dict(space=dict(lr=3)), TypeError, 'Dimension'),
    (dict(variants={}), ValueError, 'variants'), (dict(variants=['a']), TypeError, 'variants'),
    (dict(variants=dict(a=1, b=1)), ValueError, "'a' and 'b' differ in name alone"),
    (dict(seeds=[]), ValueError, 'seeds'), (dict(sampler=3), TypeError, 'Sampler'),
    (dict(sampler=lambda space, seed: 3), TypeError, 'Sampler'),
    (dict(space=dict(rate=LR)), ValueError, "'rate' leads to no field"),
    (dict(run=3), TypeError, 'run'), (dict(key='acc'), ValueError, "never logged 'acc'"),
    (dict(variants=dict(a=dict(lr=0, f=open(ROOT/'README.md')))), TypeError, 'TextIOWrapper')])
def test_sweeps_that_cannot_be(tmp_path, change, kind, said):
    good = dict(run=bowl, variants=two(), space=dict(lr=LR), trials=2, path=tmp_path/'s')
    with refuses(kind, said): tune(**good | change, **quiet)


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    do = partial(tune, bowl, two(), trials=2, path=tmp_path/'s', **quiet)
    made = do(dict(lr=LR))
    for change in (dict(space=dict(lr=Range(1., 2.))), dict(seed=1), dict(seeds=[3]),
                   dict(sampler=GridSearch), dict(minimize=False)):
        with refuses(FileExistsError, 'another sweep', *(k for k in change)):
            do(**dict(space=dict(lr=LR)) | change)
    same(do(dict(lr=LR)).trials, made.trials)
    study(bowl, dict(a=dict(lr=1.)), path=tmp_path/'study', **quiet)
    with refuses(FileExistsError, 'something else'): do(dict(lr=LR), path=tmp_path/'study')
    (tmp_path/'begun').mkdir()                  # by another process, which has not named it yet
    (tmp_path/'begun'/'.sweep.json.0123abcd').touch()
    same(do(dict(lr=LR), path=tmp_path/'begun').trials, made.trials)


def test_names_of_others_are_only_text_in_a_plot(tmp_path):
    name = '<img src=x onerror=alert(1)> $\\frac$'
    tuned = tune(lambda v, s: dict(valid=v[name]), {name: {name: 0.}}, {name: Range(0., 1.)}, 3,
                 path=tmp_path/'s', **quiet)
    ax, = tuned.plot()
    ax.figure.canvas.draw()
    assert '<img' not in tuned._repr_markdown_()
    with refuses(ValueError, 'one for each variant'): tuned.plot([ax, ax])
    with refuses(TypeError, 'axes of matplotlib'): tuned.plot(3)


# ---- Optuna

def test_optuna_learns_and_takes_what_diverges(tmp_path):
    extra('optuna')
    def run(v, seed):
        if v['lr'] > .3: raise FloatingPointError('diverged')
        return dict(valid=(math.log10(v['lr']) + 2)**2 + (v['act'] == 'x'))
    space = dict(lr=LR, act=['x', 'y'])
    tuned = tune(run, dict(a=dict(lr=0, act='')), space, 18, path=tmp_path/'s',
                 sampler=OptunaSearch, **quiet)
    losses = np.array([t['losses'][0] for t in tuned.trials])
    first, last = np.nanmean(losses[:6]), np.nanmean(losses[12:])
    assert last < first and tuned.loss_of(tuned.of('a')[0]) < .5
    with refuses(ValueError, 'not asked for'): OptunaSearch(space).tell(dict(lr=1.), 1.)
    with refuses(ValueError, 'batch'): OptunaSearch(space, batch=0)


def test_without_optuna_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with refuses(ImportError, "pip install 'gptlab[sweeps]'"): OptunaSearch(dict(lr=LR))


# ---- successive halving

class Counting:
    "A run whose state is a file: each step adds to it, and it goes on from where it was"
    def __init__(self, stop=None): self.stop = stop
    def __call__(self, v, seed, folder, budget):
        folder.mkdir(parents=True, exist_ok=True)
        state, mark = folder/'state', folder.parents[2]/'stopped'
        step = int(state.read_text()) if state.exists() else 0
        while step < budget:
            step += 1
            state.write_text(str(step))
            with (folder.parents[2]/'spent').open('a') as f: f.write('x')
            if step == self.stop and not mark.exists():
                mark.touch()
                raise KeyboardInterrupt
        return dict(valid=bowl(v, seed)['valid']/step)


@pytest.mark.parametrize('stop', [None, 1, 4])
def test_halving_spends_each_step_once(tmp_path, stop):
    do = partial(halve, Counting(stop), two(), dict(lr=LR), 9, budgets=(1, 3, 9),
                 path=tmp_path/'s', **quiet)
    made = do() if stop is None else (do(), do())[1]
    same(len((tmp_path/'s'/'spent').read_text()), 2*(9*1 + 3*2 + 1*6))
    for name in 'ab':
        same(sorted(t['budget'] for t in made.of(name)), [1]*6 + [3]*2 + [9])
        losses = {t['trial']: (math.log10(t['settings']['lr']) + 2)**2 for t in made.of(name)}
        same(made.of(name)[0]['trial'], min(losses, key=losses.get))
    same(len(list((tmp_path/'s'/'kept').iterdir())), 2)               # the losers' folders are gone
    same(do().trials, made.trials)


def test_survivors_go_on_to_the_last_bit(tmp_path):
    train, valid = batches(make_stories(40, 0), ByteTokenizer(), B=2, T=16)
    cfg = GPTConfig(vocab_size=257, context_length=16, n_layers=1, n_heads=2, d_model=16)

    def run(v, seed, folder, steps):
        set_seed(seed)
        model = GPT(cfg)
        t = Trainer(model, Opt(model, adamw(v['lr'])), train.reseed(seed), valid[:1], callbacks=[],
                    schedule=constant(), dir=folder)
        if checkpoints_in(folder): t.resume()
        return t.fit(steps)

    made = halve(run, dict(a=dict(lr=0.)), dict(lr=LR), 3, budgets=(2, 4), path=tmp_path/'s',
                 **quiet)
    best = made.of('a')[0]
    straight = run(made.variants['a'], 1000, tmp_path/'straight', 4)
    same((best['budget'], best['losses']), (4, [straight.log[-1]['valid']]))
    same(list(made.evaluate([1], **quiet).final('valid')['a']), [1])


@pytest.mark.parametrize('change, said', [
    (dict(budgets=()), 'rise'), (dict(budgets=(3, 1)), 'rise'), (dict(budgets=(0, 1)), 'budgets'),
    (dict(keep=0), 'keep'), (dict(keep=1), 'keep'), (dict(trials=0), 'trials')])
def test_halvings_that_cannot_be(tmp_path, change, said):
    good = dict(trials=3, budgets=(1, 2), path=tmp_path/'s')
    with refuses(ValueError, said): halve(Counting(), two(), dict(lr=LR), **good | change, **quiet)


# ---- matched budgets

BASE = GPTConfig(vocab_size=257, context_length=32, n_layers=2, n_heads=2, d_model=32)
SHAPES = dict(base=BASE, deep=replace(BASE, n_layers=3), narrow=replace(BASE, d_model=16),
              window=replace(BASE, attn=partial(Attention, window=4)))


slow = pytest.mark.exhaustive


@pytest.mark.parametrize('by', ['flops', 'parameters', *(
    pytest.param(by, marks=slow) for by in COSTS if by not in ('flops', 'parameters'))])
def test_budgets_are_equal_in_what_was_asked(by):
    took = dict(base=1., deep=1.5, narrow=.25, window=.9)
    made = match_budgets(SHAPES, by, 'base', steps=300, B=4, seconds=took)
    close = .15 if by in ('parameters', 'memory') else .01              # widths are coarse
    assert all(abs(made.ratios(name)[by] - 1) < close for name in SHAPES)
    for name, v in made.variants.items():
        model = GPT(v['cfg'])
        need = model.memory(4)
        row = made.rows[name]
        same((row['parameters'], row['memory']), (model.n_params(), need['weights'] + need['peak']))
        tokens = v['steps']*4*32
        same((row['tokens'], row['flops']), (tokens, tokens*model.flops_per_token(32)))
        if by in ('tokens', 'flops', 'seconds'): same(v['cfg'], SHAPES[name])
    assert '×' in repr(made) and by in repr(made)


def test_seconds_are_measured_and_move_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert 0 < step_seconds(BASE, 2, repeat=1) < 60
    assert torch.equal(before, torch.get_rng_state())
    made = match_budgets(dict(base=BASE, deep=SHAPES['deep']), 'seconds', 'base', steps=50, B=2)
    assert all(r['seconds'] > 0 for r in made.rows.values())


@pytest.mark.parametrize('change, kind, said', [
    (dict(by='time'), ValueError, 'tokens'), (dict(like='x'), ValueError, "no variant 'x'"),
    (dict(steps=0), ValueError, 'steps'), (dict(B=0), ValueError, 'B'),
    (dict(variants=[]), TypeError, 'variants'), (dict(variants=dict(a=3)), TypeError, 'GPTConfig'),
    (dict(seconds=dict(base=1)), TypeError, 'deep'),
    (dict(seconds=dict(base=1, deep=0)), ValueError, 'deep')])
def test_budgets_that_cannot_be(change, kind, said):
    good = dict(variants=dict(base=BASE, deep=SHAPES['deep']), by='tokens', like='base')
    with pytest.raises(kind, match=said): match_budgets(**good | change)


# ---- common random numbers

@pytest.mark.parametrize('init', [modern_init, gpt2_init])
def test_equal_names_and_shapes_begin_equal_and_are_distributed_as_before(init):
    def params(seed, **kw):
        set_seed(seed)
        model = GPT(replace(BASE, **kw))
        return dict(model.named_parameters()), torch.rand(3)
    named = partial(named_init, init=init)
    a, after_a = params(0, init=named)
    b, after_b = params(0, init=named, d_ff=100)
    c, _ = params(1, init=named)
    plain, _ = params(0, init=init)
    assert torch.equal(after_a, after_b)                               # dropout is shared, too
    for n, p in a.items():
        same(torch.equal(p, b[n]), p.shape == b[n].shape) if p.shape == b[n].shape else None
        drawn = p.std() > 0
        same(bool(drawn), bool(plain[n].std() > 0))
        if not drawn: continue
        assert not torch.equal(p, c[n])
        if p.numel() > 900:
            assert abs(p.mean()) < 5*plain[n].std()/p.numel()**.5
            assert abs(p.std()/plain[n].std() - 1) < .1
    big = [p.flatten() for p in a.values() if p.shape == (32, 32) and p.std() > 0]
    for p, q in zip(big, big[1:]): assert abs(np.corrcoef(p.detach(), q.detach())[0,1]) < .15


def test_named_init_takes_an_init():
    with refuses(TypeError, 'init'): named_init(GPT(BASE), init=3)


# ---- branches

def small_trainer(seed, folder, lr=1e-2):
    train, valid = batches(make_stories(40, 0), ByteTokenizer(), B=2, T=16)
    set_seed(seed)
    model = GPT(GPTConfig(vocab_size=257, context_length=16, n_layers=1, n_heads=2, d_model=16))
    return Trainer(model, Opt(model, adamw(lr)), train.reseed(seed), valid[:1], callbacks=[],
                   dir=folder)


def test_a_branch_of_the_baseline_is_the_run_that_never_stopped(tmp_path):
    start = trunk(small_trainer, 5, tmp_path/'trunks', at=3, steps=8)
    same(trunk(lambda *_: 1/0, 5, tmp_path/'trunks', at=3, steps=8), start)   # not trained again
    straight = small_trainer(5, tmp_path/'straight').fit(8)
    branch = small_trainer(5, tmp_path/'branch').resume(start).fit(8)
    other = small_trainer(5, tmp_path/'other', lr=1e-3).resume(start).fit(8)
    same((branch.step, branch.log[-1]['valid']), (8, straight.log[-1]['valid']))
    assert other.log[-1]['valid'] != straight.log[-1]['valid']
    same([r['loss'] for r in other.log[:3]], [r['loss'] for r in straight.log[:3]])


@pytest.mark.parametrize('change, kind, said', [
    (dict(at=0), ValueError, 'at'), (dict(at=8), ValueError, 'steps'),
    (dict(make=3), TypeError, 'make'),
    (dict(make=lambda *_: 3), TypeError, 'makes a Trainer')])
def test_branches_that_cannot_be(tmp_path, change, kind, said):
    good = dict(make=small_trainer, seed=0, folder=tmp_path/'t', at=3, steps=8)
    with refuses(kind, said): trunk(**good | change)


# ---- averages, and control variates

def test_a_tail_mean_is_the_mean_of_the_last_evaluations():
    log = [dict(loss=9.), dict(step=1), dict(loss=3.), dict(step=3, loss=1.), dict(step=4)]
    runs = Runs([dict(variant='a', seed=s, log=log) for s in range(3)])
    for n, mean in ((1, 1.), (2, 2.), (9, 13/3)):
        same(tail_mean(runs, 'loss', n).final('loss')['a'][0], mean)
    with refuses(ValueError, "never logged 'acc'"): tail_mean(runs, 'acc')
    with refuses(ValueError, 'n'): tail_mean(runs, 'loss', 0)


def test_a_control_variate_is_a_regression():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 12), rng.normal(0, 1, 8)
    y = y + .7*x[:8]
    row = control_variate(runs_of(dict(base=x, ours=y)), 'loss', 'base', correct=None)['ours']
    from scipy.stats import linregress
    line = linregress(x[:8], y)
    assert abs(row['diff'] - (line.intercept + line.slope*x.mean() - x.mean())) < 1e-12
    exact = control_variate(runs_of(dict(base=x, ours=2*x[:8] + 1)), 'loss', 'base')['ours']
    assert abs(exact['diff'] - (2*x.mean() + 1 - x.mean())) < 1e-12     # all 12 seeds tell
    few = control_variate(runs_of(dict(base=x, ours=y[:4])), 'loss', 'base')['ours']
    assert 'a control variate needs five' in few['verdict'] and math.isnan(few['diff'])
    bad = control_variate(runs_of(dict(base=x, ours=[*y[:7], math.nan])), 'loss', 'base')['ours']
    assert bad['verdict'].startswith('no verdict')
    table = control_variate(runs_of(dict(base=x, ours=y)), 'loss', 'base')
    assert 'saved' in table._repr_markdown_()


def regressed(n, more, r, trials, rng):
    "How often the interval holds, and how often it is clear of the truth's zero"
    held = 0
    for _ in range(trials):
        x = rng.normal(0, 1, more)
        y = .6*(r*x[:n] + (1 - r*r)**.5*rng.normal(0, 1, n))
        row = control_variate(runs_of(dict(base=x, ours=y)), 'loss', 'base')['ours']
        held += abs(row['diff']) < row['half']
        assert ('clearly' in row['verdict']) == (abs(row['diff']) > row['half'])
    return held/trials


@pytest.mark.exhaustive
@pytest.mark.parametrize('n', [5, 10])
@pytest.mark.parametrize('r', [.3, .95])
def test_control_variates_hold_as_often_as_announced(n, r):
    held = regressed(n, 30, r, 4000, np.random.default_rng(n))
    assert abs(held - .95) < .0135                                      # 1 %, and a standard error


def test_what_is_saved_is_what_was_drawn():
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 1, 4000)
    runs = runs_of(dict(base=luck, ours=.8*luck + .6*rng.normal(0, 1, 4000)))
    row, = variance_saved(runs, 'loss', 'base')
    same((row['correlation'], row['paired']), ('0.80', '80%'))
    with refuses(ValueError, 'three shared seeds'):
        variance_saved(runs_of(dict(a=[1], b=[2])), 'loss', 'a')


# ---- worth

def law(c, bend=.3): return 1 + .5*np.asarray(c)**-bend


def ladder_of(budgets, seeds=3, noise=0., rng=None):
    noise = noise*(rng or np.random.default_rng(0)).standard_normal((len(budgets), seeds))
    return runs_of({b: law(b) + e for b, e in zip(budgets, noise)})


def test_a_speedup_is_read_off_the_ladder_exactly():
    x = np.log([.5, 1, 2])
    for slope, bend in ((-.2, 0), (-.2, .03), (-.1, -.02)):
        losses = np.tile(1 + slope*x + bend*x*x, (4, 1))
        for true in (-.5, 0., .4):
            d = np.full(4, slope*true + bend*true**2)
            log, half, found = log_speedup(np.array([.5, 1, 2]), losses, d)
            assert abs(log - true) < 1e-9 and half < 1e-6 and abs(found - slope) < 1e-9
    rng = np.random.default_rng(0)                                    # a mean's jackknife is t
    d = rng.normal(0, .01, 6)
    log, half, _ = log_speedup(np.array([.5, 1, 2]), np.tile(1 - .2*x, (6, 1)), d)
    assert abs(half/(t_factor(6)*d.std(ddof=1)/6**.5/.2) - 1) < 1e-6
    with refuses(ValueError, 'three budgets'): log_speedup(np.ones(2), np.ones((3, 2)), np.ones(3))


def test_worth_stands_beside_every_verdict():
    ladder = ladder_of([.5, 1, 2], noise=1e-4)
    seeds = dict(base=law([1, 1, 1]), good=law([1.2, 1.21, 1.19]), bad=law([.8, .81, .79]),
                 great=law([9, 9, 9.1]), awful=law([.1, .1, .11]))
    table = speedup_table(runs_of(seeds), 'loss', 'base', ladder)
    assert abs(table['good']['speedup'] - 1.2) < .02 and abs(table['bad']['speedup'] - .8) < .02
    assert table['good']['low'] < 1.2 < table['good']['high']
    same((table['great']['worth'], table['awful']['worth']), ('more than ×2', 'less than ×0.5'))
    assert '×1.2 [' in repr(table) and 'worth' in table._repr_markdown_()
    dear = speedup_table(runs_of(seeds), 'loss', 'base', ladder, compute=dict(good=2.))['good']
    assert abs(dear['speedup'] - .6) < .01
    wide = speedup_table(runs_of(seeds), 'loss', 'base', ladder_of([.25, .5, 1, 2, 4, 8, 16]))
    assert abs(wide['good']['speedup'] - 1.2) < .02
    strong = runs_of(seeds | dict(ours=law([3, 3.02, 2.98])))
    found = speedup_table(strong, 'loss', 'base', ladder_of([.5, 1, 2, 4], noise=1e-5))['ours']
    assert abs(found['speedup'] - 3) < .15


@pytest.mark.parametrize('budgets, said', [
    ([1, 2], 'three budgets'), ([2, 3, 4], 'below and above 1'),
    (['a', 1, 2], 'named by their budgets'), ([-1, 1, 2], 'named by')])
def test_ladders_that_are_none(budgets, said):
    runs = runs_of(dict(base=[1., 1.1, 1.2], ours=[1., 1.1, 1.3]))
    ladder = runs_of({b: [1., 2., 3.] for b in budgets})
    with refuses(ValueError, said): speedup_table(runs, 'loss', 'base', ladder)


def test_what_cannot_be_told_is_said():
    ladder, base = ladder_of([.5, 1, 2]), law([1, 1, 1])
    def told(ours):
        both = runs_of(dict(base=base, ours=ours))
        return speedup_table(both, 'loss', 'base', ladder)['ours']['worth']
    same(told(law([1, 1])), 'unknown: 2 seeds shared with the ladder, not three')
    same(told([1., math.nan, 1.]), 'unknown: a run ended in nan or infinity')
    flat = runs_of({b: [1. + .1*b]*3 for b in (.5, 1, 2)})
    with refuses(ValueError, 'does not fall'):
        speedup_table(runs_of(dict(base=base, ours=base)), 'loss', 'base', flat)


def speedups(n, worth, luck, noise, trials, seed=0):
    "How often the interval holds a variant that is worth so much"
    rng, budgets = np.random.default_rng(seed), np.array([.5, 1., 2.])
    lucks = rng.normal(0, luck, (trials,n,1))
    ladder = law(budgets) + lucks + rng.normal(0, noise, (trials,n,3))
    ours = law(worth) + lucks[...,0] + rng.normal(0, noise, (trials,n))
    log, half, _ = log_speedup(budgets, ladder, ours - ladder[...,1])
    return np.mean(abs(log - math.log(worth)) < half)


def test_a_speedup_holds_in_a_small_simulation():
    for n in (3, 5, 10): assert abs(speedups(n, 1.2, .01, .004, 6000) - .95) < .02


@pytest.mark.exhaustive
@pytest.mark.parametrize('n', [3, 5, 10])
@pytest.mark.parametrize('luck, noise', [(.01, .004), (.003, .01)])
def test_speedups_hold_and_false_alarms_are_as_announced(n, luck, noise):
    for worth in (.8, 1., 1.2, 1.6):
        assert abs(speedups(n, worth, luck, noise, 50_000, n) - .95) < .01


def test_in_earnest_no_device_moved_the_difference():
    "What benchmarks/seeds.py measured: z of each device against as many independent seeds"
    kept = json.loads((ROOT/'benchmarks'/'results'/'seeds.json').read_text())
    rows = [r for table in (kept['wide'], kept['late']) for r in table.values() if 'z' in r]
    assert kept['seeds'] == 20 and len(rows) >= 6 and all(abs(r['z']) < 3 for r in rows)
    assert kept['wide']['paired by name']['variance'] < kept['wide']['independent']['variance']


# ---- results elsewhere

def test_an_object_is_described_the_same_before_and_after_it_was_copied():
    "copyreg writes __slotnames__ into a class when it is first asked, and runs were done again"
    class Own:
        def __init__(self): self.n = 3
        def __call__(self, v, seed): return self.n
    first = describe(Own())
    same([describe(Own()), describe(Own())], [first]*2)


def test_effects_and_exports(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (2, 8))
    row = runs_of(dict(a=a, b=b)).table('loss', 'a')['b']
    assert abs(row['effect'] - (b - a).mean()/(b - a).std(ddof=1)) < 1e-12
    assert f'{row["effect"]:+.2g} sd' in repr(runs_of(dict(a=a, b=b)).table('loss', 'a'))
    log = [dict(step=i, loss=i/7, note='a,"b"\n') for i in range(3)]
    runs = ablate(lambda v, s: log, ['x,y', 'z'], **quiet)
    frame = runs.to_frame()
    same((frame.shape, list(frame)), ((18, 5), ['variant', 'seed', 'step', 'loss', 'note']))
    import pandas
    assert pandas.read_csv(runs.to_csv(tmp_path/'runs.csv')).equals(frame)


@pytest.mark.exhaustive
def test_runs_arrive_in_trackio(tmp_path):
    script = '''if 1:
        import trackio
        from gptlab.ablation import Runs
        import gptlab.studies
        log = [dict(step=i, loss=i/7) for i in range(5)]
        runs = Runs([dict(variant=v, seed=s, log=log) for v in 'ab' for s in (0, 1)])
        print(runs.to_trackio('lab', every=3))
        print(sorted(r.name for r in trackio.Api().runs('lab')))'''
    ran = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                         timeout=120, env=dict(os.environ, TRACKIO_DIR=str(tmp_path)))
    names = ['a seed 0', 'a seed 1', 'b seed 0', 'b seed 1']
    assert ran.stdout.count(str(names)) == 2, ran.stdout + ran.stderr
