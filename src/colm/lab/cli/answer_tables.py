"""The tables of `colm eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from colm.lab.evaluate.judge import Line
from colm.lab.intervals import Share, estimate_gain
from colm.lab.run.tables import SHOWN, add_sources

GROUPS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain", "all": "all sources"}


def run_table(figures: Mapping[str, Any], name: str) -> Table:
    """Return the table of one run: sources by domain, each domain with its mean, then all sources."""
    table = Table(title=f"Correct answers of {name}, %", caption="95 % intervals: Wilson; for means over sources, Zou")
    table.add_column("source", overflow="fold")
    for column in ("rows", "exact", "95 %", "cut off", "no answer"):
        table.add_column(column, justify="right", no_wrap=True)
    sources = figures["sources"]
    for domain, group in ((True, "in_domain"), (False, "out_of_domain"), (None, "")):
        held = {source: line for source, line in sources.items() if line["in_domain"] is domain}
        ordered = held if len(held) <= SHOWN else sorted(held, key=lambda source: -held[source]["rows"])
        add_sources(table, [(source, *_counts(held[source])) for source in ordered], "answers.json and --json")
        average = figures.get(group)
        if average is not None:
            table.add_row(f"mean, {GROUPS[group]}", f"{average['rows']:,}", *_show(average["macro"]), style="bold")
        if held:
            table.add_section()
    if len(sources) > 1:
        average = figures["all"]
        if sum(figures[group] is not None for group in ("in_domain", "out_of_domain")) != 1:
            table.add_row("mean, all sources", f"{average['rows']:,}", *_show(average["macro"]))
        table.add_row("all rows", f"{average['rows']:,}", *_show(average["micro"]))
    cut = sum(line["prompts_cut"] for line in sources.values())
    if cut:
        table.caption = f"{table.caption}. {cut:,} prompts were truncated at the start to fit the model's context"
    left_out = sum(line["unanswerable"] for line in sources.values())
    if left_out:
        table.caption = f"{table.caption}. {left_out:,} rows without a final answer were left out"
    return table


def compare_table(found: Sequence[tuple[str, Mapping[str, Any], Sequence[Line]]]) -> Table:
    """Return the table of several runs: means, and the gain over the first run on the rows that both answered."""
    table = Table(title="Correct answers side by side, %", caption="means; gain over the first, paired by row")
    table.add_column("run", overflow="fold")
    for column in (*GROUPS.values(), "gain", "95 %"):
        table.add_column(column, justify="right")
    first = found[0][2]
    for place, (name, figures, lines) in enumerate(found):
        means = [_show(figures[group]["macro"])[0] if figures[group] else "-" for group in GROUPS]
        gain = pair_rows(first, lines) if place else None
        shown = (
            ("", "")
            if gain is None
            else (f"{100 * gain.value:+.1f}", f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}")
        )
        table.add_row(name, *means, *shown)
    return table


def pair_rows(first: Sequence[Line], second: Sequence[Line]) -> Share | None:
    """Return the gain of the second run over the first, or None if they share no rows."""
    right = {line["index"]: line["right"] for line in first}
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for line in second:
        if line["index"] in right:
            pairs.setdefault(line["source"], []).append((right[line["index"]], line["right"]))
    return estimate_gain(list(pairs.values()))


def harness_table(scores: Mapping[str, Mapping[str, Any]], name: str) -> Table:
    """Return the table of lm-evaluation-harness scores."""
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


def _counts(line: Mapping[str, Any]) -> tuple[str, ...]:
    rows = line["rows"]
    shares = [f"{100 * line[key] / rows:.0f}" if rows else "-" for key in ("cut_off", "no_answer")]
    return f"{rows:,}", *_show(line["exact"]), *shares


def _show(share: Mapping[str, float] | None) -> tuple[str, str]:
    if share is None:
        return "-", "-"
    return f"{100 * share['value']:.1f}", f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"
