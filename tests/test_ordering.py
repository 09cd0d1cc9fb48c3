"""Dealing rows into steps so that the sum of their features stays at its expectation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from colm import ConfigError, DataError
from colm.ordering import UNITS, deal_balanced, default_window, whole_numbers


def deal_slowly(rows: list[list[int]], sizes: Sequence[int], window: int, patience: int) -> list[int]:
    """Deal whole numbers with plain loops."""
    count, dim = len(rows), len(rows[0])
    total = [sum(row[i] for row in rows) for i in range(dim)]
    order: list[int] = []
    waiting: list[tuple[int, int]] = []  # row and the step in which it entered the window
    unread = list(range(count))
    for step, size in enumerate(sizes):
        while unread and len(waiting) < window * size:
            waiting.append((unread.pop(0), step))
        late = [row for row, entered in waiting if step - entered >= patience]
        for _ in range(size):
            if late:
                best = late.pop(0)
            else:
                goal = [(len(order) + 1) * total[i] // count for i in range(dim)]
                best, least = -1, -1
                for row, _ in waiting:
                    length = sum(
                        (sum(rows[other][i] for other in order) + rows[row][i] - goal[i]) ** 2 for i in range(dim)
                    )
                    if best < 0 or length < least:
                        best, least = row, length
            order.append(best)
            waiting = [(row, entered) for row, entered in waiting if row != best]
    return order


STEPS = st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any)


@st.composite
def dealings(draw: st.DrawFn) -> tuple[np.ndarray, list[int], int, int]:
    sizes = draw(STEPS)
    few = st.sampled_from([0.0, 1.0, -1.0, 0.5])  # with equal rows, and ties
    values = draw(st.sampled_from([few, st.floats(-100, 100, width=32)]))
    features = draw(arrays(np.float32, (sum(sizes), draw(st.integers(1, 3))), elements=values))
    return features, sizes, draw(st.integers(1, 4)), draw(st.integers(1, 4))


@settings(max_examples=60)
@given(dealings())
def test_the_order_is_that_of_plain_loops(dealing: tuple[np.ndarray, list[int], int, int]) -> None:
    features, sizes, window, patience = dealing
    found = deal_balanced(features, sizes, window=window, patience=patience)
    assert found.dtype == np.int64
    assert found.tolist() == deal_slowly(whole_numbers(features).tolist(), sizes, window, patience)


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
def test_every_row_comes_once_and_waits_no_longer_than_promised(
    size: int, steps: int, window: int, patience: int, seed: int
) -> None:
    features = np.random.default_rng(seed).standard_exponential((size * steps, 2)) ** 3
    order = deal_balanced(features, [size] * steps, window=window, patience=patience)
    assert sorted(order.tolist()) == list(range(size * steps))
    dealt_in = np.empty(len(order), dtype=int)
    dealt_in[order] = np.arange(len(order)) // size
    enters = np.maximum(0, np.arange(len(order)) // size - (window - 1))  # a step takes as many as it deals
    assert (dealt_in - enters < patience + window).all()
    assert (dealt_in - enters >= 0).all()


def sums(features: np.ndarray, order: np.ndarray, size: int) -> np.ndarray:
    """Return the norm of the sum of what was dealt after each step."""
    return np.linalg.norm((features - features.mean(0))[order].cumsum(0)[size - 1 :: size], axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_the_sum_stays_far_smaller_than_in_a_random_order(seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((4_000, 16)).astype(np.float32)
    order = deal_balanced(rows, [16] * 250)
    assert sums(rows, order, 16).mean() < sums(rows, np.arange(4_000), 16).mean() / 10


@settings(max_examples=20)
@given(st.integers(-64, 64), st.sampled_from([0.25, 1.0, 8.0]))
def test_shifting_and_scaling_all_features_changes_nothing(shift: int, scale: float) -> None:
    rows = np.random.default_rng(0).integers(-8, 8, (64, 3)).astype(np.float32)
    expected = deal_balanced(rows, [8] * 8, window=3)
    np.testing.assert_array_equal(deal_balanced((rows + shift) * scale, [8] * 8, window=3), expected)


def test_one_label_a_row_spaces_the_sources_evenly() -> None:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    codes = np.random.default_rng(3).permutation(np.repeat(np.arange(4), np.rint(1_000 * shares).astype(int)))
    order = deal_balanced(np.eye(4, dtype=np.float32)[codes], [10] * 100)
    counts = np.eye(4)[codes[order]].cumsum(0)
    assert np.abs(counts - shares * np.arange(1, 1_001)[:, None]).max() < 1


def test_equal_rows_keep_their_order_and_a_window_of_one_step_keeps_the_steps() -> None:
    assert deal_balanced(np.ones((9, 2)), [4, 4, 1]).tolist() == list(range(9))
    rows = np.random.default_rng(0).standard_normal((12, 2))
    steps = deal_balanced(rows, [4, 4, 4], window=1).reshape(3, 4)
    assert np.sort(steps, 1).tolist() == np.arange(12).reshape(3, 4).tolist()
    assert deal_balanced(np.empty((0, 3)), []).tolist() == []


@given(arrays(np.float32, (7, 3), elements=st.integers(-1_000, 1_000)))
def test_whole_numbers_are_the_centered_features_in_units_of_the_longest(features: np.ndarray) -> None:
    centered = features - features.mean(0, dtype=np.float64)
    longest = np.linalg.norm(centered, axis=1).max()
    found = whole_numbers(features)
    assert found.dtype == np.int16
    if longest > 0:
        np.testing.assert_allclose(found / UNITS, centered / longest, atol=0.51 / UNITS)


def test_the_default_window_holds_what_a_random_order_adds_up_to() -> None:
    assert [default_window([32] * steps) for steps in (1, 30, 300, 30_000)] == [4, 4, 13, 123]


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="window=0 must be a whole number of at least 1"):
        deal_balanced(np.ones((2, 1)), [2], window=0)
    with pytest.raises(ConfigError, match="patience=0 must be a whole number of at least 1"):
        deal_balanced(np.ones((2, 1)), [2], patience=0)
    with pytest.raises(DataError, match=r"features has shape \(2, 1\), but the steps have 3 rows"):
        deal_balanced(np.ones((2, 1)), [2, 1])
    with pytest.raises(DataError, match="features of row 1 are not finite"):
        deal_balanced(np.array([[1.0], [np.nan]]), [2])
