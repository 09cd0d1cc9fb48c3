"""What every rank knows of every row of a pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from colm.errors import ConfigError, DataError, suggest
from colm.step.pool import Pool
from colm.step.ranks import gather_rows, rank_and_world
from colm.step.sources import name_sources

REPEATED = -1
"""The data set index of a row that repeats another to fill a rank's batch: it has no label, and is in no record."""


@dataclass(frozen=True)
class PoolFacts:
    """The global pool, one entry a row, in rank-major order: the positions of a coreset."""

    source: list[str]
    dataset_index: list[int]  # REPEATED for a row that only fills a batch
    labelled: list[int]  # labeled tokens after the shift
    tokens: list[int]  # tokens without padding
    slots: int  # micro-batches over all ranks
    rows_by_rank: list[int]
    rank: int

    @cached_property
    def order(self) -> list[int]:
        """Positions sorted by dataset index, which draws and ties follow."""
        return sorted(range(len(self.source)), key=lambda p: (self.dataset_index[p], p))

    @cached_property
    def learnable(self) -> list[int]:
        """Rows with a labeled token, which may be kept, in this order."""
        return [p for p in self.order if self.labelled[p] > 0]

    @cached_property
    def recorded(self) -> list[int]:
        """Rows that are in the record, all but those that only fill a batch, in this order."""
        return [p for p in self.order if self.dataset_index[p] != REPEATED]

    @cached_property
    def first(self) -> int:
        """Position of this rank's first row."""
        return sum(self.rows_by_rank[: self.rank])

    def is_local(self, position: int) -> bool:
        """Return whether this rank holds the row."""
        return self.first <= position < self.first + self.rows_by_rank[self.rank]


def share_facts(
    pool: Pool,
    sources: Sequence[Any],
    dataset_index: Sequence[int] | None,
    source_sizes: Mapping[str, int] | None,
) -> PoolFacts:
    """Check this rank's labels and tell all ranks of its rows.

    Raises:
        DataError: counts that disagree, a row without a source, or one that `source_sizes` does not list.
        ConfigError: several ranks without `source_sizes`.
    """
    for what, values in (("sources", sources), ("dataset indices", dataset_index)):
        if values is not None and len(values) != len(pool):
            raise DataError(f"{len(values)} {what} for a pool of {len(pool)} rows; give one for each row.")
    rank, world = rank_and_world()
    if source_sizes is None and world > 1:
        raise ConfigError("With several ranks source_sizes is needed, so that every rank knows every source.")
    labels = name_sources(sources, "sources", of=" of the pool")
    names = sorted(source_sizes) if source_sizes is not None else sorted(set(labels))
    codes = {name: code for code, name in enumerate(names)}
    for row, name in enumerate(labels):
        if name not in codes:
            raise DataError(
                f"Row {row} of the pool has source {name!r}, which source_sizes does not list."
                f"{suggest(name, names)} It lists: {', '.join(names)}."
            )
    index = list(dataset_index) if dataset_index is not None else [0] * len(pool)
    columns = zip(labels, index, pool.labelled, pool.lengths, strict=True)
    local = [[codes[name], i, labelled, tokens] for name, i, labelled, tokens in columns]
    # The first row of each rank is the number of its micro-batches.
    table = torch.tensor([[len(pool.batches), 0, 0, 0], *local], dtype=torch.int64)
    # A single process leaves the device alone: to copy the table there and back would wait for its queued work.
    parts = [part.tolist() for part in gather_rows(table if world == 1 else table.to(pool.device))]
    rows = [row for _, *held in parts for row in held]
    return PoolFacts(
        source=[names[code] for code, _, _, _ in rows],
        dataset_index=[i for _, i, _, _ in rows] if dataset_index is not None else list(range(len(rows))),
        labelled=[labelled for _, _, labelled, _ in rows],
        tokens=[tokens for _, _, _, tokens in rows],
        slots=sum(micro_batches for (micro_batches, *_), *_ in parts),
        rows_by_rank=[len(part) - 1 for part in parts],
        rank=rank,
    )


def group_by_source(positions: Sequence[int], facts: PoolFacts) -> dict[str, list[int]]:
    """Group positions by source, sources by name, positions in the order given."""
    groups: dict[str, list[int]] = {}
    for position in positions:
        groups.setdefault(facts.source[position], []).append(position)
    return dict(sorted(groups.items()))


def index_by_source(positions: Sequence[int], facts: PoolFacts) -> dict[str, list[int]]:
    """Return the dataset indices of rows by source, see `group_by_source`."""
    return {name: [facts.dataset_index[p] for p in held] for name, held in group_by_source(positions, facts).items()}


def fillers(kept: Collection[int], facts: PoolFacts) -> list[int]:
    """Return rows without a label to train along with `kept`, if those are fewer than the micro-batches.

    No micro-batch may be empty: a rank with nothing to do would keep the others waiting.
    """
    spare = [p for p in facts.order if facts.labelled[p] == 0 and p not in kept]
    return spare[: max(0, facts.slots - len(kept))]
