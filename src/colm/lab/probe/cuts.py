"""Which (K, N) a probe judges: K rows kept of pools of N, all cut from the same rows in the same order."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from colm.errors import ConfigError

logger = logging.getLogger(__name__)

WINDOW = 4
"""Pools, or steps, whose mean error is judged: what repeats in each of them does not average out."""


class Cut(NamedTuple):
    """K rows kept of pools of N.

    >>> str(Cut(8, 32))
    '8/32'
    """

    kept: int
    pool: int

    def __str__(self) -> str:
        return f"{self.kept}/{self.pool}"

    def pools(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (M, ...) as pools (M // N, N, ...); those that fill no pool are left out."""
        count = len(rows) // self.pool
        return rows[: count * self.pool].reshape(count, self.pool, *rows.shape[1:])


def parse_cut(text: str) -> Cut:
    """Read K/N.

    Raises:
        ConfigError: another text, K below 1, or K not below N.

    >>> parse_cut("8/32")
    Cut(kept=8, pool=32)
    """
    match = re.fullmatch(r"\s*(-?[0-9]{1,12})\s*/\s*(-?[0-9]{1,12})\s*", text)
    if match is None:
        raise ConfigError(
            f"--choices {text}: a choice is K/N, the rows kept and those of the pool, such as 8/32; write it so."
        )
    cut = Cut(int(match[1]), int(match[2]))
    if not 1 <= cut.kept < cut.pool:
        raise ConfigError(
            f"--choices {text}: of a pool of {cut.pool} rows, {cut.kept} cannot be kept; keep "
            + (f"1 to {cut.pool - 1}." if cut.pool > 1 else "at least 1, of a pool of at least 2.")
        )
    return cut


def default_cuts(configured: Cut, small: Sequence[np.ndarray]) -> list[Cut]:
    """Return the configured cut, and as many rows of half and of twice its pool where these can be judged.

    Args:
        configured: K and N of the run.
        small: of each stage, which of the drawn rows are of small sources, (M,) bool.
    """
    found = [configured]
    for size in (configured.pool // 2, configured.pool * 2):
        cut = Cut(configured.kept, size)
        if cut.kept >= size:
            continue
        if all(_roomy(cut, flags) >= WINDOW for flags in small):
            found.append(cut)
        else:
            logger.info("%s is not judged: too few pools of %d have room for rows of large sources.", cut, size)
    return found


def check_pools(cuts: Sequence[Cut], rows: int) -> None:
    """Check that the rows of a stage make enough pools of every cut.

    Raises:
        ConfigError: they make fewer than `WINDOW`.
    """
    for cut in cuts:
        if rows // cut.pool < WINDOW:
            raise ConfigError(
                f"--choices {cut}: the {rows:,} rows that a stage looks at make {rows // cut.pool} pools of "
                f"{cut.pool:,}, but an estimate needs at least {WINDOW}; choose a pool of at most {rows // WINDOW:,} "
                "rows, or raise --pools."
            )


def check_room(cuts: Sequence[Cut], small: Sequence[np.ndarray]) -> None:
    """Check that enough pools of every cut have room for rows of large sources.

    Args:
        cuts: as the user wants them.
        small: of each stage, which of the drawn rows are of small sources, (M,) bool.

    Raises:
        ConfigError: fewer than `WINDOW` have.
    """
    for cut in cuts:
        for flags in small:
            roomy = _roomy(cut, flags)
            if roomy < WINDOW:
                held = np.sort(cut.pools(flags).sum(1))
                least = int(held[WINDOW - 1]) + 1 if len(held) >= WINDOW else cut.pool
                raise ConfigError(
                    f"--choices {cut}: rows of small sources leave room for others in {roomy} of {len(held)} pools of "
                    f"{cut.pool}, but an estimate needs at least {WINDOW}; "
                    + (f"keep {least} to {cut.pool - 1} rows, or " if least < cut.pool else "")
                    + "set selection.small_sources=none."
                )


def _roomy(cut: Cut, flags: np.ndarray) -> int:
    """Return how many pools have fewer rows of small sources than are kept."""
    return int((cut.pools(flags).sum(1) < cut.kept).sum())
