"""Compute the plots and tables of a run, as pure functions of its records."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf, isfinite
from statistics import fmean
from typing import NamedTuple

from colm.lab.report.runs import Run, Step
from colm.types import NoiseScale

WINDOW_SHARE = 20
"""The window is the run's steps divided by this number, so a smoothed line has about this many independent points."""
MOST_POINTS = 200
"""Maximum points of a plotted line; more cannot be distinguished and would only enlarge the page."""

MOST_DRAWN = 24
"""Maximum sources with plots on a page; a plot takes 0.1 s, and nobody looks at thousands."""


class Points(NamedTuple):
    """A line to plot."""

    x: list[float]
    y: list[float]


class SourceRow(NamedTuple):
    """One line of the table by source; shares are fractions, or None for a zero denominator."""

    name: str
    small: bool
    rows: int
    data_share: float | None
    pooled: int
    kept: int
    kept_share: float | None  # fraction of the source's pool rows
    trained_share: float | None  # fraction of all kept rows
    before: float | None
    after: float | None
    noise: float | None  # noise scale at the end, in rows


def mean_macro(losses: Mapping[str, float], trained: Container[str]) -> float | None:
    """Return the mean over the training sources; None if no loss is known.

    >>> mean_macro({"a": 1.0, "b": 3.0, "only evaluated": 9.0}, {"a", "b"})
    2.0
    """
    held = [loss for name, loss in losses.items() if name in trained]
    return fmean(held) if held else None


def mean_micro(losses: Mapping[str, float], rows: Mapping[str, int]) -> float | None:
    """Return the mean over sources weighted by their training rows; None if no loss is known.

    >>> mean_micro({"a": 1.0, "b": 3.0}, {"a": 30, "b": 10})
    1.5
    """
    held = [name for name in losses if rows.get(name)]
    total = sum(rows[name] for name in held)
    return sum(losses[name] * rows[name] for name in held) / total if total else None


