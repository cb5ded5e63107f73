"""Plans against published numbers, against real runs, and against what cannot be planned."""
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from common import refuses
from gptlab import autoconfig
from gptlab.autoconfig import (auto_plan, calibrate, depth_plan, dial_width, estimate, Estimate,
                               fit_speed, hlb_scale, house_dial, house_groups, house_rule, lab_dial,
                               lab_rule, law_counts, nanochat_dial, nanochat_rule, parse_size,
                               power_lines, Rule, Speed, step_law, step_rule, step_work, time_steps,
                               vocab_law)
from gptlab.core import set_seed
from gptlab.model import check_model, GPT, GPTConfig, unwrapped
from gptlab.optimizers import adamw, Opt
from gptlab.trainer import Trainer


# depth: width, N_nv, V*, V, N_scaling at V=50257, batch, lr, wd, steps, FLOPs per token
GPT_LAB = {
    4: (256, 4_194_360, 2065.7, 2048, 17_072_176, 2**18, .707107, 6.290672, 716, 1.134431e8),
    12: (768, 113_246_664, 10712.3, 10752, 151_880_112, 2**19, 1., 1., 3186, 1.010371e9),
    20: (1280, 524_289_240, 23027.7, 23040, 588_678_320, 2**20, 1.414214, .364870, 6175,
         3.807321e9)}

# scale: width, depth, parameters, capacity, lr, decay base, power of the gradient
HLB = {.5: (256, 5, 27_805_189, 64234, 3.259006e-3, 8.10925, -.383515),
       1: (384, 8, 46_009_736, 57236, 2.525870e-3, 7.22228, -.381301),
       8: (1216, 25, 353_410_969, 25689, 9.649678e-4, 4.66359, -.373052)}

# prices of a device that does not exist, for tests that need no clock
MADE_UP = Speed(dict(calls=1e-3, operations=1e-11, bytes=1e-10, parameters=1e-9, products=1e-10),
                [], 'nowhere')


# ---- published rows

@pytest.mark.parametrize('depth', GPT_LAB)
def test_gpt_lab_rows(depth):
    width, non_vocab, _, V, scaling, batch, lr, wd, steps, flops = GPT_LAB[depth]
    plan = depth_plan(depth, lab_rule, vocab_size=50257, rows=32)
    assert plan.cfg.d_model == width and plan.counts['non_vocab'] == non_vocab
    assert plan.counts['scaling'] == scaling
    assert vocab_law(non_vocab, width) == V
    assert (plan.batch, plan.steps) == (batch, steps)
    assert (round(plan.lr, 6), round(plan.wd, 6)) == (lr, wd)
    assert f'{plan.counts["flops"]:.6e}' == f'{flops:.6e}'
    assert plan.accumulate*32*2048 == batch


def test_vocabulary_before_rounding():
    "Rounded to single tokens, the published values with one decimal"
    for width, n, best, *_ in GPT_LAB.values(): assert abs(vocab_law(n, width, 1) - best) <= .5
    assert vocab_law(1, 64) == 257 and vocab_law(1, 64, special=9) == 265


def test_without_a_vocabulary_it_follows_from_the_depth():
    plan = depth_plan(12, lab_rule)
    assert plan.cfg.vocab_size == 10752 and 'Tao' in plan.because['vocab']


def test_nanochat_published_table():
    "dev/LOG.md, 2026-02-05: parameters that count, tokens and batch at a ratio of 10.5"
    table = {8: (42e6, .44e9, 18), 10: (70e6, .7e9, 19), 18: (324e6, 3.4e9, 20),
             50: (6.2e9, 65.6e9, 21)}
    for depth, (n, tokens, power) in table.items():
        plan = depth_plan(depth, nanochat_rule, vocab_size=32768, ratio=10.5)
        assert plan.batch == 2**power
        assert abs(plan.counts['scaling']/n - 1) < .03 and abs(plan.tokens/tokens - 1) < .06
    counts = law_counts(nanochat_dial(12))
    assert counts['scaling'] - counts['matrices'] == 25_165_824       # LOG.md, lm_head
    # gates read 12 channels now, and 32 then
    assert counts['matrices'] - 6*12*6 == 84_935_808 - 6*32*6


