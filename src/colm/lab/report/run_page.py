"""The page of `colm report`: one run, or several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from colm.lab.report import measures
from colm.lab.report.checks import DECIDES, Verdict, check_run
from colm.lab.report.measures import Points, SourceRow
from colm.lab.report.page import (
    MISSING,
    Plot,
    PlotGroup,
    draw_legend,
    show_bytes,
    show_number,
    show_seconds,
    show_share,
    write_page,
)
from colm.lab.report.plots import Line, PlotIds, draw_lines
from colm.lab.report.runs import Run
from colm.lab.report.shares import ShareRow, gather_shares
from colm.lab.run.noise import explain_noise
from colm.step.sources import RowsLeft
from colm.types import NoiseScale

STEPS = "optimizer steps"
LEAST_SHARE = 0.05
"""Time shares below this value are negligible, so the y axis does not zoom in further."""


class RunPart(NamedTuple):
    """The page's content for one run."""

    run: Run
    facts: list[tuple[str, str]]
    verdicts: list[Verdict]
    sources: list[SourceRow]
    config: str
    dropped: dict[str, str]  # source -> how many rows were not trained on, and why
    noise: NoiseScale | None  # at the end
    meaning: str | None  # of the noise scale


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
            measures.last_noise(run),
            describe_noise(run),
        )
        for run in runs
    ]
    return write_page(
        out,
        "runs.html",
        title="colm report: " + ", ".join(run.name for run in runs),
        parts=parts,
        decides=DECIDES,
        labels=[
            "of the data",
            *([f"trained on, {run.name}" for run in runs] if others else ["of the rows trained on"]),
        ],
        shares=gather_shares(list_shares(runs)),
        legend=draw_legend([run.name for run in runs], ids) if others else [],
        losses=draw_losses(runs, ids),
        selection=draw_selection(runs, ids),
        sources=draw_sources(runs, ids),
        source_count=len({name for run in runs for name in run.sources}),
        side_by_side=_tabulate_facts(parts),
        final_losses=_tabulate_final(parts),
        differences=compare_configs(runs) if others else [],
    )


def list_shares(runs: Sequence[Run]) -> list[ShareRow]:
    """Return each source's share of the data of the first run that has it, and of the rows that each run trained on."""
    rows = []
    for name in _list_sources(runs):
        first = next(run for run in runs if name in run.sources)
        kept = [measures.divide(run.kept.get(name, 0), sum(run.kept.values())) or 0.0 for run in runs]
        rows.append(ShareRow(name, name in first.small, [measures.data_share(first, name) or 0.0, *kept]))
    return rows


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


def describe_noise(run: Run) -> str | None:
    """Describe what the noise scale at the end means for the run's steps; None if it is not known."""
    noise = measures.last_noise(run)
    return None if noise is None or noise.overall is None else explain_noise(noise.overall, noise.rows)


def show_config(config: Mapping[str, Any]) -> str:
    """Return the settings as YAML, without the values of access tokens."""
    return yaml.safe_dump(_hide_tokens(config), sort_keys=False, allow_unicode=True) if config else ""