def choose_window(steps: int) -> int:
    """Return how many steps a smoothed line averages.

    >>> [choose_window(steps) for steps in (3, 60, 1000)]
    [3, 5, 50]
    """
    return min(steps, max(5, steps // WINDOW_SHARE))


def slide_ratio(above: Sequence[float], below: Sequence[float], window: int) -> list[float | None]:
    """Return, at each step, the ratio of the sums over the window that ends there; None for a zero denominator.

    At the start, the window covers only the steps so far.

    >>> slide_ratio([1, 1, 0], [2, 2, 0], 2)
    [0.5, 0.5, 0.5]
    >>> slide_ratio([0, 3], [0, 4], 1)
    [None, 0.75]
    """
    tops, bottoms = ([0.0, *accumulate(values)] for values in (above, below))
    found: list[float | None] = []
    for end in range(1, len(above) + 1):
        start = max(0, end - window)
        found.append(divide(tops[end] - tops[start], bottoms[end] - bottoms[start]))
    return found


def thin(x: Sequence[float], y: Sequence[float | None], most: int = MOST_POINTS) -> Points:
    """Return at most `most` evenly spaced points, including the last one and without non-finite values.

    >>> thin([1, 2, 3, 4, 5], [10, 20, None, 40, 50], most=3)
    Points(x=[1, 5], y=[10, 50])
    """
    last = len(x) - 1
    wanted = range(len(x)) if len(x) <= most else sorted({round(i * last / (most - 1)) for i in range(most)})
    held = [(x[i], value) for i in wanted if (value := y[i]) is not None and isfinite(value)]
    return Points([each[0] for each in held], [each[1] for each in held])


def trace_source_loss(run: Run, source: str) -> Points:
    """Return the source's evaluation loss against steps."""
    return thin([each.step for each in run.evaluations], [each.losses.get(source) for each in run.evaluations])


def trace_mean_losses(run: Run) -> tuple[Points, Points]:
    """Return the macro and the micro loss against steps."""
    steps = [each.step for each in run.evaluations]
    macro = thin(steps, [mean_macro(each.losses, run.trained) for each in run.evaluations])
    return macro, thin(steps, [mean_micro(each.losses, run.rows) for each in run.evaluations])


def trace_training_loss(run: Run) -> Points:
    """Return the training loss against steps."""
    return thin([each.step for each in run.losses], [each.loss for each in run.losses])


def trace_kept_share(run: Run, source: str, window: int) -> Points:
    """Return the share of the source's pool rows kept over the window that ends at each step."""
    kept = [step.kept.get(source, 0) for step in run.steps]
    pooled = [step.pool.get(source, 0) for step in run.steps]
    return thin(_numbers(run.steps), slide_ratio(kept, pooled, window))


def trace_mixture(run: Run, source: str) -> Points:
    """Return the source's share of all rows trained on so far, against steps."""
    mine, every, shares = 0, 0, []
    for step in run.steps:
        mine += step.kept.get(source, 0)
        every += step.kept_count
        shares.append(mine / every if every else None)
    return thin(_numbers(run.steps), shares)


def trace_match(run: Run, window: int) -> tuple[Points, Points]:
    """Return the gradient match of the kept rows and of random ones, means over the window, against steps."""
    held = compared_steps(run)

    def smooth(values: list[float]) -> Points:
        return thin(_numbers(held), slide_ratio(values, [1.0] * len(held), window))

    return smooth([step.match or 0.0 for step in held]), smooth([step.match_random or 0.0 for step in held])


def trace_selection_share(run: Run, window: int) -> Points:
    """Return the selection's fraction of the step time over the window, against steps."""
    held = [step for step in run.steps if step.step_seconds]
    share = slide_ratio([step.seconds for step in held], [step.step_seconds or 0.0 for step in held], window)
    return thin(_numbers(held), share)


def trace_noise(run: Run) -> tuple[Points, Points]:
    """Return the noise scale of all rows where it is known, and the rows of those steps, against steps."""
    held = [(step.number, step.noise) for step in run.steps if step.noise is not None]
    numbers = [number for number, _ in held]
    scales = [noise.overall for _, noise in held]
    rows = [None if noise.overall is None else float(noise.rows) for _, noise in held]
    return thin(numbers, scales), thin(numbers, rows)


def last_noise(run: Run) -> NoiseScale | None:
    """Return the noise scale after the last measurement; None for a run without one."""
    return next((step.noise for step in reversed(run.steps) if step.noise is not None), None)


def compared_steps(run: Run) -> list[Step]:
    """Return the steps with a finite match of both the kept rows and random rows."""
    return [
        step
        for step in run.steps
        if all(value is not None and isfinite(value) for value in (step.match, step.match_random))
    ]


def data_share(run: Run, source: str) -> float | None:
    """Return the source's share of the training rows."""
    return divide(run.rows.get(source, 0), sum(run.rows.values()))


def tabulate_sources(run: Run) -> list[SourceRow]:
    """Return the table by source, the largest source first."""
    before = run.evaluations[0] if run.evaluations and run.evaluations[0].step == 0 else None
    after = run.evaluations[-1] if run.evaluations and run.evaluations[-1] is not before else None
    every, total = sum(run.kept.values()), sum(run.rows.values())
    noise = last_noise(run)
    return [
        SourceRow(
            name=name,
            small=name in run.small,
            rows=run.rows.get(name, 0),
            data_share=divide(run.rows.get(name, 0), total),
            pooled=run.pooled.get(name, 0),
            kept=run.kept.get(name, 0),
            kept_share=divide(run.kept.get(name, 0), run.pooled.get(name, 0)),
            trained_share=divide(run.kept.get(name, 0), every),
            before=before.losses.get(name) if before else None,
            after=after.losses.get(name) if after else None,
            noise=noise.sources.get(name) if noise else None,
        )
        for name in run.sources
    ]


def find_rises(runs: Iterable[Run]) -> dict[str, float]:
    """Return by how much each source's loss rose from first to last, in the run with the largest rise."""
    rises: dict[str, float] = {}
    for run in runs:
        first, last = (run.evaluations[0].losses, run.evaluations[-1].losses) if run.evaluations else ({}, {})
        for name in first.keys() & last.keys():
            rises[name] = max(rises.get(name, -inf), last[name] - first[name])
    return {name: rise for name, rise in rises.items() if isfinite(rise)}


def choose_drawn(sources: Sequence[str], rises: Mapping[str, float], most: int = MOST_DRAWN) -> list[str]:
    """Return the sources to plot, in order: all of them if there are at most `most`.

    Otherwise, three quarters are the first sources, and the rest those whose loss rose most.

    Args:
        sources: sources, the largest first.
        rises: source -> its last evaluation loss minus its first, in any run.
        most: maximum sources to plot.

    >>> choose_drawn("abcdefgh", {"d": -1.0, "f": 0.5, "h": 0.1}, most=4)
    ['a', 'b', 'c', 'f']
    """
    if len(sources) <= most:
        return list(sources)
    first = 3 * most // 4
    rising = sorted((name for name in sources[first:] if name in rises), key=lambda name: -rises[name])
    drawn = {*sources[:first], *rising[: most - first]}
    return [name for name in sources if name in drawn]


def sum_seconds(run: Run) -> tuple[float, float] | None:
    """Return the run's training seconds and the selection seconds in them; None if not recorded."""
    if run.finished and run.summary:
        return run.summary.seconds, run.summary.selection_seconds
    timed = [step for step in run.steps if step.step_seconds]
    if not timed:
        return None
    return sum(step.step_seconds or 0.0 for step in timed), sum(step.seconds for step in timed)


def divide(above: float, below: float) -> float | None:
    """Return the ratio, or None for a zero denominator."""
    return above / below if below else None


def _numbers(steps: Iterable[Step]) -> list[float]:
    return [step.number for step in steps]
