"""How many random rows a choice, or an order, is worth: against draws with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from colm.lab.probe.noise import estimate_noise
from colm.lab.probe.worth import Choice, Estimate, PoolGradients, average, judge_choices, judge_errors, judge_order

POOL, KEPT, SMALL, WIDTH = 24, 12, 4, 10


def make_pools(count: int, small: int = SMALL) -> list[PoolGradients]:
    draw = np.random.default_rng(0)
    flags = np.arange(POOL) < small
    return [PoolGradients(1 + draw.normal(size=(POOL, WIDTH)), flags) for _ in range(count)]


def at_random(pool: PoolGradients, kept: int, draw: np.random.Generator) -> Choice:
    small = np.flatnonzero(pool.small)
    rows = np.concatenate([small, draw.choice(np.flatnonzero(~pool.small), kept - len(small), replace=False)])
    return Choice(rows, np.full(kept, 1 / kept))


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("kept", [8, 16])
def test_random_rows_are_worth_their_number(kept: int, window: int) -> None:
    pools, draw = make_pools(400), np.random.default_rng(1)
    found = judge_choices(pools, [at_random(pool, kept, draw) for pool in pools], window)
    assert found is not None
    assert found.error is not None
    assert found.value == pytest.approx(kept, rel=0.06)
    assert abs(found.value - kept) < 4 * found.error


def test_a_whole_pool_is_worth_its_rows() -> None:
    pools = make_pools(8, small=0)
    found = judge_choices(pools, [Choice(np.arange(POOL), np.full(POOL, 1 / POOL)) for _ in pools], 2)
    assert found is not None
    assert found.value == pytest.approx(POOL)


def test_what_is_left_out_for_good_counts_more_over_several_pools() -> None:
    pools = make_pools(64, small=0)
    choices = [Choice(np.argsort(pool.rows[:, 0])[:KEPT], np.full(KEPT, 1 / KEPT)) for pool in pools]
    once, often = judge_choices(pools, choices, 1), judge_choices(pools, choices, 16)
    assert once is not None
    assert often is not None
    assert often.value < 0.3 * once.value


def test_no_estimate_without_enough_pools_or_rows() -> None:
    pools = make_pools(3)
    choices = [Choice(np.arange(KEPT), np.full(KEPT, 1 / KEPT)) for _ in pools]
    assert judge_choices(pools, choices, 4) is None
    alone = [PoolGradients(pool.rows[: SMALL + 1], pool.small[: SMALL + 1]) for pool in pools]
    assert judge_choices(alone, [Choice(np.arange(SMALL), np.full(SMALL, 1 / SMALL)) for _ in alone], 1) is None


def test_pools_that_small_sources_fill_are_left_out() -> None:
    pools, full = make_pools(8), make_pools(4, small=KEPT)
    draw = np.random.default_rng(1)
    choices = [at_random(pool, KEPT, draw) for pool in pools]
    filled = [Choice(np.arange(KEPT), np.full(KEPT, 1 / KEPT)) for _ in full]
    assert judge_choices([*full, *pools], [*filled, *choices], 4) == judge_choices(pools, choices, 4)
    assert judge_choices(full, filled, 4) is None


def test_an_order_that_pairs_opposite_rows_is_worth_more_than_a_random_one() -> None:
    draw = np.random.default_rng(2)
    half = draw.normal(size=(400, WIDTH))
    rows = np.concatenate([half, -half])
    paired = np.stack([np.arange(400), np.arange(400) + 400], axis=1).ravel()
    found = judge_order(rows, paired, 8, 1)
    random = judge_order(rows, draw.permutation(800), 8, 1)
    assert found is not None
    assert random is not None
    assert random.value == pytest.approx(8, rel=0.15)
    assert found.value == pytest.approx(800, rel=0.01)


def test_the_noise_scale_is_the_ratio_of_pairs_of_rows() -> None:
    pools = make_pools(5, small=0)
    rows = np.concatenate([pool.rows for pool in pools])
    count = len(rows)
    pairs = [rows[i] @ rows[j] for i in range(count) for j in range(count) if i != j]
    squared = sum(pairs) / len(pairs)
    expected = (np.mean([row @ row for row in rows]) - squared) / squared
    found = estimate_noise(pools, POOL)
    assert found is not None
    assert found.error is not None
    assert found.value == pytest.approx(expected)
    assert abs(found.value - 1) < 4 * found.error  # rows have mean 1 and variance 1 in each coordinate


def test_the_noise_scale_weighs_rows_as_they_are_trained() -> None:
    """Small sources' rows twice as often: as the same rows drawn twice, up to pairs of a row with itself."""
    pools = make_pools(200)
    found = estimate_noise(pools, SMALL + (POOL - SMALL) // 2)
    rows = np.concatenate([np.concatenate([pool.rows[pool.small]] * 2 + [pool.rows[~pool.small]]) for pool in pools])
    mean = rows.mean(0)
    assert found is not None
    assert found.value == pytest.approx(np.square(rows - mean).sum(1).mean() / np.square(mean).sum(), rel=0.02)


def test_no_noise_scale_where_the_mean_is_lost() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert estimate_noise([PoolGradients(rows, np.zeros(2, bool))], 2) is None
    assert estimate_noise([PoolGradients(rows[:1], np.zeros(1, bool))], 1) is None


def judge_by_hand(errors: np.ndarray, window: int) -> float:
    """A window's mean squared length, H times, product by product; each is the mean of all products as far apart."""
    total = 0.0
    for first in range(window):
        for second in range(window):
            apart = abs(first - second)
            found = [errors[i] @ errors[i + apart] for i in range(len(errors) - apart)]
            total += sum(found) / len(found)
    return total / window


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("count", [4, 5, 9])
def test_the_error_of_a_window_is_that_of_its_products(count: int, window: int) -> None:
    errors = np.random.default_rng(3).normal(size=(count, WIDTH)) + 0.3
    assert judge_errors(errors, window).value == pytest.approx(judge_by_hand(errors, window))
    if count == window:
        assert judge_errors(errors, window).value == pytest.approx(window * np.square(errors.mean(0)).sum())


def test_the_interval_of_an_error_leaves_one_pool_out_at_a_time() -> None:
    errors = np.random.default_rng(4).normal(size=(6, WIDTH)) + 0.3
    by_hand = []  # of six pools, all pairs count the same
    for gone in range(6):
        rest = np.delete(errors, gone, axis=0)
        products = [rest[i] @ rest[j] for i in range(5) for j in range(5) if i != j]
        by_hand.append(np.square(rest).sum(1).mean() + 5 * np.mean(products))
    found = judge_errors(errors, 6)
    assert found.error == pytest.approx(np.sqrt(5 / 6 * np.square(np.array(by_hand) - np.mean(by_hand)).sum()))
    assert found.freedom == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "biased", "carried"])
