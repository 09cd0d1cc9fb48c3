"""Rows of each source."""

from __future__ import annotations

from datasets import Dataset


def rows_by_source(rows: Dataset | None) -> dict[str, Dataset]:
    """Return source -> its rows, in their order; empty without rows."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(rows["source"][:] if rows else ()):
        found.setdefault(name, []).append(row)
    return {name: rows.select(places) for name, places in found.items()} if rows else {}
