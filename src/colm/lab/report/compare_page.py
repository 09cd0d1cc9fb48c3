"""The page of `colm compare`: methods side by side, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from markupsafe import Markup

from colm.lab.report.comparison import (
    CONTROL,
    METRICS,
    RANDOM,
    Method,
    count_cost,
    final_losses,
    find_method,
    list_sources,
    loss_differences,
    read_comparison,
)
from colm.lab.report.conclusion import conclude
from colm.lab.report.loss_curves import (
    Axis,
    Band,
    LossOf,
    Reach,
    Target,
    average_curves,
    average_differences,
    find_reach,
    find_target,
    macro_loss,
    micro_loss,
)
from colm.lab.report.measures import MOST_DRAWN, mean_macro
from colm.lab.report.page import Plot, PlotGroup, draw_legend, write_page
from colm.lab.report.plots import Line, PlotIds, draw_lines

PAGE_NAME = "compare.html"
AXES: tuple[tuple[Axis, str, str], ...] = (
    ("step", "against steps", "optimizer steps"),
    ("cost", "against counted cost", "counted cost, relative to the budget"),
    ("rows", "against examples", "training examples"),
    ("seconds", "against time", "training seconds, including selection"),
)
LOSSES = {
    "macro": "mean over all sources",
    "micro": "mean over all sources, weighted by their training rows",
    "small": "mean over small sources",
    "big": "mean over big sources",
}
_MEANS: dict[str, LossOf] = {
    "macro": macro_loss,
    "micro": micro_loss,
    "small": lambda evaluation, curve: mean_macro(evaluation.losses, curve.rows.keys() & curve.small),
    "big": lambda evaluation, curve: mean_macro(evaluation.losses, curve.rows.keys() - curve.small),
}


def write_comparison(folder: Path, *, out: Path | None = None, descriptions: Mapping[str, str] | None = None) -> Path:
    """Write the page of a comparison and return its path.

    Args:
        folder: folder with `compare.json` and the runs in ``<method>/seed-<seed>``.
        out: the HTML file; default: `compare.html` in the folder.
        descriptions: short description of each method, by name.

    Raises:
        ConfigError: the folder contains no comparison, one of its files cannot be read, or the page cannot be written.
    """
    methods = read_comparison(folder)
    ids = PlotIds()
    seeds = [len(method.figures) for method in methods]
    base = find_method(methods, RANDOM)
    target = _mean_target(base) if base else None
    best = find_target(methods)
    costs = [(method.name, count_cost(method)) for method in methods]
    unit = max((cost.operations for _, cost in costs if cost.operations), default=None)
    bases = [method for name in (CONTROL, RANDOM) if (method := find_method(methods, name))]
    return write_page(
        out or folder / PAGE_NAME,
        "compare.html",
        title=f"colm compare: {folder.resolve().name}",
        folder=folder.resolve().name,
        metrics=METRICS,
        losses=LOSSES,
        one_seed=max(seeds) == 1,
        seed_counts=sorted(set(seeds)),
        descriptions={method.name: _describe_method(method.name, descriptions or {}) for method in methods},
        conclusion=conclude(methods),
        missing=[
            f"{method.name}/seed-{seed}" for method in methods for seed in method.figures if seed not in method.curves
        ],
        finals=[(method.name, len(method.figures), final_losses(method)) for method in methods],
        differences=[
            (each.name, [(method.name, loss_differences(method, each)) for method in methods if method is not each])
            for each in bases
        ],
        costs=costs,
        unit=unit,
        target=target,
        reaches=[] if target is None else [(method.name, find_reach(method, target)) for method in methods],
        best=best,
        best_reaches=[] if best is None else [_reach_both(method, best) for method in methods],
        legend=draw_legend([method.name for method in methods], ids),
        gaps=_draw_gaps(methods, bases[0], ids) if bases and unit is None else [],  # else steps differ
        base=bases[0].name if bases else "",
        means=_draw_means(methods, unit, ids),
        sources=_draw_sources(methods, unit, ids),
        source_count=len(list_sources(methods)),
    )


def _mean_target(base: Method) -> float | None:
    """Return a method's final macro loss, for others to reach; None without a finite one."""
    held = final_losses(base)["macro"]
    return held.mean if held is not None and isfinite(held.mean) else None


