"""The tables of `colm sources`: a mixture, and clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from colm.lab.run.tables import add_sources
from colm.lab.sources.centroids import Tried, find_elbow
from colm.lab.sources.mixture import Survey
from colm.lab.sources.pools import Outlook
from colm.lab.sources.rows import Rows
from colm.lab.sources.words import count_words, distinguishing_words
from colm.step.sources import find_small_sources

READ = 20_000
"""Number of rows, from the start, whose words are counted."""
BAR = 20
PLACES = "the page of colm sources and its --json"


def sizes_table(survey: Survey) -> Table:
    """Return the table of rows, tokens and near-duplicates by source."""
    total = sum(source.rows for source in survey.outlook.sources.values())
    columns = ("rows", "share", "tokens", "mean", "95 %", "duplicates")
    table = _new_table(
        f"{total:,} rows; uniform share {total / len(survey.outlook.sources):,.0f}; lengths in tokens", "size", columns
    )
    rows = [
        (
            source.name,
            "small" if source.outlook.small else "big",
            f"{source.outlook.rows:,}",
            f"{source.outlook.rows / total:.1%}",
            f"{source.tokens:,}",
            f"{source.mean_length:.0f}",
            f"{source.long_length:.0f}",
            f"{source.duplicates:.1%}",
        )
        for source in survey.sources
    ]
    add_sources(table, rows, PLACES)
    return table


def pool_table(outlook: Outlook) -> Table:
    """Return the table of what to expect of each source in a pool and its coreset, the largest source first."""
    title = f"pool {outlook.pool}, keep {outlook.keep}; small sources exceed it in {outlook.overflow:.1%} of pools"
    table = _new_table(title, "size", ("rows", "in a pool", "chance of none", "in its coreset"))
    rows = [
        (
            name,
            "small" if source.small else "big",
            f"{source.rows:,}",
            f"{source.in_pool:.1f}",
            f"{source.absent:.1%}",
            f"{source.in_coreset:.1f}",
        )
        for name, source in sorted(outlook.sources.items(), key=lambda item: (-item[1].rows, item[0]))
    ]
    add_sources(table, rows, PLACES)
    return table


def words_table(survey: Survey) -> Table:
    """Return the table of each source's distinguishing words."""
    table = _new_table("Words that tell a source from the others", "words", ())
    add_sources(table, [(source.name, ", ".join(source.words) or "none") for source in survey.sources], PLACES)
    return table


def _new_table(title: str, left: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("source", overflow="fold")
    options: dict[str, Any] = {"overflow": "fold"} if left == "words" else {}
    table.add_column(left, **options)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def share_in_small(names: Sequence[str]) -> float:
    """Return the share of rows in clusters below the uniform share, which the small-source rule keeps whole.

    >>> share_in_small(["a"] * 6 + ["b", "b", "c"])
    0.3333333333333333
    """
    counts = Counter(names)
    return sum(counts[name] for name in find_small_sources(counts, "auto")) / len(names)


def curve_table(tried: Sequence[Tried]) -> Table:
    """Return a table of the numbers of clusters tried, with the criterion as a bar."""
    chosen = find_elbow(tried)
    table = Table(title=f"{chosen} clusters: the elbow of the mean squared distance")
    for name in ("clusters", "mean squared distance", "silhouette"):
        table.add_column(name, justify="right")
    table.add_column("")
    top = max(one.inertia for one in tried)
    for one in tried:
        bar = "#" * round(BAR * one.inertia / top) if top > 0 else ""
        bar += " chosen" if one.clusters == chosen else ""
        table.add_row(f"{one.clusters}", f"{one.inertia:.3f}", f"{one.silhouette:.3f}", bar)
    return table


def clusters_table(rows: Rows, names: Sequence[str]) -> Table:
    """Return the table of the clusters, the largest first."""
    counts = Counter(names)
    texts: dict[str, list[str]] = {}
    for name, row in zip(names, rows.read(0, READ), strict=False):
        texts.setdefault(name, []).append(row.text)
    words = distinguishing_words({name: count_words(held) for name, held in texts.items()})
    small = find_small_sources(counts, "auto")
    share = len(names) / len(counts)
    table = Table(title=f"{len(counts)} clusters of {len(names):,} rows; uniform share {share:,.0f}")
    table.add_column("cluster", overflow="fold")
    table.add_column("size")
    for column in ("rows", "share"):
        table.add_column(column, justify="right")
    options: dict[str, Any] = {"overflow": "fold"}
    table.add_column("words", **options)
    found = [
        (
            name,
            "small" if name in small else "big",
            f"{count:,}",
            f"{count / len(names):.1%}",
            ", ".join(words.get(name, [])) or "none",
        )
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    add_sources(table, found, "--json")
    return table
