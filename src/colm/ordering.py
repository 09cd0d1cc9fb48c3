"""Deal rows into optimizer steps so that what was trained so far has the mean features of all rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from colm.errors import DataError
from colm.hints import Count
from colm.typed import read_value

UNITS = 2**15 - 1
"""The largest norm of a row in whole numbers. Sums of products stay below 2^53, where float64 is exact, until what was
dealt is some 2^22 rows away from the mean."""

CHUNK = 2**16
"""Rows that are converted at a time."""


def deal_balanced(
    features: np.ndarray, sizes: Sequence[int], *, window: int | None = None, patience: int | None = None
) -> np.ndarray:
    """Deal rows into steps, one row at a time, so that the sum of their features stays at its expectation.

    Each step chooses from a window over the base order, the order of `features`. Of the rows in the window, the next
    one is that with the smallest |r + x|^2, where x is the row and r the sum of all rows dealt so far, both with the
    mean of all rows subtracted. Of equally good rows, the first of the base order is next. A row that has waited for
    `patience` steps in the window goes before all others.

    Features are rounded to whole numbers, and sums of whole numbers are exact in any order. So the result is the same
    for any number of threads and any library of linear algebra.

    Args:
        features: (n, d), finite, of the rows in their base order.
        sizes: rows of each step, each at least 0, with the sum n.
        window: rows in the window, in steps, at least 1; 1 leaves each step the rows of the base order. The default
            grows as the sum of a random order does, see `default_window`.
        patience: steps after which a row in the window goes first, at least 1; default twice the window. If steps have
            equal sizes, a row waits for fewer than ``patience + window`` steps in the window.

    Returns:
        (n,) int64, positions in the base order: the rows of the first step, then of the second, and so on.

    Raises:
        ConfigError: `window` or `patience` is below 1.
        DataError: the shapes disagree, or a feature is not finite.

    Time is in O(n x rows of the window x d). Source: herding (Welling, 2009), and GraB (Lu et al., 2022), which
    balances gradients with signs instead of choosing among rows.

    >>> deal_balanced(np.array([[0.0], [0.0], [1.0], [1.0]]), [2, 2])
    array([0, 2, 1, 3])
    """
    window = default_window(sizes) if window is None else window
    patience = 2 * window if patience is None else patience
    window, patience = read_value("window", Count, window), read_value("patience", Count, patience)
    if features.ndim != 2 or len(features) != sum(sizes) or min(sizes, default=0) < 0:
        raise DataError(
            f"features has shape {features.shape}, but the steps have {sum(sizes)} rows; give one row of features for "
            "each, and no negative size."
        )
    rows = whole_numbers(features)
    count, dim = rows.shape
    total = rows.sum(0, dtype=np.int64)
    dealt = np.zeros(dim, dtype=np.int64)  # the sum of what was dealt
    order = np.empty(count, dtype=np.int64)
    waiting = np.empty(0, dtype=np.int64)  # the window, in the base order
    entered = waiting
    held = np.empty((0, dim))
    squares = np.empty(0)
    placed = read = 0
    for step, size in enumerate(sizes):
        new = np.arange(read, min(count, max(read, read + window * size - len(waiting))))
        read += len(new)
        fresh = rows[new].astype(np.float64)
        waiting, entered = np.concatenate([waiting, new]), np.concatenate([entered, np.full(len(new), step)])
        held = np.concatenate([held, fresh])
        squares = np.concatenate([squares, np.einsum("nd,nd->n", fresh, fresh)])
        scores = squares.copy()  # infinite for a row that was dealt
        late = int(np.searchsorted(entered, step - patience, side="right"))  # the first so many go first
        for turn in range(size):
            # Half of |r + x|^2 without what all rows share; r is a whole number, too, and its rounding never adds up.
            gap = dealt - (placed + 1) * total // count
            slot = turn if turn < late else int(np.argmin(scores + 2.0 * (held @ gap.astype(np.float64))))
            order[placed] = waiting[slot]
            dealt += held[slot].astype(np.int64)
            scores[slot] = np.inf
            placed += 1
        left = np.isfinite(scores)
        waiting, entered, held, squares = waiting[left], entered[left], held[left], squares[left]
    return order


def default_window(sizes: Sequence[int]) -> int:
    """Return the rows of a window in steps: four times the square root of all rows, and at least 4 steps.

    The sum over a random order leaves its mean as the square root of its length does. The rows in the window must hold
    the opposite of that sum, so fewer rows could not keep the sum of what was dealt small.

    >>> default_window([32] * 50), default_window([32] * 5000)
    (5, 50)
    """
    rows = sum(sizes)
    return max(4, math.ceil(4 * len(sizes) / math.sqrt(rows))) if rows else 4


def whole_numbers(features: np.ndarray) -> np.ndarray:
    """Return features (n, d) without their mean as whole numbers, (n, d) int16, the longest row at a norm of `UNITS`.

    Raises:
        DataError: a feature is not finite.
    """
    count, dim = features.shape
    mean = features.sum(0, dtype=np.float64) / max(1, count)
    if not np.isfinite(mean).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise DataError(f"The features of row {row} are not finite; give every row finite features.")
    chunks = [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
    longest = max((np.square(features[chunk] - mean).sum(1).max() for chunk in chunks), default=0.0) ** 0.5
    longest = float(np.float32(longest))  # the last bits depend on the machine
    found = np.zeros((count, dim), dtype=np.int16)
    for chunk in chunks if longest > 0 else ():
        found[chunk] = np.rint((features[chunk] - mean) * (UNITS / longest))
    return found
