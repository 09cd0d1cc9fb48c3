"""Which steps run a selection pass, and what fraction of the pool each step keeps."""

from __future__ import annotations

from collections.abc import Sequence


def selects_at(step: int, *, warmup_steps: int, every: int) -> bool:
    """Return whether a step has a selection pass.

    Args:
        step: number of optimizer steps before this one.
        warmup_steps: the first step that may have a selection pass.
        every: number of steps from one selection pass to the next.

    >>> [step for step in range(9) if selects_at(step, warmup_steps=3, every=2)]
    [3, 5, 7]
    """
    return step >= warmup_steps and (step - warmup_steps) % every == 0


def keep_at(schedule: Sequence[tuple[int, float]], step: int) -> float:
    """Return the fraction to keep at a step: linear between the points, constant before and after them.

    >>> [keep_at([(0, 1.0), (100, 0.5)], step) for step in (0, 50, 100, 1000)]
    [1.0, 0.75, 0.5, 0.5]
    """
    first, keep = schedule[0]
    if step <= first:
        return keep
    for following, then in schedule[1:]:
        if step < following:
            return keep + (then - keep) * (step - first) / (following - first)
        first, keep = following, then
    return keep
