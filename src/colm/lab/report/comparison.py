"""Read a `colm compare` folder as records, and compute its tables and plots as pure functions of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from colm.errors import ConfigError
from colm.lab.intervals import Interval, estimate_difference, estimate_mean
from colm.lab.report.measures import mean_macro, mean_micro
from colm.lab.report.runs import Evaluation, read_evaluations, read_summary
from colm.lab.run.folder import RunFolder
from colm.step.record import COMPARE_NAME

METRICS = ("macro", "micro", "small", "big")
CONTROL = "control"
RANDOM = "random"

Axis = Literal["step", "cost", "rows", "seconds"]


class Figures(NamedTuple):
    """One run's results; the losses are from the last evaluation."""

    losses: dict[str, float]  # the available METRICS
    steps: int
    seconds: float  # of training, including selection
    selection_seconds: float
    peak_memory: int | None  # bytes
    free: bool = False  # rows are chosen without a selection pass
    resampled: bool = False  # the sources have other shares of the data than in other runs
    learning_rate: float | None = None
    operations: float | None = None  # counted, of all forwards and backwards; None for methods of equal steps


class Curve(NamedTuple):
    """One run's evaluations."""

    evaluations: list[Evaluation]
    rows: dict[str, int]  # source -> training rows
    small: frozenset[str]


LossOf = Callable[[Evaluation, Curve], float | None]
"""The loss of one evaluation that a plot shows, or None."""


class Method(NamedTuple):
    """All finished runs of one method, by seed."""

    name: str
    figures: dict[str, Figures]
    curves: dict[str, Curve]  # of the seeds whose run folder exists


class Band(NamedTuple):
    """A mean over seeds along an axis, with the lowest and the highest seed (both empty with a single seed)."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


class Cost(NamedTuple):
    """The cost of a method: means over seeds, and the highest peak memory."""

    steps: float
    step_seconds: float
    selection_seconds: float  # per step
    training_seconds: float  # per step
    rows: float | None  # total training examples
    peak_memory: int | None
    learning_rates: list[float]
    operations: float | None


class Reach(NamedTuple):
    """When a method's mean loss first reaches the target; None if it never does."""

    steps: float | None
    seconds: float | None
    operations: float | None


class Target(NamedTuple):
    """Final losses of a method, for others to reach."""

    method: str
    macro: float
    micro: float | None


def read_comparison(folder: Path) -> list[Method]:
    """Read `compare.json` and the evaluations of the listed runs, in order.

    Raises:
        ConfigError: the folder or a file is missing or cannot be read.
    """
    path = folder / COMPARE_NAME
    if not path.is_file():
        raise ConfigError(f"There is no {COMPARE_NAME} in {folder}; give the output_dir of a colm compare run.")
    held = RunFolder(folder).read(COMPARE_NAME)
    if not isinstance(held, dict) or not held or not all(isinstance(seeds, dict) for seeds in held.values()):
        raise ConfigError(f"{path} contains no finished runs; it must map methods to seeds to results.")
    methods = []
    for name, seeds in held.items():
        figures = {str(seed): _parse_figures(values, f"{path}, {name}, seed {seed},") for seed, values in seeds.items()}
        curves = {seed: curve for seed in figures if (curve := _read_curve(folder / name / f"seed-{seed}"))}
        methods.append(Method(name, figures, curves))
    return _share_rows(methods)


def _share_rows(methods: Sequence[Method]) -> list[Method]:
    """Give runs whose sources were resampled the rows of one run, best one whose were not: means are over the same."""
    found = [(method.figures[seed].resampled, curve) for method in methods for seed, curve in method.curves.items()]
    if not found:
        return list(methods)
    rows, small = min(found, key=lambda pair: pair[0])[1][1:]
    return [
        method._replace(
            curves={
                seed: curve._replace(rows=rows, small=small) if method.figures[seed].resampled else curve
                for seed, curve in method.curves.items()
            }
        )
        for method in methods
    ]


