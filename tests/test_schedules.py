"""Curves at their ends, and settings that are refused."""
import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same

from gptlab.schedules import (apply_schedule, by_loss, constant, cosine, Curve, exponential,
                              inverse_sqrt, linear, piecewise_linear, plot_curves, power_law, wsd)


@pytest.mark.parametrize('curve', [wsd(warmup=0), constant(), linear(0), cosine(0)], ids=str)
def test_without_warmup_a_curve_is_full_from_the_first_moment(curve): same(curve(0), 1)


@pytest.mark.parametrize('make, said', [
    (lambda: cosine(1.), 'warmup'), (lambda: inverse_sqrt(0.), 'warmup'),
    (lambda: wsd(.7, .5), 'more than the whole')])
def test_pieces_that_do_not_fit_are_refused(make, said):
    with pytest.raises(ValueError, match=said): make()


def test_a_setting_that_no_group_has_is_refused():
    opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=.1)
    with pytest.raises(ValueError, match='no group has the setting betas'):
        apply_schedule(opt, dict(lr=wsd(), betas=wsd()), .5)


# ---- R11: what makes no sense is refused when the curve is made, or when it is applied

NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize('make', [constant, linear, wsd, cosine, inverse_sqrt])
@pytest.mark.parametrize('warmup', [-.1, 1.1, NAN, INF, 'x', None, True, [0]], ids=repr)
def test_r11_a_warmup_that_is_no_fraction(make, warmup):
    with pytest.raises((ValueError, TypeError), match='warmup'): make(warmup)


@pytest.mark.parametrize('make, name', [(linear, 'end'), (wsd, 'end'), (wsd, 'cooldown'),
                                        (cosine, 'end'), (inverse_sqrt, 'power')])
@pytest.mark.parametrize('value', [-.1, NAN, INF, 'x', None, True], ids=repr)
def test_r11_a_schedule_below_0(make, name, value):
    with pytest.raises((ValueError, TypeError), match=name): make(**{name: value})


@pytest.mark.parametrize('corners', [(), (3,), ((0, 1), (1,)), ((0, -1),), ((0, NAN),),
                                     ((NAN, 1),), (('x', 1),), ((0, 1), None)], ids=str)
def test_r11_corners_that_are_none(corners):
    with pytest.raises((ValueError, TypeError), match='corner|multiplier'):
        piecewise_linear(*corners)


def opt(): return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=.1, momentum=.9)


@pytest.mark.parametrize('schedule', [lambda p: -1., lambda p: NAN, lambda p: INF, lambda p: None,
                                      lambda p: 'x', dict(momentum=lambda p: -.5)])
def test_r11_a_curve_of_ones_own_below_0(schedule):
    made = opt()
    with pytest.raises((ValueError, TypeError), match='the curve of (lr|momentum)'):
        apply_schedule(made, schedule, .5)
    same((made.param_groups[0]['lr'], made.param_groups[0]['momentum']), (.1, .9))


@pytest.mark.parametrize('kw, said', [
    (dict(opt=None), 'opt'), (dict(schedule='cosine'), 'schedule'), (dict(schedule=1.), 'schedule'),
    (dict(schedule=dict(lr=.5)), 'schedule'), (dict(progress=NAN), 'progress'),
    (dict(progress='x'), 'progress'), (dict(run=3), 'run')], ids=str)
def test_r11_what_cannot_be_applied(kw, said):
    with pytest.raises((ValueError, TypeError), match=said):
        apply_schedule(**dict(opt=opt(), schedule=constant(), progress=.5) | kw)


@pytest.mark.parametrize('curve', [lambda p: torch.tensor(.5), lambda p: np.float32(.5)])
def test_a_curve_may_answer_with_a_tensor_or_numpys_number(curve):
    made = opt()
    apply_schedule(made, curve, .5)
    same((made.param_groups[0]['lr'], type(made.param_groups[0]['lr'])), (.05, float))


def test_r11_curves_that_are_none():
    with pytest.raises(TypeError, match='f must be a function'): Curve(None, 'none')
    with pytest.raises(TypeError, match='a function'): constant()*2
    with pytest.raises(TypeError, match='progress'): constant()('x')
    with pytest.raises(TypeError, match='half'): plot_curves(half=.5)


