"""Is a checkpointed coreset step below its ideal when training begins with the selection pass's layer inputs?

The ideal is the floor of selection and the checkpointed training of the kept rows, both in micro-batches grouped by
length. With N rows of which K are kept, and a row's forward as the unit, it is N + 3 K with LoRA and N + 4 K in full;
`reuse_forward` takes one K off: with N = 2 K that leaves 0.80 and 0.83.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from colm import CoresetSelector

Batch = dict[str, Any]


def clock() -> float:
    """Return seconds: of this process on a CPU, which other processes disturb little, and of the wall on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def checkpointed_step_over_ideal(
    selector: CoresetSelector,
    pool: Sequence[Batch],
    *,
    floor: Callable[[], object],
    train: Callable[[list[Batch]], object],
    regroup: Callable[[list[int]], list[Batch]],
) -> float:
    """Return the time of one coreset step over that of the ideal, which is run right after it on the same rows.

    Args:
        selector: with `reuse_forward`, on a model in training mode with gradient checkpointing; without, it is the
            ordinary step that is measured. Its sources need no more than the name ``only``.
        pool: micro-batches.
        floor: runs the floor of selection on the pool. It must leave the model's modes as they were.
        train: runs forward and backward on micro-batches.
        regroup: makes the kept rows, by position, into as many micro-batches, grouped by length.
    """
    start = clock()
    coreset = selector.select(pool, ["only"] * sum(len(batch["labels"]) for batch in pool))
    train(selector.take(pool, coreset))
    selector.commit()
    ours = clock() - start
    kept = regroup(coreset.indices.tolist())
    start = clock()
    floor()
    train(kept)
    return ours / (clock() - start)
