"The two tiers share nothing but what repeats, and leave nothing out."
import pytest

from conftest import in_tier, quick_cases


class Item:
    "A collected test: its name and its marks"
    def __init__(self, nodeid, **marks): self.nodeid, self.marks = nodeid, marks

    def get_closest_marker(self, name):
        return getattr(pytest.mark, name)(**self.marks[name]).mark if name in self.marks else None


GRID = [Item(f't.py::grid[{i}]', grid=dict(quick=3)) for i in range(10)]
SAMPLED = [Item(f't.py::large[{i}]', grid=dict(sample=5)) for i in range(100)]
ITEMS = [Item('t.py::plain'), Item('t.py::long', exhaustive={}), Item('t.py::random[0]', repeat={}),
         *GRID]


def names(items): return {i.nodeid for i in items}


def test_every_test_is_in_a_tier_and_only_what_repeats_in_both():
    quick, rest = (names(in_tier(ITEMS, tier)) for tier in (False, True))
    assert quick | rest == names(ITEMS) and quick & rest == {'t.py::random[0]'}
    assert 't.py::plain' in quick and 't.py::long' in rest
    assert len(quick & names(GRID)) == 3 and 't.py::grid[0]' in quick


def test_a_large_grid_is_sampled_with_a_seed():
    first, again, other = (names(in_tier(SAMPLED, True, seed=s)) for s in (0, 0, 1))
    assert len(first) == 5 and first == again != other
    assert 't.py::large[0]' not in first                                # that one runs always
    assert (len(in_tier(SAMPLED, True, count=40)) == 40
            and len(in_tier(SAMPLED, True, count=500)) == 99)


@pytest.mark.parametrize('n, quick', [(1, 1), (2, 3), (7, 3), (100, 7)])
def test_the_cases_that_run_always_are_spread_over_the_grid(n, quick):
    cases = quick_cases(n, quick)
    assert 0 in cases and len(cases) == min(n, quick) and cases <= set(range(n))
