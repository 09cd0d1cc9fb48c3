"""Move kept rows between ranks, so that every rank trains on the same number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from colm.errors import DataError
from colm.step.pool import Pool, split_evenly
from colm.step.ranks import gather_rows, rank_and_world
from colm.types import Coreset

WEIGHT_KEY = "row_weights"
"""The batch key for non-uniform row weights in the loss."""


class Share(NamedTuple):
    """This rank's part of the kept rows."""

    pool: Pool  # this rank's rows, followed by received rows
    positions: list[int]  # positions of the kept rows in that pool, in coreset order


def share_rows(pool: Pool, kept: Sequence[int], rows_by_rank: Sequence[int]) -> Share:
    """Distribute the kept rows over ranks in contiguous runs, which moves few of them.

    Only rows that change rank are sent, as padded tensors.

    Args:
        pool: this rank's rows.
        kept: positions in the global pool, ascending, the same on every rank.
        rows_by_rank: how many rows of the pool each rank holds.

    Raises:
        DataError: a row to be sent has a value that is not a tensor.
    """
    rank, world = rank_and_world()
    if world == 1:
        return Share(pool, list(kept))
    first = [sum(rows_by_rank[:r]) for r in range(world)]
    owner = {p: max(r for r in range(world) if first[r] <= p and rows_by_rank[r]) for p in kept}
    runs = split_evenly(kept, world)
    moved = [(p, r) for r, run in enumerate(runs) for p in run if owner[p] != r]  # ascending, the order of arrival
    if not moved:
        return Share(pool, [p - first[rank] for p in runs[rank]])
    arrived = _gather_batch(pool, [p - first[rank] for p, _ in moved if owner[p] == rank])
    mine = [index for index, (_, destination) in enumerate(moved) if destination == rank]
    if not mine:
        return Share(pool, [p - first[rank] for p in runs[rank]])
    place = {moved[index][0]: len(pool) + number for number, index in enumerate(mine)}
    received = {key: value[torch.tensor(mine, device=value.device)] for key, value in arrived.items()}
    return Share(pool.followed_by(received), [place[p] if p in place else p - first[rank] for p in runs[rank]])


def count_rows_by_rank(pool: Pool) -> list[int]:
    """Return how many rows each rank holds."""
    held: list[int] = torch.cat(gather_rows(torch.tensor([len(pool)], device=pool.device))).tolist()
    return held


def weigh_rows(pool: Pool, coreset: Coreset, rows_by_rank: Sequence[int]) -> Pool:
    """Add the key ``row_weights``, (n,) float32, to every batch of the pool: the kept rows' weights, 0 elsewhere."""
    rank, _ = rank_and_world()
    weights = torch.zeros(sum(rows_by_rank)).index_copy(0, coreset.indices, coreset.weights)
    local = weights[sum(rows_by_rank[:rank]) :].to(pool.device)
    batches, start = [], 0
    for batch in pool.batches:
        rows = len(batch["input_ids"])
        batches.append({**batch, WEIGHT_KEY: local[start : start + rows]})
        start += rows
    return pool.with_batches(batches)


def _gather_batch(pool: Pool, positions: list[int]) -> dict[str, Tensor]:
    """Return the rows that all ranks send, rank by rank, padded to one width."""
    lengths = torch.tensor([pool.lengths[p] for p in positions], dtype=torch.int64, device=pool.device)
    width = int(torch.cat(gather_rows(lengths)).max())
    # A rank that sends nothing still takes part, with zero rows of the right shape.
    batch = pool.collate(positions or [0], width=max(width, pool.lengths[0]) if not positions else width)
    sent: dict[str, Tensor] = {}
    for key, value in sorted(batch.items()):
        if not isinstance(value, Tensor):
            raise DataError(
                f"The batches' {key!r} is not a tensor and cannot be sent between ranks. Drop it in the collator."
            )
        rows = value if positions else value[:0, :width] if value.dim() > 1 else value[:0]
        sent[key] = torch.cat(gather_rows(rows))
    return sent