@pytest.mark.parametrize("count", [4, 8])
def test_intervals_of_errors_hold_the_truth_as_often_as_they_say(kind: str, count: int) -> None:
    """Also of a rule that makes up for the last pool's error, whose pools depend on each other."""
    draw, scale = np.random.default_rng(5), 1 / np.sqrt(np.arange(1, 41))

    def errors() -> np.ndarray:
        found = draw.normal(size=(count + 1, 40)) * scale
        return found[1:] + {"random": 0.0, "biased": 0.5 * scale, "carried": -0.9 * found[:-1]}[kind]

    variance = np.square(scale).sum()
    truth = variance * {"random": 1.0, "biased": 1 + 4 * 0.25, "carried": 1 + 0.81 - 2 * 0.9 * 3 / 4}[kind]
    trials, held, values = 400, 0, []
    for _ in range(trials):
        found = average([judge_errors(errors(), 4) for _ in range(2)])  # two stages
        assert found is not None
        held += found.low < truth < found.high
        values.append(found.value)
    assert np.mean(values) == pytest.approx(truth, rel=0.08)
    assert held / trials > 0.92


def test_four_pools_are_enough_for_an_interval() -> None:
    pools, draw = make_pools(4), np.random.default_rng(6)
    found = judge_choices(pools, [at_random(pool, KEPT, draw) for pool in pools], 4)
    assert found is not None
    assert found.error is not None
    assert found.freedom == 3


def test_an_order_of_a_single_window_has_no_estimate() -> None:
    rows = np.random.default_rng(7).normal(size=(64, WIDTH))
    assert judge_order(rows, np.arange(64), 16, 4) is None
    assert judge_order(rows, np.arange(64), 8, 4) is not None


def test_the_mean_of_estimates_has_an_error_if_all_have() -> None:
    assert average([]) is None
    assert average([Estimate(1.0, 3.0, 2), Estimate(3.0, 4.0, 3)]) == Estimate(2.0, 2.5, 5)
    assert average([Estimate(1.0, 3.0, 2), Estimate(3.0, None)]) == Estimate(2.0, None, 2)
