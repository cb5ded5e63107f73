"""Curves at their ends, and settings that are refused."""
import numpy as np
import pytest
import torch
from fastcore.test import test_eq as same

from gptlab.schedules import (apply_schedule, constant, cosine, Curve, inverse_sqrt, linear,
                              piecewise_linear, plot_curves, wsd)


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
