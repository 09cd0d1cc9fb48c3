"""`colm sources`: an overview of the mixture before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from colm.lab.cli.cluster import curve_table
from colm.lab.cli.console import make_console
from colm.lab.report.page import check_page
from colm.lab.report.sources_page import write_sources_page
from colm.lab.run.folder import RunFolder
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import load_settings
from colm.lab.sources.mixture import Survey, survey_mixture

PAGE_NAME = "sources.html"


def sources_command(config: str, overrides: Sequence[str], out: str | None = None) -> None:
    """Print the mixture's sources and write them to a page.

    Args:
        config: the run's configuration.
        overrides: overrides of its settings.
        out: the HTML file; by default `sources.html` in the output folder.
    """
    settings = load_settings(config, overrides)
    page = Path(out) if out else settings.output_dir / PAGE_NAME
    if not out:
        RunFolder(settings.output_dir).prepare()
    check_page(page)
    data = prepare_data(settings)
    slots = settings.arguments["gradient_accumulation_steps"]  # of one process
    pool_rows = settings.arguments["per_device_train_batch_size"] * slots
    settings.selection.check_pool(pool_rows, slots)
    given = settings.data.source_sizes
    survey = survey_mixture(
        data.train if data.window is None else data.window,
        data.tokenizer,
        settings.selection,
        source_column=settings.data.source_column,
        pool_rows=pool_rows,
        slots=slots,
        sizes=given or None,
        counts=data.counts,
        seed=settings.seed,
    )
    note = ""
    if data.window is not None:
        note = f"Read from the stream's first {len(data.window):,} rows" + ("." if given else ", including sizes.")
    console = make_console()
    tried = data.labelling.tried if data.labelling is not None else []
    if tried:
        console.print(curve_table(tried))
    for table in (_sizes_table(survey), _pool_table(survey), _words_table(survey)):
        console.print(table)
    for name, told in survey.dropped.items():
        console.print(f"{name}: {told}", markup=False)
    for warning in survey.warnings:
        console.print(f"{warning.title}: {warning.reason} {warning.advice}", style="bold", markup=False)
    if note:
        console.print(note)
    print(
        f"Written to {write_sources_page(survey, page, name=Path(config).stem, note=note, tried=tried)}, with examples."
    )


def _sizes_table(survey: Survey) -> Table:
    total = sum(source.rows for source in survey.outlook.sources.values())
    columns = ("rows", "share", "tokens", "mean", "95 %", "duplicates")
    table = _new_table(
        f"{total:,} rows; uniform share {total / len(survey.outlook.sources):,.0f}; lengths in tokens", "size", columns
    )
    for source in survey.sources:
        table.add_row(
            source.name,
            "small" if source.outlook.small else "big",
            f"{source.outlook.rows:,}",
            f"{source.outlook.rows / total:.1%}",
            f"{source.tokens:,}",
            f"{source.mean_length:.0f}",
            f"{source.long_length:.0f}",
            f"{source.duplicates:.1%}",
        )
    return table


def _pool_table(survey: Survey) -> Table:
    outlook = survey.outlook
    title = f"pool {outlook.pool}, keep {outlook.keep}; small sources exceed it in {outlook.overflow:.1%} of pools"
    table = _new_table(title, "size", ("in a pool", "chance of none", "in its coreset"))
    for source in survey.sources:
        own = source.outlook
        table.add_row(
            source.name,
            "small" if own.small else "big",
            f"{own.in_pool:.1f}",
            f"{own.absent:.1%}",
            f"{own.in_coreset:.1f}",
        )
    return table


def _words_table(survey: Survey) -> Table:
    table = _new_table("Words that tell a source from the others", "words", ())
    for source in survey.sources:
        table.add_row(source.name, ", ".join(source.words) or "none")
    return table


def _new_table(title: str, left: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("source", overflow="fold")
    options: dict[str, Any] = {"overflow": "fold"} if left == "words" else {}
    table.add_column(left, **options)
    for name in columns:
        table.add_column(name, justify="right")
    return table