# ---- curves that ask for the run

@pytest.mark.parametrize('t, value', [(0, .02), (50, .51), (99, .9902), (100, 1.), (101, .946058),
                                      (200, .691280), (999, .580310)])
def test_hlb_gpts_curve(t, value):
    made = power_law(.08, warmup=100, start=.02)
    assert made(.5, dict(step=t)) == pytest.approx(value, rel=2e-6)
    same(made(0., dict(step=t)), made(1., dict(step=t)))             # the total plays no part


def test_without_a_run_it_is_the_first_step():
    same([power_law(.2)(.7), exponential(.9)(.7), by_loss(2.)(.7)], [1, 1, 0])
    same([power_law(.2, 10, .3)(0), power_law(0.)(0, dict(step=10**6))], [.3, 1])


@pytest.mark.parametrize('loss, decay', [(6., 1.127e-4), (3.8, 8.733e-3), (2., .3067)])
@pytest.mark.parametrize('kind', [float, torch.tensor, np.float32])
def test_hlb_gpts_decay(loss, decay, kind):
    assert 16*by_loss(7.22228)(0, dict(loss=kind(loss))) == pytest.approx(decay, rel=1e-3)


@pytest.mark.parametrize('loss', [NAN, INF, -INF, torch.tensor(NAN)])
def test_a_loss_that_is_none_gives_no_decay_and_does_not_end_the_run(loss):
    same(by_loss(7.)(0, dict(loss=loss)), 0)


def test_a_product_gives_the_run_to_whoever_asks():
    cooled = power_law(.5)*wsd(0, .5)
    assert cooled(.75, dict(step=3)) == pytest.approx(.25)           # 4^−½ · ½
    assert (wsd(0, .5)*power_law(.5))(.75, dict(step=3)) == pytest.approx(.25)
    plain = Curve(lambda p: .5, 'half')*(lambda p, run: run.get('step', 7))
    same([plain(0), plain(0, dict(step=4))], [3.5, 2])


def test_a_curve_of_steps_draws_them():
    same([power_law(.2).steps, power_law(.1, warmup=900).steps, wsd().steps], [1000, 3600, None])
    same((wsd()*power_law(.1, warmup=900)*exponential(.9)).steps, 3600)
    assert '1,000 steps' in svg(power_law(.2)) and 'steps' not in svg(wsd())
    flat = svg(Curve(lambda p, run: run.get('step', 0), 'x'))
    assert svg(Curve(lambda p, run: run.get('step', 0), 'x', steps=9)) != flat


def svg(curve):
    import base64
    import re
    return base64.b64decode(re.search('base64,([^"]+)"', curve._repr_html_())[1]).decode()


@pytest.mark.parametrize('make, value', [
    (power_law, -1), (power_law, NAN), (power_law, 'x'), (exponential, 0.), (exponential, 1.01),
    (exponential, NAN), (by_loss, .9), (by_loss, INF), (by_loss, None),
    (lambda v: power_law(.1, warmup=v), -1), (lambda v: power_law(.1, warmup=v), 1.5),
    (lambda v: power_law(.1, 3, v), -.1), (lambda v: Curve(constant(), 'x', steps=v), 0)])
def test_curves_of_steps_that_are_none(make, value):
    with pytest.raises((ValueError, TypeError), match='must be'): make(value)


@pytest.mark.parametrize('setting, near', [('momentun', 'momentum'), ('LR', None), ('lrr', 'lr'),
                                           ('weight_decy', 'weight_decay'), (3, None)])
def test_a_setting_that_is_misspelt_names_the_nearest(setting, near):
    made = opt()
    with pytest.raises(ValueError, match=f'no group has the setting {setting}') as e:
        apply_schedule(made, {setting: constant()}, .5)
    said = str(e.value)
    assert f'did you mean {near}?' in said if near else 'did you mean' not in said
    same(made.param_groups[0]['lr'], .1)


def test_a_groups_own_curve_for_a_setting_that_it_lacks_is_refused():
    made = opt()
    made.param_groups[0]['schedule'] = dict(betaz=constant())
    with pytest.raises(ValueError, match='no group has the setting betaz'):
        apply_schedule(made, constant(), .5)
