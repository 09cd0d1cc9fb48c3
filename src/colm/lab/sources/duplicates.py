"""Near-duplicates among rows of tokens, in linear time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

SHINGLE = 5
"""Consecutive tokens per shingle; a shorter row is a single shingle."""
ALIKE = 0.8
"""Minimum Jaccard similarity of the shingle sets of near-duplicates."""
BANDS, VALUES = 16, 4
"""MinHash values: at similarity 0.8, the probability of sharing no band is (1 - 0.8^4)^16 = 0.0002; at 1, it is 0."""
COMPARED = 8
"""Maximum rows of a bucket to compare a row with, to avoid quadratic time in large buckets."""


def find_near_duplicates(rows: Sequence[Sequence[int]]) -> list[bool]:
    """Return, for each row, whether it is a near-duplicate of an earlier row that is not itself a near-duplicate.

    So removing the True rows removes the near-duplicates. Rows that share a band of MinHash values are candidates;
    their Jaccard similarity is then computed. All reported rows are near-duplicates; few are missed.

    Args:
        rows: token ids.

    >>> find_near_duplicates([[1, 2, 3, 4, 5, 6], [7, 8, 9], [1, 2, 3, 4, 5, 6], []])
    [False, False, True, False]
    """
    draw = np.random.default_rng(0)
    factors = draw.integers(1, 2**63, size=BANDS * VALUES, dtype=np.uint64) | np.uint64(1)
    shifts = draw.integers(0, 2**63, size=BANDS * VALUES, dtype=np.uint64)
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
    kept: dict[int, np.ndarray] = {}
    found = []
    for number, row in enumerate(rows):
        shingles = hash_shingles(row)
        if len(shingles) == 0:
            found.append(False)
            continue
        with np.errstate(over="ignore"):
            values = (shingles[:, None] * factors + shifts).min(0).reshape(BANDS, VALUES)
        keys = [band.tobytes() for band in values]
        candidates = {other for bucket, key in zip(buckets, keys, strict=True) for other in bucket.get(key, ())}
        found.append(any(_jaccard(shingles, kept[other]) >= ALIKE for other in candidates))
        if found[-1]:
            continue
        kept[number] = shingles
        for bucket, key in zip(buckets, keys, strict=True):
            if len(bucket[key]) < COMPARED:
                bucket[key].append(number)
    return found


def hash_shingles(row: Sequence[int]) -> np.ndarray:
    """Return the row's distinct shingles as sorted 64-bit numbers, (at most len(row),)."""
    ids = np.asarray(row, dtype=np.uint64) + np.uint64(1)
    if len(ids) == 0:
        return ids
    width = min(SHINGLE, len(ids))
    code = np.zeros(len(ids) - width + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(width):
            code = _mix(code * np.uint64(0x9E3779B97F4A7C15) + ids[offset : offset + len(code)])
    return np.unique(code)


def _mix(code: np.ndarray) -> np.ndarray:
    """Mix each 64-bit number over all bits, bijectively (splitmix64's last steps)."""
    code = (code ^ (code >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    code = (code ^ (code >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = code ^ (code >> np.uint64(31))
    return mixed


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)