def compare_configs(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ, each with its value in every run; output_dir does not count."""
    flat = [_flatten(_hide_tokens(run.config)) for run in runs]
    rows = [(key, [str(values.get(key, MISSING)) for values in flat]) for key in _union(flat) if key != "output_dir"]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _hide_tokens(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _hide_tokens(held, str(name)) for name, held in value.items()}
    return "(hidden)" if key.endswith("_token") and value else value


def _flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _tabulate_facts(parts: Sequence[RunPart]) -> list[tuple[str, list[str]]]:
    facts = [dict(part.facts) for part in parts]
    return [(name, [held.get(name, MISSING) for held in facts]) for name in _union(facts)]


def _tabulate_final(parts: Sequence[RunPart]) -> list[tuple[str, str, list[SourceRow | None]]]:
    """Return a line per source of any run: name, size, and each run's results."""
    held = [{row.name: row for row in part.sources} for part in parts]
    table = {name: [rows.get(name) for rows in held] for name in _union(held)}
    return [(name, "small" if any(row and row.small for row in rows) else "big", rows) for name, rows in table.items()]


def _union(parts: Iterable[Iterable[str]]) -> list[str]:
    """Return the names of all parts, each once, in order."""
    return list(dict.fromkeys(chain.from_iterable(parts)))


def draw_losses(runs: Sequence[Run], ids: PlotIds) -> list[Plot]:
    """Draw the macro, the micro and the training loss of all runs."""
    traces = [(*measures.trace_mean_losses(run), measures.trace_training_loss(run)) for run in runs]
    kinds = (
        ("Macro loss", "unweighted mean over sources"),
        ("Micro loss", "mean over sources, weighted by training rows"),
        ("Training loss", "mean over the rows trained on since the point before, at each log of the Trainer"),
    )
    return [
        Plot(title, _draw(runs, [trace[i] for trace in traces], ids, f"{title}."), caption)
        for i, (title, caption) in enumerate(kinds)
    ]


def draw_selection(runs: Sequence[Run], ids: PlotIds) -> list[Plot]:
    """Draw each run's match next to that of random rows, and the selection's share of the time of all runs."""
    plots = []
    for i, run in enumerate(runs):
        window = measures.choose_window(len(run.steps))
        match, random = measures.trace_match(run, window)
        if run.selection.get("features") == "none" and not match.x:
            continue
        of_run = f", {run.name}" if len(runs) > 1 else ""
        alt = f"Match with the pool{of_run}. Kept rows: {_describe(match, False)} Random: {_describe(random, False)}"
        plots.append(
            Plot(
                f"Match with the pool{of_run}",
                draw_lines(
                    [Line(*random, -1, name="random"), Line(*match, i, name="kept")], x_label=STEPS, alt=alt, ids=ids
                ),
                "cosine of the kept big rows' mean feature with the pool's; dashed: expected for as many random rows; "
                f"mean over {window} steps",
            )
        )
    shares = [measures.trace_selection_share(run, measures.choose_window(len(run.steps))) for run in runs]
    title = "Selection's share of the step time"
    highest = max((share for trace in shares for share in trace.y), default=0.0)
    y_to = None if highest > LEAST_SHARE else LEAST_SHARE
    drawn = _draw(runs, shares, ids, f"{title}.", percent=True, y_from=0.0, y_to=y_to)
    plots.append(Plot(title, drawn, f"selection time / total time, over {_show_windows(runs)} steps"))
    return [*plots, *_draw_noise(runs, ids)]


def _draw_noise(runs: Sequence[Run], ids: PlotIds) -> list[Plot]:
    """Draw the noise scale of all runs, of a single one next to the rows of its steps; nothing if no run has it."""
    traces = [measures.trace_noise(run) for run in runs]
    if not any(scales.x for scales, _ in traces):
        return []
    rows = traces[0][1] if len(runs) == 1 else None
    drawn = _draw(
        runs, [scales for scales, _ in traces], ids, "Noise scale.", rows, of_reference="rows of a step", y_from=0.0
    )
    dashed = "; dashed: rows of a step" if rows else ""
    return [Plot("Noise scale", drawn, f"rows at which a step is as much signal as noise{dashed}")]


def draw_sources(runs: Sequence[Run], ids: PlotIds) -> list[PlotGroup]:
    """Draw evaluation loss, kept share and training mixture of the sources in `measures.choose_drawn`, for all runs."""
    drawn = measures.choose_drawn(_list_sources(runs), measures.find_rises(runs))
    return [_draw_source(name, runs, ids) for name in drawn]


def _list_sources(runs: Sequence[Run]) -> list[str]:
    """Return the sources of all runs, the largest of each first."""
    columns = zip_longest(*(run.sources for run in runs))
    return list(dict.fromkeys(name for row in columns for name in row if name is not None))


def _draw_source(name: str, runs: Sequence[Run], ids: PlotIds) -> PlotGroup:
    first = next(run for run in runs if name in run.sources)
    share = measures.data_share(first, name)
    losses = [measures.trace_source_loss(run, name) for run in runs]
    kept = [measures.trace_kept_share(run, name, measures.choose_window(len(run.steps))) for run in runs]
    mixture = [measures.trace_mixture(run, name) for run in runs]
    last = max(run.steps[-1].number for run in runs)
    even = Points([1, last], [share, share]) if share is not None else None
    drawn = [
        Plot("Evaluation loss", _draw(runs, losses, ids, f"Evaluation loss of {name}."), ""),
        Plot(
            "Kept share",
            _draw(runs, kept, ids, f"Kept share of {name}.", percent=True, y_from=0.0, y_to=1.05),
            f"kept fraction of the source's pool rows, over {_show_windows(runs)} steps",
        ),
        Plot(
            "Training mixture",
            _draw(runs, mixture, ids, f"Share of {name} in all rows trained on.", even, percent=True, y_from=0.0),
            "share of the training rows so far; dashed: share of the data",
        ),
    ]
    size = "small" if name in first.small else "big"
    return PlotGroup(name, f"{size}, {first.rows.get(name, 0):,} rows, {show_share(share)} of the data", drawn)


def _draw(
    runs: Sequence[Run],
    traces: Sequence[Points],
    ids: PlotIds,
    alt: str,
    reference: Points | None = None,
    *,
    of_reference: str = "data",
    percent: bool = False,
    y_from: float | None = None,
    y_to: float | None = None,
) -> Markup:
    """Draw one line per run, or nothing if no run has a point."""
    if not any(trace.x for trace in traces):
        return Markup()
    lines = [Line(*reference, -1, name=of_reference)] if reference else []
    lines += [Line(*trace, i, name=run.name) for i, (run, trace) in enumerate(zip(runs, traces, strict=True))]
    alt += "".join(f" {run.name}: {_describe(trace, percent)}" for run, trace in zip(runs, traces, strict=True))
    return draw_lines(lines, x_label=STEPS, alt=alt, ids=ids, percent=percent, y_from=y_from, y_to=y_to)


def _describe(points: Points, percent: bool) -> str:
    """Describe for screen readers where a line starts and ends."""
    if not points.x:
        return "no values."
    show = show_share if percent else show_number
    return f"from {show(points.y[0])} to {show(points.y[-1])} at step {points.x[-1]:.0f}."


def _show_windows(runs: Sequence[Run]) -> str:
    return " or ".join(str(window) for window in sorted({measures.choose_window(len(run.steps)) for run in runs}))