def _reach_both(method: Method, target: Target) -> tuple[str, Reach, Reach | None]:
    """Return the method's name, and when it reaches the target's macro and micro loss."""
    micro = None if target.micro is None else find_reach(method, target.micro, micro_loss)
    return method.name, find_reach(method, target.macro), micro


def _draw_gaps(methods: Sequence[Method], base: Method, ids: PlotIds) -> list[Plot]:
    """Draw the difference of each mean loss from the base's, which separates methods that are close together."""
    plots = []
    for name, loss in _MEANS.items():
        others = [(i, method) for i, method in enumerate(methods) if method is not base]
        bands = [(i, average_differences(method, base, loss)) for i, method in others]
        longest = max((band.x for _, band in bands), key=len, default=[])
        zero = Line(longest, [0.0] * len(longest), style=-1, name=base.name)
        alt = f"{name.capitalize()} loss minus that of {base.name} against steps."
        drawn = _draw(methods, bands, AXES[0][2], alt, ids, [zero])
        plots.append(Plot(f"{name.capitalize()} loss", drawn, f"minus that of {base.name}"))
    return [plot for plot in plots if plot.svg]


def _draw_means(methods: Sequence[Method], unit: float | None, ids: PlotIds) -> list[PlotGroup]:
    drawn = [
        PlotGroup(f"{name.capitalize()} loss", LOSSES[name], _draw_axes(methods, f"{name} loss", loss, unit, ids))
        for name, loss in _MEANS.items()
    ]
    return [group for group in drawn if any(plot.svg for plot in group.plots)]


def _draw_sources(methods: Sequence[Method], unit: float | None, ids: PlotIds) -> list[PlotGroup]:
    def loss_of(name: str) -> LossOf:
        return lambda evaluation, curve: evaluation.losses.get(name)

    return [
        PlotGroup(
            name,
            f"{'small' if small else 'big'}, {rows:,} rows",
            _draw_axes(methods, f"loss of {name}", loss_of(name), unit, ids),
        )
        for name, rows, small in list_sources(methods)[:MOST_DRAWN]
    ]


def _draw_axes(methods: Sequence[Method], what: str, loss: LossOf, unit: float | None, ids: PlotIds) -> list[Plot]:
    plots = []
    for axis, title, label in AXES:
        if axis == "cost" and unit is None:
            continue
        bands = [(i, average_curves(method, axis, loss)) for i, method in enumerate(methods)]
        if axis == "cost" and unit is not None:
            bands = [(i, band._replace(x=[x / unit for x in band.x])) for i, band in bands]
        alt = f"{what.capitalize()} {title}, mean over seeds."
        plots.append(Plot(title.capitalize(), _draw(methods, bands, label, alt, ids), ""))
    return plots


def _draw(
    methods: Sequence[Method],
    bands: Sequence[tuple[int, Band]],
    label: str,
    alt: str,
    ids: PlotIds,
    reference: Sequence[Line] = (),
) -> Markup:
    """Draw the bands of methods, given by their numbers."""
    ends = [f"{methods[i].name}: {_describe(band)}" for i, band in bands]
    lines = [*reference, *(Line(band.x, band.y, i, band.low, band.high, methods[i].name) for i, band in bands)]
    return draw_lines(lines, x_label=label, alt=" ".join([alt, *ends]), ids=ids)


def _describe(band: Band) -> str:
    return f"from {band.y[0]:.3f} to {band.y[-1]:.3f}." if band.y else "no values."


def _describe_method(name: str, descriptions: Mapping[str, str]) -> str:
    base, _, changes = name.partition("+")
    known = descriptions.get(base, "")
    return f"{known}, with {changes}" if known and changes else known
