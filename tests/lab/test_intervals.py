"""Intervals against scipy's own tests, the equation of their limits, and their coverage."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from colm.lab.intervals import (
    Share,
    estimate_difference,
    estimate_gain,
    estimate_macro,
    estimate_mean,
    estimate_share,
)

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


@pytest.mark.parametrize("values", [[np.nan, 1.0], [np.inf, 1.0], [np.inf, -np.inf], [np.nan] * 3, [np.inf]])
def test_a_run_that_diverged_is_neither_better_nor_worse(values: list[float]) -> None:
    found = estimate_mean(values)
    assert found is not None
    assert np.isnan(found.mean)
    assert (found.half, found.sign, found.seeds) == (None, 0, len(values))
    other = estimate_difference({"0": np.inf, "1": 1.0}, {"0": 1.0, "1": np.inf})  # each diverged with another seed
    assert other is not None
    assert other.sign == 0


def test_few_seeds() -> None:
    assert estimate_mean([]) is None
    assert estimate_difference({"0": 1.0}, {"1": 1.0}) is None
    alone = estimate_mean([2.0])
    assert alone == (2.0, None, 1)
    assert alone is not None
    assert alone.sign == 0  # one seed shows nothing
    equal = estimate_mean([2.0, 2.0])
    assert equal == (2.0, 0.0, 2)


@given(st.integers(1, 300), st.data())
def test_the_limits_of_a_share_are_those_that_a_score_test_does_not_reject(rows: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    share = estimate_share(right, rows)
    z2 = stats.norm.ppf(0.975) ** 2
    # (share - p)^2 = z^2 p (1 - p) / rows, as a polynomial in p
    limits = np.roots([1 + z2 / rows, -2 * share.value - z2 / rows, share.value**2]).real
    assert share.value == right / rows
    assert (share.low, share.high) == pytest.approx((limits.min(), limits.max()), abs=1e-6)
    assert 0 <= share.low <= share.value <= share.high <= 1


def test_the_mean_over_sources() -> None:
    assert estimate_macro([]) is None
    one = estimate_share(3, 7)
    assert estimate_macro([one]) == pytest.approx(one)
    both = estimate_macro([estimate_share(30, 30), estimate_share(30, 30)])
    assert both is not None
    assert both.value == both.high == 1
    assert estimate_share(30, 30).low < both.low < 1


def test_intervals_of_means_and_gains_have_the_stated_coverage() -> None:
    draw = random.Random(0)
    sources = [(0.9, 20), (0.3, 60), (0.05, 40)]
    truth = sum(chance for chance, _ in sources) / 3
    held = gained = 0
    for _ in range(600):
        shares, pairs = [], []
        for chance, rows in sources:
            first = [draw.random() < chance for _ in range(rows)]
            second = [right if draw.random() < 0.7 else draw.random() < chance for right in first]
            shares.append(estimate_share(sum(first), rows))
            pairs.append(list(zip(first, second, strict=True)))
        macro, gain = estimate_macro(shares), estimate_gain(pairs)
        assert macro is not None
        assert gain is not None
        held += macro.low <= truth <= macro.high
        gained += gain.low <= 0 <= gain.high
    assert 0.92 < held / 600 < 0.985
    assert 0.92 < gained / 600 < 0.995


def test_gains() -> None:
    assert estimate_gain([]) is None
    same = estimate_gain([[(True, True), (False, False)] * 10])
    assert same is not None
    assert same.value == 0
    assert same.low < 0 < same.high  # models that never differed may differ on other rows
    better, worse = estimate_gain([[(False, True)] * 9]), estimate_gain([[(True, False)] * 9])
    assert better is not None
    assert worse is not None
    assert better.value == 1
    assert better == pytest.approx(Share(-worse.value, -worse.high, -worse.low))
    alone = estimate_gain([[(False, True)]])
    assert alone is not None
    assert -1 < alone.low < alone.high == 1  # a share cannot gain more