def list_sources(methods: Sequence[Method]) -> list[tuple[str, int, bool]]:
    """Return name, rows and smallness of every training source, the largest first."""
    found: dict[str, tuple[int, bool]] = {}
    for method in methods:
        for curve in method.curves.values():
            for name, rows in curve.rows.items():
                found.setdefault(name, (rows, name in curve.small))
    ranked = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    return [(name, rows, small) for name, (rows, small) in ranked]


def final_losses(method: Method) -> dict[str, Interval | None]:
    """Return the mean over seeds of each final loss."""
    return {metric: estimate_mean(list(_by_seed(method, metric).values())) for metric in METRICS}


def loss_differences(method: Method, base: Method) -> dict[str, Interval | None]:
    """Return the mean over common seeds of each final loss minus the base's, with paired intervals."""
    return {metric: estimate_difference(_by_seed(method, metric), _by_seed(base, metric)) for metric in METRICS}


def count_cost(method: Method) -> Cost:
    """Return the method's cost per step and in total."""
    runs = list(method.figures.values())
    rows = [curve.evaluations[-1].rows for curve in method.curves.values()]
    counted = [run.operations for run in runs if run.operations is not None]
    memory = [run.peak_memory for run in runs if run.peak_memory is not None]
    whole = fmean(run.seconds / run.steps for run in runs)
    selection = fmean(run.selection_seconds / run.steps for run in runs)
    return Cost(
        steps=fmean(run.steps for run in runs),
        step_seconds=whole,
        selection_seconds=selection,
        training_seconds=whole - selection,
        rows=fmean(known) if (known := [count for count in rows if count is not None]) else None,
        peak_memory=max(memory) if memory else None,
        learning_rates=sorted({run.learning_rate for run in runs if run.learning_rate is not None}),
        operations=fmean(counted) if len(counted) == len(runs) else None,
    )


def average_curves(method: Method, axis: Axis, loss: LossOf) -> Band:
    """Return the mean over seeds of a loss, at the steps where every seed was evaluated.

    Args:
        method: the method, with its curves.
        axis: the x axis; seconds, and possibly rows, differ between seeds and are averaged. The cost is the counted
            operations so far.
        loss: loss of one evaluation; steps without a finite loss for every seed are left out.
    """
    band = Band([], [], [], [])
    places = [_places(method.figures[seed], curve, axis) for seed, curve in method.curves.items()]
    losses = [_trace(curve, loss) for curve in method.curves.values()]
    for step in _common_steps(losses):
        held = [place for of_seed in places if (place := of_seed[step]) is not None]
        if len(held) == len(places):
            _append(band, fmean(held), [of_seed[step] for of_seed in losses])
    return band


def average_differences(method: Method, base: Method, loss: LossOf) -> Band:
    """Return the mean over common seeds of a loss minus the base's, at the steps where all of them were evaluated."""
    seeds = [seed for seed in method.curves if seed in base.curves]
    pairs = [(_trace(method.curves[seed], loss), _trace(base.curves[seed], loss)) for seed in seeds]
    differences = [{step: mine[step] - its[step] for step in mine.keys() & its} for mine, its in pairs]
    band = Band([], [], [], [])
    for step in _common_steps(differences):
        _append(band, float(step), [of_seed[step] for of_seed in differences])
    return band


def _places(figures: Figures, curve: Curve, axis: Axis) -> dict[int, float | None]:
    """Return the x value of each evaluation, by step."""
    if axis == "cost":
        last = curve.evaluations[-1]
        if figures.operations is None:
            return {one.step: None for one in curve.evaluations}
        if figures.free and last.rows:  # the cost is that of the rows, of which a step may have more than another
            return {
                one.step: None if one.rows is None else figures.operations * one.rows / last.rows
                for one in curve.evaluations
            }
        return {one.step: figures.operations * one.step / figures.steps for one in curve.evaluations}
    return {one.step: getattr(one, axis) for one in curve.evaluations}


def find_target(methods: Sequence[Method]) -> Target | None:
    """Return the final losses of the method without a selection pass whose mean macro loss is lowest."""
    found = []
    for method in methods:
        runs = list(method.figures.values())
        if all(run.free and "macro" in run.losses for run in runs):
            means = final_losses(method)
            macro, micro = means["macro"], means["micro"]
            if macro is not None and isfinite(macro.mean):
                found.append(Target(method.name, macro.mean, None if micro is None else micro.mean))
    return min(found, key=lambda target: target.macro, default=None)


