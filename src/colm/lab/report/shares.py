"""The first screen's bars: each source's share of the data next to its share of the rows trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MOST_BARS = 16
"""Maximum lines; with more sources, the last line adds up the smallest ones."""


class ShareRow(NamedTuple):
    """One source's shares, as fractions."""

    name: str
    small: bool
    shares: list[float]  # of the data, then of the rows trained on, one for each run


def gather_shares(rows: Sequence[ShareRow], most: int = MOST_BARS) -> list[ShareRow]:
    """Return at most `most` rows: the first ones, and the sum of the others.

    >>> rows = [ShareRow("a", False, [0.5, 0.5]), ShareRow("b", False, [0.25, 0.5]), ShareRow("c", True, [0.25, 0.0])]
    >>> gather_shares(rows, most=2)[1]
    ShareRow(name='2 other sources', small=False, shares=[0.5, 0.5])
    """
    if len(rows) <= most:
        return list(rows)
    first, others = rows[: most - 1], rows[most - 1 :]
    total = [sum(shares) for shares in zip(*(row.shares for row in others), strict=True)]
    return [*first, ShareRow(f"{len(others):,} other sources", False, total)]
