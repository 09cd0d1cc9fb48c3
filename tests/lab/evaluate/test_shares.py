from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from colm.lab.evaluate.shares import Share, estimate_gain, estimate_macro, estimate_share


@given(st.integers(1, 300), st.data())
def test_wilson_is_scipys(rows: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    share = estimate_share(right, rows)
    interval = stats.binomtest(right, rows).proportion_ci(method="wilson")
    assert share.low == pytest.approx(interval.low, abs=1e-9)
    assert share.high == pytest.approx(interval.high, abs=1e-9)
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