def test_hlb_rows():
    for scale, golden in HLB.items():
        made = [*hlb_scale(scale).values()][:7]
        assert made[:4] == [*golden[:4]] and np.allclose(made[4:], golden[4:], rtol=2e-6)
    h = hlb_scale(1)
    target = lambda t: (h['grad_scale']*(t + .01))**h['grad_power']
    assert np.allclose([target(t) for t in (0, 5, 100, 995)],
                       [2.31964e-3, 2.16756e-4, 6.92152e-5, 2.88235e-5], rtol=1e-5)
    decay = [16*h['decay_base']**-loss for loss in (6, 3.8, 2)]
    assert np.allclose(decay, [1.127e-4, 8.733e-3, .3067], rtol=1e-3)


def test_step_law_is_its_authors_own():
    "Their thousand bootstrap fits, whose means are 0.5863, -0.71292, 0.30749 and -0.5435, 0.57094"
    for N, D in ((1e8, 1e10), (7e9, 1.4e12)):
        batch, rate, wd = step_law(dict(non_vocab=N), D)
        mean = math.exp(.58631 - .712922*math.log(N) + .307491*math.log(D))
        assert abs(rate/mean - 1) < .02 and wd == 1.
        assert .7 < batch/math.exp(-.543542 + .570944*math.log(D)) < 1.42


# ---- what follows from what

def test_power_lines_at_the_reference_changes_nothing():
    assert power_lines({}, 1e9, 1e9, 2**19) == (2**19, 1., 1.)
    batch, lr, wd = power_lines({}, 8e9, 1e9, 2**19)
    assert batch == 2**20 and lr == 2**.5 and wd == 2**.5/8


def test_lengths_have_a_priority():
    make = partial(depth_plan, 2, vocab_size=512)
    asked = dict(steps=7, flops=1e12, tokens=1e6, ratio=3)
    assert make(**asked).steps == 7
    free = make()
    by_flops = make(flops=1e12, tokens=1e6)
    assert by_flops.steps == round(1e12/(free.counts['flops']*free.batch))
    assert by_flops.batch == free.batch                           # only the end has changed
    assert make(tokens=1e6, ratio=3).tokens == 10**6
    assert make(ratio=3).tokens == 3*free.counts['scaling']
    assert make(tokens=1e6).batch < free.batch                    # the batch has changed, too


@pytest.mark.parametrize('minutes', [10, pytest.param(600, marks=pytest.mark.exhaustive)])
def test_seconds_are_what_was_asked(minutes):
    plan = depth_plan(2, vocab_size=512, seconds=60*minutes, speed=MADE_UP)
    took = estimate(plan, MADE_UP, room=1e12).seconds
    step = took/plan.steps
    assert 60*minutes - 2*step < took <= 60*minutes + 1e-6
    assert plan.tokens == plan.steps*plan.batch


def test_a_batch_of_ones_own_moves_rates_by_its_root():
    law, mine = (depth_plan(2, vocab_size=512, batch=b) for b in (None, 2**15))
    assert mine.batch == 2**15 and mine.because['batch'] == 'asked'
    assert math.isclose(mine.lr/law.lr, (2**15/law.batch)**.5)


def test_groups_get_the_rates_of_the_plan():
    plan = depth_plan(4, lab_rule, vocab_size=512, context_length=64)
    rates = {str(g.at): g.settings for g in plan.groups()}
    muon = next(s for s in rates.values() if 'ns_steps' in s)
    assert math.isclose(muon['lr'], .02*plan.lr) and math.isclose(muon['wd'], .28*plan.wd)
    embed = plan.groups()[0].settings
    assert math.isclose(embed['lr'], .3*plan.lr*(256/768)**-.5)
    with torch.device('meta'): model = GPT(plan.config())
    assert len(plan.optimizer(model).param_groups) == 6           # every group claims something


def test_the_rule_is_a_value():
    wide = replace(house_rule, dial=partial(house_dial, aspect=128), ratio=20.)
    plan = depth_plan(2, wide, vocab_size=512)
    assert plan.cfg.d_model == 256 and plan.tokens == 20*plan.counts['scaling']


@pytest.mark.parametrize('dial', [house_dial, lab_dial, nanochat_dial])
def test_dials_make_sound_models(dial):
    assert check_model(dial(2, vocab_size=64, context_length=32, aspect=16, d_head=16)).ok


def test_plans_say_what_was_asked_and_why():
    text = repr(depth_plan(3, vocab_size=512, steps=9))
    assert text.count('asked') == 3 and 'Bergsma et al. 2025' in text
    assert '| steps | 9 | asked |' in depth_plan(3, steps=9)._repr_markdown_()
    assert 'Li et al. 2025' in repr(depth_plan(3, step_rule))


# ---- a plan and a run

def tiny(**kw):
    return depth_plan(1, vocab_size=64, context_length=16, batch=64, rows=2, steps=3, **kw)


