"""Read a `colm compare` folder as records, and compute its tables as pure functions of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from colm.errors import ConfigError
from colm.lab.intervals import Interval, estimate_difference, estimate_mean
from colm.lab.report.runs import Evaluation, read_evaluations, read_summary
from colm.lab.run.folder import RunFolder
from colm.step.record import COMPARE_NAME

METRICS = ("macro", "micro", "small", "big")
CONTROL = "control"
RANDOM = "random"


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


class Method(NamedTuple):
    """All finished runs of one method, by seed."""

    name: str
    figures: dict[str, Figures]
    curves: dict[str, Curve]  # of the seeds whose run folder exists


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
