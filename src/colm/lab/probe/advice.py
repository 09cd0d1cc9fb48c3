"""What measurements say: the batch that is fastest, and whether a rule pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Rule(NamedTuple):
    """A way to choose the rows of a step, what it is worth and what it costs."""

    name: str
    kept: int
    pool: int
    worth: Estimate  # random rows with this noise
    seconds: float  # of a choice, beside the training of the rows

    def in_loss(self) -> Estimate:
        """Return how many random rows give this loss."""
        rows, error = max(self.worth.value, 0.0), self.worth.error
        value = self.kept * (rows / self.kept) ** LOSS_EXPONENT
        slope = LOSS_EXPONENT * value / rows if rows else 0.0
        return self.worth._replace(value=value, error=None if error is None else slope * error)

    def gain(self, seconds: Mapping[int, float]) -> Estimate:
        """Return the time of random rows to the same loss, relative to this rule's: above 1 it pays."""
        own, rows = interpolate(seconds, self.kept) + self.seconds, self.in_loss()
        value = interpolate(seconds, max(1.0, rows.value)) / own
        if not rows.half or rows.error is None:
            return rows._replace(value=value)
        low, high = (interpolate(seconds, max(1.0, end)) / own for end in (rows.low, rows.high))
        return rows._replace(value=value, error=(high - low) / 2 * rows.error / rows.half)


class Advice(NamedTuple):
    """What to train with."""

    rows: int  # of a step
    rule: str | None  # of the rules, the one that pays most; None if none does
    sentence: str


def advise(seconds: Mapping[int, float], noise: float | None, rules: Sequence[Rule], current: int) -> Advice:
    """Return which batch and which rule to train with, and say so in a sentence.

    Args:
        seconds: rows -> seconds of a step, as far as this machine's memory allows.
        noise: the noise scale in rows; None if it is not known.
        rules: what was measured.
        current: rows of a step as configured.
    """
    rows, batch = current, f"Keep {current} rows a step (the noise scale is not clear from these pools)"
    if noise is not None:
        times = batch_times(seconds, noise)
        rows = min(times, key=times.__getitem__)
        batch = f"Train {rows} rows a step"
        if rows != current and current in times:
            batch += f" ({current} take {times[current]:.2f} times as long to the same loss)"
    gains = {rule.name: rule.gain(seconds) for rule in rules}
    known = [rule for rule in rules if gains[rule.name].half is not None]
    paying = [rule for rule in known if gains[rule.name].low > (CLEAR if rule.seconds else 1.0)]
    if paying:
        best = max(paying, key=lambda rule: gains[rule.name].value).name
        how = "in balanced order" if best == BALANCED else f"with {best}"
        told = f"{batch}, {how} (random rows take {gains[best].value:.2f} times as long to the same loss)."
        return Advice(rows, best, told)
    costly = [rule for rule in rules if rule.seconds]
    if not costly:
        return Advice(rows, None, f"{batch}, in random order: nothing measured here is clearly better.")
    best = max(costly, key=lambda rule: gains[rule.name].value).name
    took = 1 / gains[best].value
    told = f"{batch}, without a selection pass ({best} takes {took:.2f} of the time of random rows to the same loss)."
    return Advice(rows, None, told)