def trained(plan):
    set_seed(0)
    model = GPT(plan.config())
    stream = autoconfig._Zeros(plan.rows, plan.cfg.context_length)
    return Trainer(model, plan.optimizer(model), stream, callbacks=[], eval_every=0, device='cpu',
                   accumulate=plan.accumulate).fit(plan.steps)


def test_a_run_by_the_plan_is_what_was_planned():
    plan = tiny()
    run = trained(plan)
    rows = {r['what']: r for r in plan.compare(run, estimate(plan, MADE_UP, room=1e12))}
    for what in ('parameters', 'steps', 'tokens per step', 'operations'):
        assert rows[what]['difference'] == '+0.0%', rows[what]
    assert 'seconds per step' in rows
    run.step -= 1                                                 # a run that stopped early
    assert {r['what']: r for r in plan.compare(run)}['steps']['difference'] == '-33.3%'


def test_the_speed_of_a_made_up_device_is_found():
    "Exact times give the prices back, and any other size is then exact as well"
    shapes = [(1, 1), (1, 4), (2, 1), (2, 4), (3, 1)]
    work = {s: step_work(house_dial(s[0], 64, 32), s[1]) for s in [*shapes, (4, 2)]}
    found = fit_speed([work[s] | dict(seconds=MADE_UP.step(work[s])) for s in shapes])
    for s in work: assert math.isclose(found.step(work[s]), MADE_UP.step(work[s]), rel_tol=1e-6)
    assert '+0%' in repr(found.rows())


def test_work_of_accumulated_batches():
    cfg = house_dial(2, 64, 32)
    one, three = step_work(cfg, 2), step_work(cfg, 2, accumulate=3)
    for kind in ('calls', 'operations', 'bytes'): assert three[kind] == 3*one[kind]
    for kind in ('parameters', 'products'): assert three[kind] == one[kind]


def test_calibration_measures_real_steps_and_leaves_the_generator_alone(capsys):
    torch.manual_seed(5)
    shapes = (1, 1), (1, 2), (2, 1)
    speed = calibrate(seconds=.01, vocab_size=64, context_length=16, shapes=shapes, device='cpu')
    now = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(now, torch.get_rng_state())
    assert len(speed.points) == 3 and all(p['seconds'] > 0 for p in speed.points)
    assert min(speed.seconds.values()) >= 0


def test_memory_is_the_account_of_bytes():
    plan = tiny()
    model = GPT(plan.config())
    need = model.memory(plan.rows, 16)
    assert estimate(plan, MADE_UP, room=1e12).memory == (need['weights'] + need['peak']
                                                         + 8*model.n_params())


@pytest.mark.exhaustive
def test_bytes_of_deep_models_by_extension():
    "Within two percent of the whole account, also where blocks differ"
    for dial in (house_dial, lab_dial):
        cfg = dial(13, vocab_size=64, context_length=32, aspect=8, d_head=8)
        near, whole = autoconfig._bytes(cfg, 2), autoconfig._memory_of(cfg, 2)
        for k in near: assert abs(near[k]/whole[k] - 1) < .02, (dial, k)


def test_what_fits_fits():
    plan = depth_plan(3, vocab_size=512, context_length=64, batch=2**12, rows=32)
    for room in (150e6, 12e6, 1e3):
        e = estimate(plan, MADE_UP, room=room)
        if e.fits: continue
        if e.advice.startswith('rows='):
            rows = int(e.advice.split()[0][5:])
            assert autoconfig._memory(plan.cfg, rows) <= room
            assert autoconfig._memory(plan.cfg, 2*rows) > room
        elif e.advice.startswith('depth='):
            depth = int(e.advice.split()[0][6:])
            dial = partial(house_dial, vocab_size=512, context_length=64)
            assert autoconfig._memory(dial(depth), 1) <= room < autoconfig._memory(dial(depth+1), 1)
        else: assert autoconfig._memory(house_dial(1, 512, 64), 1) > room
        assert 'does not fit' in repr(e)


def test_cost_counts_every_device():
    plan = replace(tiny(), devices=2, batch=128)
    e = Estimate(plan, 3600., 1, None, 2., '')
    assert e.cost == 3*2*2 and e.fits and '12.00' in repr(e)


# ---- one question, one plan

def test_like_a_size_takes_the_nearest_depth():
    plan = auto_plan(like='2M', tok=2048)
    sizes = {d: law_counts(house_dial(d, 2048))['all'] for d in range(1, 6)}
    assert plan.cfg.n_layers == min(sizes, key=lambda d: abs(math.log(sizes[d]/2e6)))
    assert [parse_size(s) for s in ('124M', '1.5b', '300k', '7', 9.)] == [124e6, 1.5e9, 3e5, 7., 9.]


