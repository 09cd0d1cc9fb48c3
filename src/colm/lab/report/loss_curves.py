"""Losses of a comparison along steps, rows, seconds or cost, and when a method reaches a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Literal, NamedTuple

from colm.lab.report.comparison import Curve, Figures, Method, final_losses
from colm.lab.report.measures import mean_macro, mean_micro
from colm.lab.report.runs import Evaluation

Axis = Literal["step", "cost", "rows", "seconds"]


LossOf = Callable[[Evaluation, Curve], float | None]
"""The loss of one evaluation that a plot shows, or None."""


class Band(NamedTuple):
    """A mean over seeds along an axis, with the lowest and the highest seed (both empty with a single seed)."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


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