def find_reach(method: Method, target: float, loss: LossOf | None = None) -> Reach:
    """Return when the method's loss, mean over seeds, first reaches the target, interpolated linearly.

    Args:
        method: the method, with its curves.
        target: the loss to reach.
        loss: of one evaluation (default: macro).
    """

    def reach(axis: Axis) -> float | None:
        band = average_curves(method, axis, loss or macro_loss)
        return find_first_reach(band.x, band.y, target)

    return Reach(reach("step"), reach("seconds"), reach("cost"))


def find_first_reach(x: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """Return the first x at which the curve, linear between its points, is at or below the target; None if it never is.

    Args:
        x: ascending x values.
        losses: one for each x.
        target: the target loss, with a relative tolerance of one millionth, since the target is a mean of such curves.

    >>> find_first_reach([0, 10, 20], [4.0, 3.0, 1.0], 2.0)
    15.0
    >>> find_first_reach([0, 10], [4.0, 3.0], 2.0)
    """
    slack = target + abs(target) * 1e-6
    before: tuple[float, float] | None = None
    for place, loss in zip(x, losses, strict=True):
        if loss <= slack:
            if before is None:
                return float(place)
            part = (before[1] - target) / (before[1] - loss)
            return float(before[0] + (place - before[0]) * min(1.0, part))
        if isfinite(loss):
            before = (place, loss)
    return None


def macro_loss(evaluation: Evaluation, curve: Curve) -> float | None:
    """Return an evaluation's mean over the training sources."""
    return mean_macro(evaluation.losses, curve.rows)


def micro_loss(evaluation: Evaluation, curve: Curve) -> float | None:
    """Return an evaluation's mean over the training sources, weighted by their training rows."""
    return mean_micro(evaluation.losses, curve.rows)


def _trace(curve: Curve, loss: LossOf) -> dict[int, float]:
    """Return the finite losses by step."""
    losses = {each.step: loss(each, curve) for each in curve.evaluations}
    return {step: value for step, value in losses.items() if value is not None and isfinite(value)}


def _common_steps(traces: Sequence[Mapping[int, float]]) -> list[int]:
    return sorted(set.intersection(*map(set, traces))) if traces else []


def _append(band: Band, place: float, values: list[float]) -> None:
    band.x.append(place)
    band.y.append(fmean(values))
    if len(values) > 1:
        band.low.append(min(values))
        band.high.append(max(values))


def _by_seed(method: Method, metric: str) -> dict[str, float]:
    return {seed: run.losses[metric] for seed, run in method.figures.items() if metric in run.losses}


def _parse_figures(values: Any, place: str) -> Figures:
    try:
        losses = {metric: values[metric] for metric in METRICS}
        figures = Figures(
            losses={metric: float(loss) for metric, loss in losses.items() if loss is not None},
            steps=int(values["steps"]),
            seconds=float(values["seconds"]),
            selection_seconds=float(values["selection_seconds"]),
            peak_memory=None if values["peak_memory_bytes"] is None else int(values["peak_memory_bytes"]),
            free=bool(values.get("free")),
            resampled=bool(values.get("resampled")),
            learning_rate=None if values.get("learning_rate") is None else float(values["learning_rate"]),
            operations=None if values.get("operations") is None else float(values["operations"]),
        )
    except KeyError as error:
        raise ConfigError(f"{place} lacks {error}; it was not written by this version of colm compare.") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place} does not have the format that colm compare writes: {error}") from error
    if figures.steps < 1:
        raise ConfigError(f"{place} has steps={figures.steps}; a finished run has at least 1.")
    return figures


def _read_curve(folder: Path) -> Curve | None:
    """Return the run's evaluations, or None if its folder is missing or has none."""
    if not folder.is_dir():
        return None
    summary, evaluations = read_summary(folder), read_evaluations(folder)
    return Curve(evaluations, summary.rows, summary.small) if summary and evaluations else None


def find_method(methods: Sequence[Method], name: str) -> Method | None:
    """Return the method of that name, or None."""
    return next((method for method in methods if method.name == name), None)
