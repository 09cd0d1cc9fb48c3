"""The page of `colm sources`: a mixture before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colm.lab.report.page import show_number, write_page
from colm.lab.report.shares import ShareRow, gather_shares
from colm.lab.sources.centroids import Tried, find_elbow
from colm.lab.sources.duplicates import ALIKE, SHINGLE
from colm.lab.sources.mixture import SAMPLE, Survey

METHOD = (
    f"A row is a near-duplicate if an earlier row of the same source has nearly the same set of runs of {SHINGLE} "
    f"tokens (Jaccard similarity of at least {ALIKE}). MinHash finds the candidates, so the time is linear in the "
    f"rows. Words and near-duplicates are computed on all rows of a source, or on {SAMPLE:,} random rows of a larger "
    "source; a sample underestimates near-duplicates."
)


def write_sources_page(survey: Survey, out: Path, *, name: str, note: str = "", tried: Sequence[Tried] = ()) -> Path:
    """Write the page and return its path.

    Args:
        survey: survey of the mixture.
        out: the HTML file; its folder must exist.
        name: the mixture's name, for the title.
        tried: numbers of clusters that were tried; empty if the number was given.
        note: a note on the whole page, for example that only a part was read.

    Raises:
        ConfigError: the file cannot be written.
    """
    expected = survey.outlook.sources.values()
    total = sum(source.rows for source in expected)
    small = sum(source.small for source in expected)
    return write_page(
        out,
        "sources.html",
        title=f"colm sources: {name}",
        name=name,
        note=note,
        sources=survey.sources,
        outlook=survey.outlook,
        warnings=survey.warnings,
        total=total,
        shares=gather_shares(
            [
                ShareRow(source.name, own.small, [own.rows / total, own.in_coreset / survey.outlook.keep])
                for source in survey.sources
                for own in [source.outlook]
            ]
        ),
        method=METHOD,
        dropped=survey.dropped,
        tried=tried,
        chosen=find_elbow(tried) if tried else None,
        facts=[
            ("Sources", f"{len(expected)}, of which {small} small"),
            ("Rows", show_number(total, 0)),
            ("Uniform share", f"{show_number(total / len(expected), 0)} rows"),
            ("Kept per pool", f"{survey.outlook.keep} of {survey.outlook.pool} rows"),
            ("Overflow probability", f"{survey.outlook.overflow:.1%}"),
        ],
    )
