"""From the features of the big sources' rows to the rows that stand for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from colm.facts import PoolFacts, group_by_source
from colm.features.adam import AdamConstants, adam_step
from colm.features.sparsify import largest_coordinates
from colm.gather import gather_rows, sum_over_ranks
from colm.select.facility import facility_location
from colm.select.quota import source_quotas
from colm.types import AdamHistory, Features

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**26
"""Largest (rows, D) float32 block that is made at a time, unless one row alone is larger."""


class Medoids(NamedTuple):
    """The picks of one step, in positions of the global pool."""

    picks: list[int]
    history: AdamHistory | None  # what the history becomes if the step is committed; None: unchanged
    nonfinite: list[int]  # rows that were not eligible


def pick_medoids(
    features: Features,
    big: list[int],
    budget: int,
    facts: PoolFacts,
    history: AdamHistory,
    constants: AdamConstants | None,
    *,
    coordinates: int,
    metric: str,
) -> Medoids:
    """Pick rows source by source, in proportion to the sources' shares.

    Args:
        features: of this rank's rows among `big`, in the order of their positions.
        big: candidate rows of all ranks, in the order of the data set.
        budget: rows to pick, at most len(big).
        facts: of the pool.
        history: of the kept big-source rows so far.
        constants: Adam's, or None to take the features as they are.
        coordinates: h, at which rows are compared; more than D means all.
        metric: see `facility_location`.
    """
    positions = sorted(big)
    row_of = {p: i for i, p in enumerate(p for p in positions if facts.is_local(p))}
    finite = torch.cat(gather_rows(features.finite().long())).tolist()
    broken = {p for p, is_finite in zip(positions, finite, strict=True) if not is_finite}
    if broken:
        logger.warning("%d of %d rows have features that are not finite and are not picked.", len(broken), len(big))
    by_source = group_by_source([p for p in big if p not in broken], facts)
    counts = {name: len(rows) for name, rows in by_source.items()}
    quotas = source_quotas(counts, min(budget, sum(counts.values())))
    picks: list[int] = []
    for name, rows in by_source.items():
        arriving = sorted(rows)  # the order in which ranks send them
        held = torch.tensor([row_of[p] for p in arriving if p in row_of], dtype=torch.int64)
        sparse = torch.cat(gather_rows(_sparse_rows(features, held, len(rows), history, constants, coordinates)))
        place = {p: i for i, p in enumerate(arriving)}
        in_order = torch.tensor([place[p] for p in rows], device=sparse.device)
        chosen = facility_location(sparse[in_order], quotas[name], metric)
        picks += [rows[i] for i in chosen.tolist()]
    if constants is None or not picks:
        return Medoids(picks, None, sorted(broken))
    held = torch.tensor(sorted(row_of[p] for p in picks if p in row_of), dtype=torch.int64)
    return Medoids(picks, _next_history(features, held, len(picks), history, constants), sorted(broken))


def _sparse_rows(
    features: Features,
    held: Tensor,
    source_rows: int,
    history: AdamHistory,
    constants: AdamConstants | None,
    coordinates: int,
) -> Tensor:
    """Return one source's rows on this rank at its h coordinates, (len(held), h) float32."""

    def normalised() -> Iterator[Tensor]:
        for chunk in _chunks(held, features.dim):
            gradients = features.rows(chunk)
            yield gradients if constants is None else adam_step(gradients, history, constants).step

    total = torch.zeros(features.dim, device=features.device)
    for rows in normalised():
        total += rows.sum(0)
    columns = largest_coordinates(sum_over_ranks(total) / source_rows, coordinates)
    # The rows are made a second time rather than held: (n, D) may not fit.
    parts = [rows[:, columns] for rows in normalised()]
    return torch.cat(parts) if parts else total.new_zeros(0, len(columns))


def _next_history(
    features: Features, held: Tensor, picked: int, history: AdamHistory, constants: AdamConstants
) -> AdamHistory:
    """Return the mean of the picked rows' moments, as the paper's code does."""
    m, v = torch.zeros_like(history.m), torch.zeros_like(history.v)
    for chunk in _chunks(held, features.dim):
        moments = adam_step(features.rows(chunk), history, constants)
        m += moments.m.sum(0)
        v += moments.v.sum(0)
    return AdamHistory(sum_over_ranks(m) / picked, sum_over_ranks(v) / picked, history.updates + 1)


def _chunks(rows: Tensor, dim: int) -> Iterator[Tensor]:
    """Cut row numbers into runs whose (rows, D) float32 block has at most CHUNK_BYTES."""
    if len(rows):
        yield from torch.split(rows, max(1, CHUNK_BYTES // (4 * dim)))
