"""The page of `colm report`: one run, or several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from colm.lab.report import measures
from colm.lab.report.measures import SourceRow
from colm.lab.report.page import (
    MISSING,
    Key,
    draw_legend,
    show_bytes,
    show_number,
    show_seconds,
    show_share,
    write_page,
)
from colm.lab.report.run_plots import draw_losses, draw_selection, draw_sources
from colm.lab.report.runs import Run
from colm.lab.report.signatures import Verdict, check_run
from colm.lab.report.svg import PlotIds
from colm.step.sources import RowsLeft


class RunPart(NamedTuple):
    """The page's content for one run."""

    run: Run
    facts: list[tuple[str, str]]
    verdicts: list[Verdict]
    sources: list[SourceRow]
    config: str
    dropped: dict[str, str]  # source -> how many rows were not trained on, and why


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Write the page of one run, or of several side by side, and return its path.

    Args:
        runs: runs with distinct names.
        out: the HTML file; its folder must exist.

    Raises:
        ConfigError: the file cannot be written.
    """
    ids = PlotIds()
    others = runs if len(runs) > 1 else ()
    parts = [
        RunPart(
            run,
            list_facts(run),
            check_run(run, others),
            measures.tabulate_sources(run),
            show_config(run.config),
            describe_dropped(run),
        )
        for run in runs
    ]
    legend: list[Key] = draw_legend({run.name: i for i, run in enumerate(runs)}, ids) if others else []
    return write_page(
        out,
        "runs.html",
        title="colm report: " + ", ".join(run.name for run in runs),
        parts=parts,
        legend=legend,
        losses=draw_losses(runs, ids),
        selection=draw_selection(runs, ids),
        sources=draw_sources(runs, ids),
        source_count=len({name for run in runs for name in run.sources}),
        side_by_side=_tabulate_facts(parts),
        final_losses=_tabulate_final(parts),
        differences=compare_configs(runs) if others else [],
    )


def list_facts(run: Run) -> list[tuple[str, str]]:
    """Return the run's facts as (name, value) pairs."""
    last = run.evaluations[-1] if run.evaluations else None
    losses = last.losses if last else {}
    seconds = measures.sum_seconds(run)
    summary = run.summary if run.finished else None
    kind = "device" if summary and summary.memory_kind == "device" else "process"
    pool, kept = (fmean(getattr(step, key) for step in run.steps) for key in ("pool_count", "kept_count"))
    features, pick = run.selection.get("features", MISSING), run.selection.get("pick", "medoids")
    return [
        ("Model", str(run.config.get("model", MISSING))),
        ("Trained", MISSING if not run.config else "LoRA" if run.config.get("lora") else "all weights"),
        ("Features", "none, at random" if features == "none" else f"{features}, pick {pick}"),
        ("Kept per pool", f"{kept:.1f} of {pool:.1f} rows"),
        ("Steps", f"{run.steps[-1].number:,}"),
        ("Final macro loss", show_number(measures.mean_macro(losses, run.trained), 4)),
        ("Final micro loss", show_number(measures.mean_micro(losses, run.rows), 4)),
        ("Mean loss, small sources", show_number(measures.mean_macro(losses, run.trained & run.small), 4)),
        ("Mean loss, big sources", show_number(measures.mean_macro(losses, run.trained - run.small), 4)),
        ("Training time", show_seconds(seconds[0] if seconds else None)),
        ("Selection share of time", show_share(measures.divide(seconds[1], seconds[0]) if seconds else None)),
        (f"Peak memory, {kind}", show_bytes(summary.peak_memory if summary else None)),
    ]


def describe_dropped(run: Run) -> dict[str, str]:
    """Describe for each source how many rows were dropped because they have no labeled token."""
    if run.summary is None:
        return {}
    rows, dropped = run.summary.rows, run.summary.dropped
    limit = (run.config.get("data") or {}).get("max_length")
    need = "a labeled token" + (f" within max_length={limit}" if limit else "")
    return RowsLeft({name: rows.get(name, 0) + lost for name, lost in dropped.items()}, rows, need).describe()


def show_config(config: Mapping[str, Any]) -> str:
    """Return the settings as YAML, without the values of access tokens."""
    return yaml.safe_dump(_hide_tokens(dict(config)), sort_keys=False, allow_unicode=True) if config else ""


def compare_configs(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ, each with its value in every run; output_dir does not count."""
    flat = [_flatten(_hide_tokens(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values if key != "output_dir"))
    rows = [(key, [str(values.get(key, MISSING)) for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _hide_tokens(values: dict[str, Any]) -> dict[str, Any]:
    def hide(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {inner: hide(str(inner), held) for inner, held in value.items()}
        return "(hidden)" if key.endswith("_token") and value else value

    return {key: hide(str(key), value) for key, value in values.items()}


def _flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _tabulate_facts(parts: Sequence[RunPart]) -> list[tuple[str, list[str]]]:
    names = list(dict.fromkeys(name for part in parts for name, _ in part.facts))
    return [(name, [dict(part.facts).get(name, MISSING) for part in parts]) for name in names]


def _tabulate_final(parts: Sequence[RunPart]) -> list[tuple[str, str, list[SourceRow | None]]]:
    """Return a line per source of any run: name, size, and each run's results."""
    held = [{row.name: row for row in part.sources} for part in parts]
    names = list(dict.fromkeys(name for rows in held for name in rows))
    table = [(name, [rows.get(name) for rows in held]) for name in names]
    return [(name, "small" if any(row and row.small for row in rows) else "big", rows) for name, rows in table]
