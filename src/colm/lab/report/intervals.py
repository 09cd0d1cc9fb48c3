"""Means over seeds with confidence intervals, and when a curve reaches a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean over seeds; `half` is half the width of its 95% t-interval, or None with a single seed."""

    mean: float
    half: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval lies above or below zero; 0 otherwise or without an interval."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


def estimate_mean(values: Sequence[float]) -> Interval | None:
    """Return the mean with its 95% t-interval, or None without values.

    The interval treats the seeds as independent draws from a normal distribution.

    >>> estimate_mean([1.0, 2.0, 3.0])
    Interval(mean=2.0, half=2.48..., seeds=3)
    >>> estimate_mean([4.0])
    Interval(mean=4.0, half=None, seeds=1)
    """
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, 1)
    from scipy import stats  # a second to import, and most pages have one run or one seed

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=len(values) - 1) * stats.sem(values))
    return Interval(mean, half, len(values))


def estimate_difference(values: Mapping[str, float], base: Mapping[str, float]) -> Interval | None:
    """Return the mean of value minus base over the seeds common to both, with its paired 95% t-interval.

    Args:
        values: seed -> result of the method.
        base: seed -> the same result of the method to compare with.

    >>> estimate_difference({"0": 1.0, "1": 2.5, "2": 9.0}, {"0": 2.0, "1": 3.0})
    Interval(mean=-0.75, half=3.17..., seeds=2)
    """
    return estimate_mean([values[seed] - base[seed] for seed in values if seed in base])


def find_first_reach(x: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Return the first x at which the curve, linear between its points, is at or below the target; None if it never is.

    Args:
        x: ascending x values.
        losses: one for each x.
        target: the target loss, with a relative tolerance of one millionth, since the target is a mean of such curves.

    >>> find_first_reach([0, 10, 20], [4.0, 3.0, 1.0], 2.0)
    15.0
    >>> find_first_reach([0, 10], [4.0, 3.0], 2.0)
    """
    slack = target + abs(target) * 1e-6
    before: tuple[float, float] | None = None
    for place, loss in zip(x, losses, strict=True):
        if loss <= slack:
            if before is None:
                return float(place)
            part = (before[1] - target) / (before[1] - loss)
            return float(before[0] + (place - before[0]) * min(1.0, part))
        if isfinite(loss):
            before = (place, loss)
    return None
