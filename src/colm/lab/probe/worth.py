"""How many random rows a choice of rows is worth: the error of its mean gradient, over several pools in turn.

One pool has s rows of small sources, which every choice keeps, and L of large ones, of which k are kept. The target of
the K = s + k rows' mean is what k random rows of the large sources give on average. Over H pools the error of random
rows averages out, as 1 / H; that of a choice that leaves something out for good does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

TINY = 1e-12
"""A weight in place of 0, where there are no products either."""


class PoolGradients(NamedTuple):
    """The gradients of a pool's rows, in a sketch that preserves inner products."""

    rows: np.ndarray  # (N, d) float64
    small: np.ndarray  # (N,) bool: rows of small sources

    def target(self, kept: int) -> np.ndarray:
        """Return the mean gradient of `kept` rows, on average over random draws from the large sources, (d,)."""
        free = kept - int(self.small.sum())
        total: np.ndarray = self.rows[self.small].sum(0) + free * self.rows[~self.small].mean(0)
        return total / kept

    def spread(self) -> float:
        """Return the variance of the large sources' gradients, summed over coordinates, without bias."""
        return float(self.rows[~self.small].var(0, ddof=1).sum())


class Choice(NamedTuple):
    """The rows that a rule keeps of a pool."""

    rows: np.ndarray  # (K,) int64
    weights: np.ndarray  # (K,) float64, in the mean gradient; about 1 in all


class Estimate(NamedTuple):
    """An estimate with its standard error; None if it is unknown."""

    value: float
    error: float | None
    freedom: int = 0  # degrees of freedom of the error

    @property
    def quantile(self) -> float:
        """Standard errors in half of a 95 % t-interval."""
        from scipy import stats  # takes a second to import

        return float(stats.t.ppf(0.975, df=self.freedom))

    @property
    def half(self) -> float | None:
        """Half of a 95 % t-interval."""
        return None if self.error is None else self.quantile * self.error

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.value + (self.half or 0.0)


def average(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the mean of independent estimates, with its standard error."""
    if not estimates:
        return None
    known = [each.error for each in estimates if each.error is not None]
    error = float(np.sqrt(np.sum(np.square(known))) / len(estimates)) if len(known) == len(estimates) else None
    return Estimate(float(np.mean([each.value for each in estimates])), error, sum(each.freedom for each in estimates))


def judge_choices(pools: Sequence[PoolGradients], choices: Sequence[Choice], window: int) -> Estimate | None:
    """Return how many random rows of a pool, those of small sources among them, have the choices' error.

    Args:
        pools: in the order in which the rule saw them.
        choices: one for each pool.
        window: H, pools whose mean error is judged.

    Returns:
        The estimate, its standard error over pools; None if fewer than `window` pools have room for rows of large
        sources beside the small ones, or no two such rows.
    """
    roomy = [(pool, choice) for pool, choice in zip(pools, choices, strict=True) if pool.small.sum() < len(choice.rows)]
    if len(roomy) < window:
        return None
    pools, choices = [pool for pool, _ in roomy], [choice for _, choice in roomy]
    kept = float(np.mean([len(choice.rows) for choice in choices]))
    small = float(np.mean([pool.small.sum() for pool in pools]))
    large = float(np.mean([(~pool.small).sum() for pool in pools]))
    share = ((kept - small) / kept) ** 2
    spreads = [pool.spread() if (~pool.small).sum() > 1 else 0.0 for pool in pools]
    unit = share * float(np.mean(spreads))  # of one random row of the large sources, in the mean over all K
    if unit <= 0:
        return None
    errors = [
        choice.weights @ pool.rows[choice.rows] - pool.target(len(choice.rows))
        for pool, choice in zip(pools, choices, strict=True)
    ]
    return _to_rows(small, large, unit, judge_errors(np.stack(errors), window))


def judge_errors(errors: np.ndarray, window: int) -> Estimate:
    """Return the expectation of H |e|^2, e being the mean error of H pools in turn, with a jackknife over pools.

    It is the mean |e_i|^2 and H - 1 times the mean product of errors fewer than H pools apart, in which each distance
    counts as often as in a window, however many pairs of pools have it. So H pools are enough for an interval. It is
    too wide rather than too narrow, also if the rule makes up for the last pool's error.

    Args:
        errors: (n, d), in the order in which the rule saw the pools, n >= H.
        window: H.
    """
    count = len(errors)
    apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    weights = np.where((apart > 0) & (apart < window), (window - apart) / np.maximum(count - apart, 1), 0.0)
    products = errors @ errors.T
    squares, pairs = np.diag(products), weights * products

    def mean(kept: int, square: Any, pair: Any, weight: Any) -> Any:
        """Return the value from the sums over all pools, or over all but one."""
        return square / kept + (window - 1) * pair / np.maximum(weight, TINY)

    value = float(mean(count, squares.sum(), pairs.sum(), weights.sum()))
    if count < 2:
        return Estimate(value, None)
    left = mean(count - 1, squares.sum() - squares, pairs.sum() - 2 * pairs.sum(1), weights.sum() - 2 * weights.sum(1))
    return Estimate(value, float(np.std(left) * sqrt(count - 1)), count - 1)


def judge_order(rows: np.ndarray, order: np.ndarray, batch: int, window: int) -> Estimate | None:
    """Return how many random rows a step of `batch` rows in this order is worth.

    Args:
        rows: (M, d) gradients of all rows.
        order: (M,) int64, the rows of the steps, one step after the other.
        batch: rows of a step; rows that fill no step are left out.
        window: H, steps whose mean is judged.

    Returns:
        The estimate, its standard error over steps; None if there are fewer than 2 H, since all rows together have no
        error in any order.
    """
    steps = len(rows) // batch
    rows = rows - rows.mean(0)
    spread = float(np.square(rows).sum() / (len(rows) - 1))
    if steps < 2 * window or spread <= 0:
        return None
    means = rows[order[: steps * batch]].reshape(steps, batch, -1).mean(1)
    return _to_rows(0.0, len(rows) / window, spread, judge_errors(means, window))


def _to_rows(small: float, large: float, unit: float, found: Estimate) -> Estimate:
    """Solve error = unit (1 / k - 1 / large) for k, the random rows of large sources, by the delta method."""
    rows = 1 / (1 / large + max(0.0, found.value) / unit)
    return found._replace(value=small + rows, error=None if found.error is None else rows**2 / unit * found.error)
