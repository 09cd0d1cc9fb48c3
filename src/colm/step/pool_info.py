"""What every rank knows of every row of a pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from colm.errors import ConfigError, DataError, suggest
from colm.step.pool import Pool
from colm.step.ranks import gather_rows, rank_and_world, sum_over_ranks
from colm.step.sources import name_sources

REPEATED = -1
"""The data set index of a row that repeats another to fill a rank's batch: it has no label, and is in no record."""


class PoolFacts(NamedTuple):
    """The global pool, one entry a row, in rank-major order: the positions of a coreset."""

    source: list[str]
    dataset_index: list[int]  # REPEATED for a row that only fills a batch
    labelled: list[int]  # labelled tokens after the shift
    tokens: list[int]  # tokens without padding
    order: list[int]  # positions sorted by dataset index, which draws and ties follow
    first: int  # position of this rank's first row
    held: int  # rows on this rank
    slots: int  # micro-batches over all ranks

    def is_local(self, position: int) -> bool:
        """True if this rank holds the row."""
        return self.first <= position < self.first + self.held


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
    parts = gather_rows(torch.tensor(local, dtype=torch.int64).to(pool.device))
    rows = torch.cat(parts).tolist()
    indices = [i for _, i, _, _ in rows] if dataset_index is not None else list(range(len(rows)))
    return PoolFacts(
        source=[names[code] for code, _, _, _ in rows],
        dataset_index=indices,
        labelled=[labelled for _, _, labelled, _ in rows],
        tokens=[tokens for _, _, _, tokens in rows],
        order=sorted(range(len(rows)), key=lambda p: (indices[p], p)),
        first=sum(len(part) for part in parts[:rank]),
        held=len(pool),
        slots=int(sum_over_ranks(torch.tensor(len(pool.batches), device=pool.device))),
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


def recorded(positions: Sequence[int], facts: PoolFacts) -> list[int]:
    """Return the positions without the rows that only fill a batch."""
    return [p for p in positions if facts.dataset_index[p] != REPEATED]


def fillers(kept: Collection[int], facts: PoolFacts) -> list[int]:
    """Return rows without a label to train beside `kept`, where there are fewer of these than micro-batches.

    No micro-batch may be empty: a rank with nothing to do would leave the others waiting.
    """
    spare = [p for p in facts.order if facts.labelled[p] == 0 and p not in kept]
    return spare[: max(0, facts.slots - len(kept))]
