"""Move kept rows between ranks, so that every rank trains on as many rows and about as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from colm.errors import DataError
from colm.step.balance import deal_rows
from colm.step.pool import Pool
from colm.step.ranks import gather_rows, rank_and_world
from colm.types import Coreset

WEIGHT_KEY = "row_weights"
"""The batch key for non-uniform row weights in the loss."""


class Held(NamedTuple):
    """The rows of the global pool, rank by rank."""

    rows: list[int]  # number of rows of each rank
    tokens: list[int]  # of each row, without padding


class Share(NamedTuple):
    """This rank's part of the kept rows."""

    pool: Pool  # this rank's rows, followed by received rows
    positions: list[int]  # positions of the kept rows in that pool, in coreset order


def share_rows(pool: Pool, kept: Sequence[int], held: Held) -> Share:
    """Distribute the kept rows over ranks, see `deal_rows`, which moves few of them.

    Only rows that change rank are sent, as padded tensors.

    Args:
        pool: this rank's rows.
        kept: positions in the global pool, ascending, the same on every rank.
        held: the rows of the pool that each rank holds.

    Raises:
        DataError: a row to be sent has a value that is not a tensor.
    """
    rank, world = rank_and_world()
    if world == 1:
        return Share(pool, list(kept))
    first = [sum(held.rows[:r]) for r in range(world)]
    owner = {p: max(r for r in range(world) if first[r] <= p and held.rows[r]) for p in kept}
    runs = deal_rows(kept, world, held.tokens)
    moved = sorted((p, r) for r, run in enumerate(runs) for p in run if owner[p] != r)  # in the order of arrival
    if not moved:
        return Share(pool, [p - first[rank] for p in runs[rank]])
    arrived = _gather_batch(pool, [p - first[rank] for p, _ in moved if owner[p] == rank])
    mine = [index for index, (_, destination) in enumerate(moved) if destination == rank]
    if not mine:
        return Share(pool, [p - first[rank] for p in runs[rank]])
    place = {moved[index][0]: len(pool) + number for number, index in enumerate(mine)}
    received = {key: value[torch.tensor(mine, device=value.device)] for key, value in arrived.items()}
    return Share(pool.followed_by(received), [place[p] if p in place else p - first[rank] for p in runs[rank]])


def gather_held(pool: Pool) -> Held:
    """Tell all ranks which rows each holds."""
    parts = [part.tolist() for part in gather_rows(torch.tensor(pool.lengths, device=pool.device))]
    return Held([len(part) for part in parts], [tokens for part in parts for tokens in part])


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
