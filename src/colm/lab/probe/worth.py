"""How many random rows a choice of rows is worth: the error of its mean gradient, over several pools in turn.

One pool has s rows of small sources, which every choice keeps, and L of large ones, of which k are kept. The target of
the K = s + k rows' mean is what k random rows of the large sources give on average. Over H pools the error of random
rows averages out, as 1 / H; that of a choice that leaves something out for good does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np


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
    def half(self) -> float | None:
        """Half of a 95 % t-interval."""
        if self.error is None:
            return None
        from scipy import stats  # takes a second to import

        return float(stats.t.ppf(0.975, df=self.freedom)) * self.error

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.value + (self.half or 0.0)


def judge_choices(pools: Sequence[PoolGradients], choices: Sequence[Choice], window: int) -> Estimate | None:
    """Return how many random rows of a pool, those of small sources among them, have the choices' error.

    Args:
        pools: in the order in which the rule saw them.
        choices: one for each pool.
        window: H, pools whose mean error is judged; the estimate is over all windows that fit.

    Returns:
        The estimate, its standard error over windows; None if fewer than `window` pools have room for rows of large
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
    errors = [
        choice.weights @ pool.rows[choice.rows] - pool.target(len(choice.rows))
        for pool, choice in zip(pools, choices, strict=True)
    ]
    found = [
        window * float(np.square(np.mean(errors[start : start + window], axis=0)).sum())
        for start in range(0, len(errors) - window + 1, window)
    ]
    if unit <= 0:
        return None
    return _to_rows(small, large, unit, found)


def judge_order(rows: np.ndarray, order: np.ndarray, batch: int, window: int) -> Estimate | None:
    """Return how many random rows a step of `batch` rows in this order is worth.

    Args:
        rows: (M, d) gradients of all rows.
        order: (M,) int64, the rows of the steps, one step after the other.
        batch: rows of a step.
        window: H, steps whose mean is judged.
    """
    rows = rows - rows.mean(0)
    spread = float(np.square(rows).sum() / (len(rows) - 1))
    size = batch * window
    found = [
        window * float(np.square(rows[order[start : start + size]].mean(0)).sum())
        for start in range(0, len(rows) - size + 1, size)
    ]
    if not found or spread <= 0:
        return None
    return _to_rows(0.0, float(len(rows)) / window, spread, found)


def _to_rows(small: float, large: float, unit: float, errors: Sequence[float]) -> Estimate:
    """Solve error = unit (1 / k - 1 / large) for k, the random rows of large sources.

    With the error of the mean, which the delta method turns into that of k.
    """
    mean = float(np.mean(errors))
    rows = 1 / (1 / large + mean / unit)
    if len(errors) < 2:
        return Estimate(small + rows, None)
    deviation = float(np.std(errors, ddof=1)) / sqrt(len(errors))
    return Estimate(small + rows, rows**2 / unit * deviation, len(errors) - 1)
