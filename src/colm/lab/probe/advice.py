"""What measurements say: the batch that is fastest, and whether a rule pays.

All times are those to the same loss. Steps with the progress of W random rows need (1 + noise scale / W) times as many
as steps of very many rows, whether they train W rows or fewer that a rule chose. So a rule that is worth W random rows
competes with random rows of every number, not only with W of them, nor with as many as it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from colm.lab.probe.worth import Estimate

LOSS_EXPONENT = 0.5
"""By how much less a rule is worth in the loss than in the noise of the gradient, as a power: rows that are never
trained on, and rare tokens, count in the loss. See docs/design/decisions.md."""

BALANCED = "balanced order"
"""The name of the rule that chooses the order alone."""

CLEAR = 1.05
"""A rule that takes time pays if the low end of its gain is above this; one that takes none, if it is above 1."""

LARGEST_EXPONENT = 20.0
"""Of the factor by which a noise scale is uncertain: beyond it nothing is known."""


def interpolate(seconds: Mapping[int, float], rows: float) -> float:
    """Return the seconds of a step of that many rows, linear between and beyond what was measured.

    >>> interpolate({8: 1.0, 16: 2.0}, 12), interpolate({8: 1.0, 16: 2.0}, 32)
    (1.5, 4.0)
    """
    known = sorted(seconds)
    if len(known) == 1:
        return seconds[known[0]] * rows / known[0]
    place = int(np.clip(np.searchsorted(known, rows), 1, len(known) - 1))
    left, right = known[place - 1], known[place]
    slope = (seconds[right] - seconds[left]) / (right - left)
    return max(seconds[left] + slope * (rows - left), seconds[known[0]] * min(1.0, rows / known[0]))


def batch_times(seconds: Mapping[int, float], noise: float) -> dict[int, float]:
    """Return the time to a loss with steps of so many rows, that of the fastest = 1.

    A step of b rows makes b / (b + noise) of the progress of one of very many, so as many times more steps are needed.

    Args:
        seconds: rows -> seconds of a step.
        noise: the noise scale, in rows.

    Source: McCandlish et al., arXiv 1812.06162, equations 2.4 and 2.7.

    >>> batch_times({10: 1.0, 20: 2.0}, 10)
    {10: 1.0, 20: 1.5}
    """
    times = {rows: (1 + noise / rows) * each for rows, each in seconds.items()}
    least = min(times.values())
    return {rows: time / least for rows, time in times.items()}


def best_random(seconds: Mapping[int, float], noise: float) -> tuple[int, float]:
    """Return the random rows of a step that reach a loss first, and their time, in steps of very many rows.

    Args:
        seconds: rows -> seconds of a step; all numbers of rows between the least and the most compete.
        noise: the noise scale, in rows, at least 0.

    >>> best_random({10: 1.0, 20: 1.2}, 30)
    (20, 3.0)
    """
    known = sorted(seconds)
    rows = np.arange(known[0], known[-1] + 1)
    times = (1 + noise / rows) * np.interp(rows, known, [seconds[each] for each in known])
    best = int(times.argmin())
    return int(rows[best]), float(times[best])


class Rule(NamedTuple):
    """A way to choose the rows of a step, what it is worth and what it costs."""

    name: str
    kept: int
    pool: int
    worth: Estimate  # random rows with this noise
    seconds: float  # of a choice, beside the training of the rows
    by_stage: Mapping[int, Estimate | None] = MappingProxyType({})  # worth in each stage

    def in_loss(self) -> Estimate:
        """Return how many random rows give this loss."""
        rows, error = max(self.worth.value, 0.0), self.worth.error
        value = self.kept * (rows / self.kept) ** LOSS_EXPONENT
        slope = LOSS_EXPONENT * value / rows if rows else 0.0
        return self.worth._replace(value=value, error=None if error is None else slope * error)

    def gain(self, seconds: Mapping[int, float], noise: Estimate | None) -> Estimate:
        """Return the time of random rows to the same loss, relative to this rule's: above 1 it pays.

        Args:
            seconds: rows -> seconds of a step.
            noise: the noise scale in rows, at least 0. Random rows then have the number per step that is best for
                them. Without it they have the number that the rule is worth, which makes as much progress with a step.

        Returns:
            The gain. Its low end is that of the low end of the worth, at the least favorable noise scale of the
            interval's, against as many random rows as are best at the measured scale, or as the rule keeps.
        """
        own, worth = interpolate(seconds, self.kept) + self.seconds, self.in_loss()
        if noise is None:
            value, low = (interpolate(seconds, max(1.0, rows)) / own for rows in (worth.value, worth.low))
        else:
            rivals = (best_random(seconds, noise.value)[0], self.kept)

            def at(rows: float, scale: float) -> float:
                least = min((1 + scale / rival) * interpolate(seconds, rival) for rival in rivals)
                return least / ((1 + scale / max(1.0, rows)) * own)

            # By factors, so that it stays above 0, where no worth would be a gain.
            factor = exp(min(LARGEST_EXPONENT, (noise.half or 0.0) / noise.value)) if noise.value else 1.0
            value = at(worth.value, noise.value)
            low = min(at(worth.low, noise.value * by) for by in (1 / factor, 1.0, factor))
        return worth._replace(value=value, error=None if worth.error is None else (value - low) / worth.quantile)

    def __str__(self) -> str:
        return self.name if self.name == BALANCED else f"{self.name}, {self.kept} of {self.pool}"


class Advice(NamedTuple):
    """What to train with."""

    rows: int  # of a step
    rule: str | None  # of the rules, the one that pays most; None if none does
    sentence: str
    pool: int | None = None  # rows that the rule chooses from; None if none pays, or the rule is an order


def advise(seconds: Mapping[int, float], noise: Estimate | None, rules: Sequence[Rule], current: int) -> Advice:
    """Return which batch and which rule to train with, and say so in a sentence.

    Of the rules that clearly pay, that with the highest low end of its gain is advised: among many, the highest gain is
    often a lucky one.

    Args:
        seconds: rows -> seconds of a step, as far as this machine's memory allows; `current` is among them.
        noise: the noise scale in rows, at least 0; None if it is not known. Then only rules with `current` rows
            compete, since numbers of rows cannot be compared.
        rules: what was measured.
        current: rows of a step as configured.
    """
    gains = [(rule, rule.gain(seconds, noise)) for rule in rules if noise is not None or rule.kept == current]
    paying = [
        (rule, gain) for rule, gain in gains if gain.half is not None and gain.low > (CLEAR if rule.seconds else 1.0)
    ]
    if paying:
        rule, gain = max(paying, key=lambda pair: pair[1].low)
        ordered = rule.name == BALANCED
        how = "in balanced order" if ordered else f"of pools of {rule.pool}, with {rule.name}"
        took = f"random rows take {gain.value:.2f} times as long to the same loss"
        if noise is None:
            told = f"Keep {current} rows a step (the noise scale is not clear from these pools), {how} ({took})."
            return Advice(current, rule.name, told, None if ordered else rule.pool)
        best, least = best_random(seconds, noise.value)
        took += f" with {best} a step, the best number"
        if best != current:
            slower = (1 + noise.value / current) * interpolate(seconds, current) / least
            took += f", and {gain.value * slower:.2f} times with {current}"
        told = f"Train {rule.kept} rows a step, {how} ({took})."
        return Advice(rule.kept, rule.name, told, None if ordered else rule.pool)
    rows, batch = current, f"Keep {current} rows a step (the noise scale is not clear from these pools)"
    if noise is not None:
        times = batch_times(seconds, noise.value)
        rows = min(times, key=times.__getitem__)
        batch = f"Train {rows} rows a step"
        if rows != current and current in times:
            batch += f" ({current} take {times[current]:.2f} times as long to the same loss)"
    costly = [(rule, gain) for rule, gain in gains if rule.seconds]
    if not costly:
        return Advice(rows, None, f"{batch}, in random order: nothing measured here is clearly better.")
    rule, gain = max(costly, key=lambda pair: pair[1].value)
    took = f"{rule} takes {1 / gain.value:.2f} of the time of random rows to the same loss"
    return Advice(rows, None, f"{batch}, without a selection pass ({took}).")
