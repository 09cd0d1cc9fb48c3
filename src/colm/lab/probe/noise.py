"""The gradient noise scale of a step's rows, from pools of single rows' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from colm.lab.probe.worth import Estimate, PoolGradients


def estimate_noise(pools: Sequence[PoolGradients], kept: int) -> Estimate | None:
    """Return the noise scale tr(S) / |G|^2, in rows, of batches that keep small sources' rows whole.

    Each row counts as often as it is trained: 1 in small sources, the share of the large sources' rows that is kept in
    those.

    Returns:
        The estimate, its standard error a jackknife over pools; None if the mean is lost in the noise.

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
        return Estimate(whole, None)
    spread = np.square(np.array(known) - np.mean(known)).sum() * (len(parts) - 1) / len(parts)
    return Estimate(whole, float(np.sqrt(spread)), len(parts) - 1)


class _Sums(NamedTuple):
    """Sums over a pool's rows with weights w and gradients g."""

    weights: float  # of w
    squares: float  # of w^2
    gradients: np.ndarray  # of w g, (d,)
    lengths: float  # of w |g|^2
    own: float  # of w^2 |g|^2, the products of rows with themselves


def _sums(weights: np.ndarray, rows: np.ndarray) -> _Sums:
    lengths = np.square(rows).sum(1)
    squares = np.square(weights)
    return _Sums(
        float(weights.sum()), float(squares.sum()), weights @ rows, float(weights @ lengths), float(squares @ lengths)
    )


def _noise(parts: Sequence[_Sums]) -> float | None:
    """Return the ratio of the unbiased variance to the unbiased squared mean."""
    weight = sum(part.weights for part in parts)
    total = np.sum([part.gradients for part in parts], axis=0)
    pairs = weight**2 - sum(part.squares for part in parts)
    if pairs <= 0:
        return None
    mean = (float(np.square(total).sum()) - sum(part.own for part in parts)) / pairs  # of |G|^2, from pairs of rows
    variance = sum(part.lengths for part in parts) / weight - mean
    return variance / mean if mean > 0 else None
