"""Find micro-batch and pool sizes that fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from colm.lab.plan.outlook import RESERVE, Outlook, Way

MOST_ROWS = 4096
"""Maximum rows of a micro-batch to consider."""


class Proposal(NamedTuple):
    """Settings that fit."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    pool: int  # rows per step on each device
    peak: int  # bytes


class Proposals(NamedTuple):
    """Proposals for one way to train; None if even one row per micro-batch does not fit."""

    same_pool: Proposal | None  # the current pool, in the fewest micro-batches
    largest_pool: Proposal | None  # the current number of micro-batches, with the most rows


def usable(memory: int) -> int:
    """Return the bytes of a memory that a plan may use."""
    return int(memory * (1 - RESERVE))


def propose(outlook: Outlook, memory: int, *, coreset: bool) -> Proposals:
    """Return the sizes that fit.

    Args:
        outlook: outlook of the run.
        memory: memory of a device, in bytes.
        coreset: train on the coreset of each pool instead of the whole pool.
    """
    limit, slots = usable(memory), outlook.request.micro_batches
    pool = outlook.request.micro_batch * slots

    def way(rows: int, micro_batches: int) -> Way:
        if coreset:
            return outlook.coreset_step(rows, micro_batches, time=False)
        return outlook.pool(rows, micro_batches)

    def split(turn: int) -> tuple[int, int]:
        """Return size and number of micro-batches for the current pool, from one row at a time to all at once."""
        micro_batches = pool + 1 - turn
        return -(-pool // micro_batches), micro_batches

    most_slots = outlook.kept(1, pool) if coreset else pool
    first = pool + 1 - most_slots  # each micro-batch needs a kept row
    turn = largest(first, pool, lambda turn: way(*split(turn)).peak, limit)
    rows = largest(1, MOST_ROWS, lambda rows: way(rows, slots).peak, limit)

    def proposal(rows: int, micro_batches: int) -> Proposal:
        return Proposal(rows, micro_batches, rows * micro_batches, way(rows, micro_batches).peak)

    same = None
    if turn is not None:
        rows_each = split(turn)[0]
        same = proposal(rows_each, -(-pool // rows_each))  # without empty micro-batches
    return Proposals(same, None if rows is None else proposal(rows, slots))


def largest(lowest: int, highest: int, size: Callable[[int], int], limit: int) -> int | None:
    """Return the largest number from `lowest` to `highest` whose size is at most `limit`, or None.

    `size` must not decrease. It is slow, so it is evaluated rarely: where the line through two results meets the limit.

    >>> largest(1, 100, lambda n: 10 + 3 * n, 100)
    30
    """
    low, high = lowest, highest
    size_low = size(low)
    if size_low > limit:
        return None
    at = min(high, low + 1)
    while low < high:  # low fits; nothing above high does
        found = size(at)
        slope = (found - size_low) / max(1, at - low)
        if found <= limit:
            low, size_low = at, found
        else:
            high = at - 1
        step = int((limit - size_low) / slope) if slope > 0 else high - low
        at = min(high, low + max(1, step))
    return low
