"""Intervals against scipy's own tests; the first reach against a fine grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from colm.lab.report.intervals import estimate_difference, estimate_mean, find_first_reach

losses = st.floats(0.5, 5)


@given(st.lists(losses, min_size=2, max_size=8))
def test_the_interval_is_that_of_a_t_test(values: list[float]) -> None:
    assume(np.std(values) > 1e-6)
    found = estimate_mean(values)
    assert found is not None
    assert found.half is not None
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(low, rel=1e-6)
    assert found.mean + found.half == pytest.approx(high, rel=1e-6)
    assert found.seeds == len(values)


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=8))
def test_the_difference_is_paired(pairs: list[tuple[float, float]]) -> None:
    assume(np.std([a - b for a, b in pairs]) > 1e-6)
    mine = {str(i): a for i, (a, _) in enumerate(pairs)} | {"only mine": 9.0}
    its = {str(i): b for i, (_, b) in reversed(list(enumerate(pairs)))} | {"only its": 0.1}
    found = estimate_difference(mine, its)
    assert found is not None
    assert found.half is not None
    low, high = stats.ttest_rel([a for a, _ in pairs], [b for _, b in pairs]).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert found.sign == (1 if low > 0 else -1 if high < 0 else 0)


def test_by_hand() -> None:
    found = estimate_mean([3.0, 5.0, 7.0])  # t(0.975, 2) = 4.3027, standard error 2 / sqrt(3)
    assert found is not None
    assert found.half == pytest.approx(4.30265 * 2 / 3**0.5, rel=1e-5)


def test_few_seeds() -> None:
    assert estimate_mean([]) is None
    assert estimate_difference({"0": 1.0}, {"1": 1.0}) is None
    alone = estimate_mean([2.0])
    assert alone == (2.0, None, 1)
    assert alone is not None
    assert alone.sign == 0  # one seed shows nothing
    equal = estimate_mean([2.0, 2.0])
    assert equal == (2.0, 0.0, 2)


@given(st.lists(losses, min_size=1, max_size=8), losses)
def test_the_first_reach_is_where_the_line_first_is_low_enough(curve: list[float], target: float) -> None:
    x = [10.0 * i for i in range(len(curve))]
    fine = np.union1d(np.linspace(0, x[-1], 20001), x)
    held = fine[np.interp(fine, x, curve) <= target * (1 + 1e-6)]
    found = find_first_reach(x, curve, target)
    if found is None:
        assert not len(held)
    else:
        assert np.interp(found, x, curve) <= target * (1 + 2e-6)
        if len(held):
            assert found == pytest.approx(held[0], abs=2 * x[-1] / 20000 + 1e-3)


def test_a_curve_reaches_its_own_end_and_skips_gaps() -> None:
    assert find_first_reach([0, 10], [3.0, 2.0], 2.0) == 10
    assert find_first_reach([0, 10], [3.0, 2.0 + 1e-9], 2.0) == 10
    assert find_first_reach([0, 10, 20], [3.0, float("nan"), 1.0], 2.0) == 10
    assert find_first_reach([0], [float("nan")], 2.0) is None
    assert find_first_reach([], [], 2.0) is None
