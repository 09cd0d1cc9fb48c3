"""Confidence intervals: of means over seeds, and of shares of right answers over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan, sqrt
from statistics import NormalDist, fmean
from typing import NamedTuple

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Interval(NamedTuple):
    """A mean over seeds; `half` is half the width of its 95% t-interval, or None with one seed or a mean of NaN."""

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

    The interval treats the seeds as independent draws from a normal distribution. If a value is not finite, as after a
    run that diverged, the mean is NaN and has no interval.

    >>> estimate_mean([1.0, 2.0, 3.0])
    Interval(mean=2.0, half=2.48..., seeds=3)
    >>> estimate_mean([4.0])
    Interval(mean=4.0, half=None, seeds=1)
    """
    if not values:
        return None
    mean = fmean(values) if all(map(isfinite, values)) else nan
    if len(values) == 1 or not isfinite(mean):
        return Interval(mean, None, len(values))
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


class Share(NamedTuple):
    """A share, from 0 to 1, with its 95% interval; for a difference of shares, from -1 to 1."""

    value: float
    low: float
    high: float


def estimate_share(right: int, rows: int) -> Share:
    """Return the share of right answers with its Wilson interval, which is valid for 0 and for all correct, too.

    Args:
        right: number of correct answers out of `rows`.
        rows: at least 1, treated as independent draws from the source.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    >>> [round(value, 3) for value in estimate_share(8, 10)]
    [0.8, 0.49, 0.943]
    >>> [round(value, 3) for value in estimate_share(0, 10)]
    [0.0, 0.0, 0.278]
    """
    from scipy import stats

    interval = stats.binomtest(right, rows).proportion_ci(CONFIDENCE, method="wilson")
    return Share(right / rows, float(interval.low), float(interval.high))


def estimate_macro(shares: Sequence[Share]) -> Share | None:
    """Return the mean over sources with its interval, or None without sources.

    The sources are treated as fixed: the interval covers other rows of the same sources, not other sources. It adds the
    distances from each share to its own limits in quadrature, so it equals the Wilson interval for one source, and has
    a width even if all answers are correct.

    Source: G. Y. Zou and A. Donner, Construction of confidence limits about effect measures: a general approach,
    Statistics in Medicine 27 (2008), for a linear combination.

    >>> estimate_macro([estimate_share(8, 10)]) == estimate_share(8, 10)
    True
    >>> [round(value, 3) for value in estimate_macro([estimate_share(8, 10), estimate_share(2, 10)])]
    [0.5, 0.329, 0.671]
    """
    if not shares:
        return None
    mean = fmean(share.value for share in shares)
    below = sqrt(sum((share.value - share.low) ** 2 for share in shares)) / len(shares)
    above = sqrt(sum((share.high - share.value) ** 2 for share in shares)) / len(shares)
    return Share(mean, mean - below, mean + above)


def estimate_gain(pairs: Sequence[Sequence[tuple[bool, bool]]]) -> Share | None:
    """Return how much better a second model is than a first on the same rows, as a mean over sources.

    Within a source the difference is paired. Its variance is that of the counts of the four outcomes (both, first only,
    second only, none) with one half added to each, so it is above 0 even if the models never differ. With several
    sources, the half is divided among them; a full half for each would make the interval of the mean too wide.

    Args:
        pairs: for each source, whether the first and the second model were correct on each row; no source may be empty.

    Source: A. Agresti and Y. Min, Simple improved confidence intervals for comparing matched proportions,
    Statistics in Medicine 24 (2005).

    >>> [round(value, 3) for value in estimate_gain([[(False, True)] * 6 + [(True, True)] * 14])]
    [0.3, 0.066, 0.479]
    """
    if not pairs:
        return None
    values, centres, variances = [], [], []
    added = 1 / (2 * len(pairs))
    for rows in pairs:
        gained = sum(second and not first for first, second in rows)
        lost = sum(first and not second for first, second in rows)
        total = len(rows) + 4 * added
        values.append((gained - lost) / len(rows))
        centres.append((gained - lost) / total)
        variances.append(((gained + lost + 2 * added) / total - ((gained - lost) / total) ** 2) / total)
    half = Z * sqrt(sum(variances)) / len(pairs)
    value, centre = fmean(values), fmean(centres)
    return Share(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))
