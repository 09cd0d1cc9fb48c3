"""Which kept rows a rank trains, and which of them share a micro-batch: little padding, and ranks that finish together.

Only the time depends on this. The picks are made before, and the loss is a mean over all kept rows of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

MOST_CUTS = 512
"""Places between rows where runs may end; with more rows, only every so many are tried, to bound time and memory."""

WORTH = 0.01
"""A swap of two rows must shorten the slowest rank by this fraction of the ranks' mean, since it sends both rows."""

_NEVER = 2**40


def split_evenly(positions: Sequence[int], slots: int) -> list[list[int]]:
    """Cut `positions` into `slots` consecutive runs whose lengths differ by at most one, longer runs first.

    >>> split_evenly([0, 1, 2, 3, 4], 2)
    [[0, 1, 2], [3, 4]]
    """
    short, longer = divmod(len(positions), slots)
    runs, start = [], 0
    for slot in range(slots):
        end = start + short + (slot < longer)
        runs.append(list(positions[start:end]))
        start = end
    return runs


def split_padded(
    positions: Sequence[int], slots: int, lengths: Sequence[int], labelled: Sequence[int]
) -> list[list[int]]:
    """Cut rows into `slots` consecutive runs with the fewest padded tokens: each run is as wide as its longest row.

    No run has more padded tokens than the largest of `split_evenly`, nor more if labeled tokens, which have logits,
    count twice: so none needs more memory. If nothing can be saved, the result is that of `split_evenly`.

    Args:
        positions: the rows, the longest first.
        slots: number of runs; none is empty unless there are fewer rows.
        lengths: tokens of every row, by position.
        labelled: labeled tokens of every row, by position.

    >>> split_padded([0, 1, 2, 3, 4, 5], 2, lengths=[9, 3, 2, 2, 2, 2], labelled=[1] * 6)
    [[0], [1, 2, 3, 4, 5]]
    >>> split_padded([0, 1, 2, 3, 4], 2, lengths=[5] * 5, labelled=[1] * 5)
    [[0, 1, 2], [3, 4]]
    """
    even = split_evenly(positions, slots)
    if len(positions) < slots:
        return even
    ends = [0, *accumulate(map(len, even))]
    cuts = np.array(sorted({*range(0, len(positions), -(-len(positions) // MOST_CUTS)), *ends}))
    told = np.cumsum([0, *(labelled[p] for p in positions)])[cuts]
    longest = np.array([lengths[p] for p in positions])[cuts[:-1]]
    padded = (cuts - cuts[:-1, None]) * longest[:, None]  # (starts, ends), of the run from one cut to another
    memory = padded + told - told[:-1, None]
    places = np.searchsorted(cuts, ends)
    own = (places[:-1], places[1:])
    possible = (padded > 0) & (padded <= padded[own].max()) & (memory <= memory[own].max())
    cost = np.where(possible, padded, _NEVER)
    best, starts = cost[0], []  # the fewest tokens of one, two, ... runs up to each cut, and where the last one starts
    for _ in range(slots - 1):
        totals = best[:-1, None] + cost
        starts.append(totals.argmin(0))
        best = totals.min(0)
    if best[-1] >= padded[own].sum():
        return even
    bounds = [len(cuts) - 1]
    for start in reversed(starts):
        bounds.insert(0, start[bounds[0]])
    return [list(positions[a:b]) for a, b in zip([0, *cuts[bounds[:-1]]], cuts[bounds], strict=True)]


def split_joined(positions: Sequence[int], slots: int, lengths: Sequence[int]) -> list[list[int]]:
    """Deal rows to `slots` runs of about as many tokens each, without padding; the run with the most tokens is first.

    No run has more tokens than the largest of `split_evenly` has with its padding.

    Args:
        positions: the rows, the longest first.
        slots: number of runs; none is empty unless there are fewer rows.
        lengths: tokens of every row, by position.

    >>> split_joined([0, 1, 2, 3], 2, lengths=[9, 5, 3, 2])
    [[1, 2, 3], [0]]
    """
    runs: list[list[int]] = [[] for _ in range(slots)]
    loads = [0] * slots
    for position in positions:
        lightest = loads.index(min(loads))
        runs[lightest].append(position)
        loads[lightest] += lengths[position]
    return [run for _, run in sorted(zip(loads, runs, strict=True), key=lambda pair: -pair[0])]


def deal_rows(kept: Sequence[int], ranks: int, lengths: Sequence[int]) -> list[list[int]]:
    """Deal the kept rows to ranks: about equally many rows, and, with few swaps, about equally many tokens.

    The slowest rank decides when a step ends. Contiguous runs leave most rows where they are; then the rank with the
    most tokens swaps a row with that with the fewest, while that is worth it. Ranks keep their numbers of rows, and so
    their memory.

    Args:
        kept: positions in the global pool, ascending.
        ranks: number of ranks.
        lengths: tokens of every row of the global pool.

    Returns:
        Each rank's rows, ascending; the same on every rank, as it depends on the arguments alone.

    >>> deal_rows([0, 1, 2, 3], 2, lengths=[9, 9, 1, 1])
    [[1, 2], [0, 3]]
    """
    runs = split_evenly(kept, ranks)
    loads = np.array([sum(lengths[p] for p in run) for run in runs])
    least = max(1.0, WORTH * loads.mean())
    while len(kept) >= ranks:
        slow, fast = int(loads.argmax()), int(loads.argmin())
        ours, theirs = ([lengths[p] for p in runs[rank]] for rank in (slow, fast))
        moved = np.subtract.outer(ours, theirs)  # tokens that each possible swap moves
        after = np.maximum(loads[slow] - moved, loads[fast] + moved)
        if loads[slow] - after.min() < least:
            break
        give, get = np.unravel_index(after.argmin(), after.shape)
        runs[slow][give], runs[fast][get] = runs[fast][get], runs[slow][give]
        loads[slow] -= moved[give, get]
        loads[fast] += moved[give, get]
    return [sorted(run) for run in runs]
