"""The plots of `colm report`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from markupsafe import Markup

from colm.lab.report import measures
from colm.lab.report.measures import Points
from colm.lab.report.page import Plot, show_number, show_share
from colm.lab.report.plots import Line, draw_lines
from colm.lab.report.runs import Run
from colm.lab.report.svg import PlotIds

STEPS = "optimizer steps"
LEAST_SHARE = 0.05
"""Time shares below this value are negligible, so the y axis does not zoom in further."""


class SourcePart(NamedTuple):
    """One source's plots."""

    name: str
    note: str
    plots: list[Plot]


def draw_losses(runs: Sequence[Run], ids: PlotIds) -> list[Plot]:
    """Draw the macro and the micro loss of all runs."""
    traces = [measures.trace_mean_losses(run) for run in runs]
    kinds = (
        ("Macro loss", "unweighted mean over sources"),
        ("Micro loss", "mean over sources, weighted by training rows"),
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
                Markup(draw_lines([Line(*random, -1), Line(*match, i)], x_label=STEPS, alt=alt, ids=ids)),
                "cosine of the kept big rows' mean feature with the pool's; dashed: expected for as many random rows; "
                f"mean over {window} steps",
            )
        )
    shares = [measures.trace_selection_share(run, measures.choose_window(len(run.steps))) for run in runs]
    title = "Selection's share of the step time"
    highest = max((share for trace in shares for share in trace.y), default=0.0)
    y_to = None if highest > LEAST_SHARE else LEAST_SHARE
    drawn = _draw(runs, shares, ids, f"{title}.", percent=True, y_from=0.0, y_to=y_to)
    return [*plots, Plot(title, drawn, f"selection time / total time, over {_show_windows(runs)} steps")]


def draw_sources(runs: Sequence[Run], ids: PlotIds) -> list[SourcePart]:
    """Draw evaluation loss, kept share and training mixture of the sources in `measures.choose_drawn`, for all runs."""
    columns = zip_longest(*(run.sources for run in runs))
    names = list(dict.fromkeys(name for row in columns for name in row if name is not None))
    return [_draw_source(name, runs, ids) for name in measures.choose_drawn(names, measures.find_rises(runs))]


def _draw_source(name: str, runs: Sequence[Run], ids: PlotIds) -> SourcePart:
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
    return SourcePart(name, f"{size}, {first.rows.get(name, 0):,} rows, {show_share(share)} of the data", drawn)


def _draw(
    runs: Sequence[Run],
    traces: Sequence[Points],
    ids: PlotIds,
    alt: str,
    reference: Points | None = None,
    *,
    percent: bool = False,
    y_from: float | None = None,
    y_to: float | None = None,
) -> Markup:
    """Draw one line per run, or nothing if no run has a point."""
    if not any(trace.x for trace in traces):
        return Markup("")
    lines = [Line(*reference, -1)] if reference else []
    lines += [Line(*trace, i) for i, trace in enumerate(traces)]
    alt += "".join(f" {run.name}: {_describe(trace, percent)}" for run, trace in zip(runs, traces, strict=True))
    return Markup(draw_lines(lines, x_label=STEPS, alt=alt, ids=ids, percent=percent, y_from=y_from, y_to=y_to))


def _describe(points: Points, percent: bool) -> str:
    """Describe for screen readers where a line starts and ends."""
    if not points.x:
        return "no values."
    show = show_share if percent else show_number
    return f"from {show(points.y[0])} to {show(points.y[-1])} at step {points.x[-1]:.0f}."


def _show_windows(runs: Sequence[Run]) -> str:
    return " or ".join(str(window) for window in sorted({measures.choose_window(len(run.steps)) for run in runs}))
