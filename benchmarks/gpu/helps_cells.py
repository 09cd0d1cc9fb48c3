"""Table cells of a page: means over seeds, paired differences, and interpolated curve values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from colm.lab.intervals import Interval, estimate_difference

Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Method -> seed -> the run's line."""

PLAIN = "plain"
"""The method that is not colm's: `transformers.Trainer` with its own order and loss, the mean over tokens."""

BASES = ("random", "control", "control-half")
"""Baselines without selection cost: those with the same number of rows, or half as many."""


def interpolate(x: Sequence[float], y: Sequence[float], place: float) -> float:
    """Return a curve's value, linear between its points; after its end, the last value."""
    for start, end, low, high in zip(x, x[1:], y, y[1:], strict=False):
        if start <= place < end:
            return low + (high - low) * (place - start) / (end - start)
    return y[-1] if place >= x[-1] else y[0]


def less_bases(name: str, values: Mapping[str, Mapping[str, float]], digits: int = 4) -> list[str]:
    """Return the cells of the differences from each base, paired by seed."""
    return [
        "-"
        if name == base or base not in values
        else show(estimate_difference(values[name], values[base]), digits, "+")
        for base in BASES
    ]


def mean_of(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return fmean(held) if held else None


def show(interval: Interval | None, digits: int = 4, sign: str = "") -> str:
    if interval is None:
        return "-"
    mean = f"{interval.mean:{sign}.{digits}f}"
    if interval.half is None:
        return mean
    return f"{mean} ± {interval.half:.{digits}f}{' *' if sign and interval.sign else ''}"


def macro(losses: Mapping[str, float]) -> float:
    """Return the mean over sources."""
    return fmean(losses.values())


def curve(line: Mapping[str, Any], base: Mapping[str, float] | None) -> tuple[list[float], list[float]]:
    """Return seconds and macro losses of a run's evaluations, after those of the model before training."""
    points = [(each["seconds"], macro(each["losses"])) for each in line["evaluations"]]
    points = [(0.0, macro(base)), *points] if base else points
    return [x for x, _ in points], [y for _, y in points]


def by_seed(held: Mapping[str, Mapping[str, Any]], read: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
    return {seed: read(line) for seed, line in held.items()}


def final(line: Mapping[str, Any]) -> Mapping[str, float]:
    """Return each source's loss at a run's end."""
    losses: Mapping[str, float] = line["evaluations"][-1]["losses"]
    return losses
