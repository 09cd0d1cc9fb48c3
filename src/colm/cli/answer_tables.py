"""The tables of `colm eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from colm.evaluate.judge import Line
from colm.evaluate.shares import Share, estimate_gain

GROUPS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain", "all": "all sources"}


def run_table(figures: Mapping[str, Any], name: str) -> Table:
    """Return the table of one run: a line for each source, then the averages."""
    table = Table(title=f"Answers of {name}", caption="exact match with 95 % intervals: Wilson's, for means Zou's")
    table.add_column("source", overflow="fold")
    table.add_column("trained")
    for column in ("rows", "exact", "95 %", "cut off", "none found", "not asked"):
        table.add_column(column, justify="right")
    for source, held in figures["sources"].items():
        rows = held["rows"]
        table.add_row(
            source,
            {True: "yes", False: "no", None: "?"}[held["in_domain"]],
            f"{rows:,}",
            *_show(held["exact"]),
            f"{held['cut_off'] / rows:.0%}" if rows else "-",
            f"{held['no_answer'] / rows:.0%}" if rows else "-",
            f"{held['unanswerable']:,}",
        )
    table.add_section()
    for group, title in GROUPS.items():
        average = figures[group]
        if average is None or (group == "all" and len(figures["sources"]) == 1):
            continue
        table.add_row(f"{title}, mean", "", f"{average['rows']:,}", *_show(average["macro"]), "", "", "")
        if group == "all":
            table.add_row("all rows", "", f"{average['rows']:,}", *_show(average["micro"]), "", "", "")
    cut = sum(held["prompts_cut"] for held in figures["sources"].values())
    if cut:
        table.caption = f"{table.caption}; {cut:,} prompts lost their beginning to fit the model's context"
    return table


def compare_table(found: Sequence[tuple[str, Mapping[str, Any], Sequence[Line]]]) -> Table:
    """Return the table of several runs: means, and the gain over the first on the rows that both answered."""
    table = Table(title="Beside each other", caption="gain over the first run: mean over sources, paired by row, 95 %")
    table.add_column("run", overflow="fold")
    for column in (*GROUPS.values(), "gain", "95 %"):
        table.add_column(column, justify="right")
    first = found[0][2]
    for place, (name, figures, lines) in enumerate(found):
        means = [_show(figures[group]["macro"])[0] if figures[group] else "-" for group in GROUPS]
        gain = pair_rows(first, lines) if place else None
        shown = ("", "") if gain is None else (f"{gain.value:+.1%}", f"{gain.low:+.1%} to {gain.high:+.1%}")
        table.add_row(name, *means, *shown)
    return table


def pair_rows(first: Sequence[Line], second: Sequence[Line]) -> Share | None:
    """Return the gain of the second run over the first, or None where they share no row."""
    right = {line["index"]: line["right"] for line in first}
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for line in second:
        if line["index"] in right:
            pairs.setdefault(line["source"], []).append((right[line["index"]], line["right"]))
    return estimate_gain(list(pairs.values()))


def harness_table(scores: Mapping[str, Mapping[str, Any]], name: str) -> Table:
    """Return the table of what lm-evaluation-harness measured."""
    table = Table(title=f"lm-evaluation-harness, {name}")
    table.add_column("task", overflow="fold")
    table.add_column("metric")
    for column in ("value", "standard error"):
        table.add_column(column, justify="right")
    for task, metrics in scores.items():
        for metric, held in metrics.items():
            error = held["stderr"]
            table.add_row(task, metric, f"{held['value']:.4f}", "-" if error is None else f"{error:.4f}")
    return table


def _show(share: Mapping[str, float] | None) -> tuple[str, str]:
    return ("-", "-") if share is None else (f"{share['value']:.1%}", f"{share['low']:.1%} to {share['high']:.1%}")
