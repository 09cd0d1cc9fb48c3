"""Tables of sources in the terminal, which fold many of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

LARGEST = SMALLEST = 25
"""Sources shown at either end of a table that folds."""
SHOWN = LARGEST + SMALLEST
"""Sources of which a table shows all."""


def add_sources(table: Table, rows: Sequence[Sequence[str]], where: str) -> None:
    """Add a row per source; of more than 50, the first 25 and the last 25, with a line for those in between.

    Args:
        table: the table; its caption gets a sentence if it folds.
        rows: cells of each source, the largest source first.
        where: what lists all sources.
    """
    folds = len(rows) > SHOWN
    between = (f"... {len(rows) - SHOWN:,} more",)
    for row in [*rows[:LARGEST], between, *rows[-SMALLEST:]] if folds else rows:
        table.add_row(*row)
    if not folds:
        return
    told = f"The {LARGEST} largest and {SMALLEST} smallest of {len(rows):,} sources. All: {where}"
    table.caption = told if table.caption is None else f"{table.caption}. {told}"
