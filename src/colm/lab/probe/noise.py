"""The gradient noise scale of a step's rows, from pools of single rows' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from colm.lab.probe.worth import PoolGradients


class NoiseScale(NamedTuple):
    """tr(S) / |G|^2 in rows, with a standard error over pools."""

    rows: float
    error: float | None


def estimate_noise(pools: Sequence[PoolGradients], kept: int) -> NoiseScale | None:
    """Return the noise scale of batches that keep small sources' rows whole; None if the mean is lost in the noise.

    Each row counts as often as it is trained: 1 in small sources, the share of the large sources' rows that is kept in
    those. The error is a jackknife over pools.

    Source: McCandlish et al., arXiv 1812.06162, appendix A.
    """
    weights, rows = [], []
    for pool in pools:
        large = int((~pool.small).sum())
        share = max(0, kept - int(pool.small.sum())) / large if large else 0.0
        weights.append(np.where(pool.small, 1.0, share))
        rows.append(pool.rows)
    parts = [_sums(w, g) for w, g in zip(weights, rows, strict=True)]
    whole = _noise(parts)
    if whole is None:
        return None
    left = [_noise([part for other, part in enumerate(parts) if other != gone]) for gone in range(len(parts))]
    known = [each for each in left if each is not None]
    if len(known) < len(parts) or len(parts) < 2:
        return NoiseScale(whole, None)
    spread = np.square(np.array(known) - np.mean(known)).sum() * (len(parts) - 1) / len(parts)
    return NoiseScale(whole, float(np.sqrt(spread)))


_Sums = tuple[float, float, np.ndarray, float, float]


def _sums(weights: np.ndarray, rows: np.ndarray) -> _Sums:
    lengths = np.square(rows).sum(1)
    return (
        float(weights.sum()),
        float(np.square(weights).sum()),
        weights @ rows,
        float(weights @ lengths),
        float(np.square(weights) @ lengths),
    )


def _noise(parts: Sequence[_Sums]) -> float | None:
    """Return the ratio of the unbiased variance to the unbiased squared mean."""
    weight, squared = sum(part[0] for part in parts), sum(part[1] for part in parts)
    total = np.sum([part[2] for part in parts], axis=0)
    pairs = weight**2 - squared
    if pairs <= 0:
        return None
    mean = (float(np.square(total).sum()) - sum(part[4] for part in parts)) / pairs  # of |G|^2, from pairs of rows
    variance = sum(part[3] for part in parts) / weight - mean
    return variance / mean if mean > 0 else None
