"""Curves at their ends, and settings that are refused."""
import pytest
import torch
from fastcore.test import test_eq as same

from gptlab.schedules import apply_schedule, constant, cosine, inverse_sqrt, linear, wsd


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