@pytest.mark.parametrize('minutes', [3, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_minutes_take_the_deepest_that_fits(minutes):
    plan = auto_plan(minutes=minutes, tok=512, speed=MADE_UP, context_length=64)
    took = lambda d: estimate(depth_plan(d, vocab_size=512, context_length=64), MADE_UP,
                              room=1e12).seconds
    depth = plan.cfg.n_layers
    assert took(depth) <= 60*minutes < took(depth + 1)


def test_too_few_minutes_shorten_the_smallest():
    plan = auto_plan(minutes=.02, tok=512, speed=MADE_UP, context_length=64)
    full = depth_plan(1, vocab_size=512, context_length=64)
    assert plan.cfg.n_layers == 1 and plan.tokens < full.tokens


def test_a_tokenizer_decides_the_vocabulary():
    from gptlab.tokenizer import ByteTokenizer
    assert auto_plan(depth=2, tok=ByteTokenizer()).cfg.vocab_size == 257


def test_rows_are_lowered_to_the_memory(monkeypatch):
    full = auto_plan(depth=1, tok=512, context_length=64, steps=1)
    room = autoconfig._memory(full.cfg, full.rows) - 1
    monkeypatch.setattr(autoconfig, '_free_memory', lambda device: room)
    less = auto_plan(depth=1, tok=512, context_length=64, steps=1)
    assert less.rows < full.rows and less.batch == full.batch
    monkeypatch.setattr(autoconfig, '_free_memory', lambda device: 10_000)
    with refuses(ValueError, 'no depth fits'): auto_plan(depth=1, tok=512, context_length=64)


# ---- what cannot be

def test_plans_that_cannot_be():
    with refuses(ValueError, 'depth'): depth_plan(0)
    with refuses(TypeError, 'depth'): depth_plan(2.5)
    with refuses(ValueError, 'cannot be divided'): depth_plan(4, batch=1000)
    with refuses(ValueError, 'batch=6144'): depth_plan(4, batch=6000, rows=8)
    with refuses(ValueError, 'cannot be divided'): depth_plan(4, batch=2**12, devices=3)
    with refuses(ValueError, 'steps'): depth_plan(4, steps=0)
    with refuses(TypeError, 'steps'): depth_plan(4, steps=1.5)
    with refuses(TypeError, 'n must be a whole number'): vocab_law(1.5, 64)
    with refuses(ValueError, 'speed=calibrate()'): depth_plan(4, seconds=60)
    with refuses(TypeError, 'Rule'): depth_plan(4, rule='lab')
    with refuses(ValueError, 'scale'): hlb_scale(.001)


def test_wishes_that_cannot_be():
    for bad in ('huge', '', '-3M', '12 monkeys', '0M', 'nan', '1e999'):
        with refuses(ValueError, 'is no size'): auto_plan(like=bad)
    for bad in (0, -1, float('nan'), float('inf')):
        with refuses(ValueError, 'minutes'): auto_plan(minutes=bad, speed=MADE_UP)
    with refuses(TypeError, 'minutes'): auto_plan(minutes='ten', speed=MADE_UP)
    with refuses(ValueError, 'give depth='): auto_plan()
    with refuses(ValueError, 'only one of depth and like'): auto_plan(depth=2, like='1M')


def test_estimates_that_cannot_be():
    with refuses(TypeError, 'Plan'): estimate(GPTConfig())
    with refuses(ValueError, 'room'): estimate(tiny(), MADE_UP, room=0)
    with refuses(ValueError, 'no step was measured'): fit_speed([])
    with refuses(ValueError, 'seconds'): calibrate(seconds=0)
    with refuses(ValueError, 'has not trained'):
        model = GPT(GPTConfig(vocab_size=8, d_model=16, context_length=8))
        tiny().compare(Trainer(model, Opt(model, adamw()), [], callbacks=[], device='cpu'))


# ---- longer

@pytest.mark.exhaustive
def test_the_recorded_errors_are_below_fifteen_percent():
    "Of the benchmark, which times sizes that the calibration has not seen"
    import json
    from common import ROOT
    made = json.loads((ROOT/'benchmarks/results/plans_speed.json').read_text())
    errors = [r['predicted']/r['measured'] - 1 for r in made['unseen']]
    assert len(errors) >= 3 and max(map(abs, errors)) < .15, errors
