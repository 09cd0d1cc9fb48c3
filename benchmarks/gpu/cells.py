"""Tables, texts and the mark of a fault, as the sections of a page write them in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RED = "🔴"
"""The mark of a fault."""


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return a table of rows of cells, of which the first is the head and the second aligns the columns."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def table_of_numbers(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is a text, and whose others are numbers."""
    return table([head, ["---", *["---:"] * (len(head) - 1)], *rows])


def plain(text: str) -> str:
    """Return text that cannot end a cell or start markup."""
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
