"""Which rows of a group are picked, given their features: the paper's medoids, and what to compare them with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from colm.errors import ConfigError
from colm.select.baselines import largest_rows, middle_rows
from colm.select.direction import match_direction
from colm.select.facility import medoids_of_distances, pairwise_distances
from colm.select.quota import source_quotas
from colm.select.sampling import sample_by_size
from colm.step.pool_info import PoolFacts, group_by_source


class Picked(NamedTuple):
    """Rows of one group, in the order of picking."""

    rows: Tensor  # (k,) int64
    stands_for: Tensor  # (k,) float32, how many rows of the group each one stands for


class PickRule(NamedTuple):
    """How the big sources' rows are picked; see `SelectionConfig` for the fields."""

    pick: str = "medoids"
    metric: str = "l1"
    coordinates: int = 2560
    by_source: bool = True
    shorten: str = "largest"
    weights: str = "uniform"
    carry: float = 0.0
    turn: int = 0  # the step, for ties between groups

    def group(self, positions: list[int], facts: PoolFacts) -> dict[str, list[int]]:
        """Group positions by source, or put them all in one group."""
        if self.by_source:
            return group_by_source(positions, facts)
        return {"all": list(positions)} if positions else {}

    def quotas(self, groups: dict[str, list[int]], budget: int) -> dict[str, int]:
        """Share the budget out in proportion to the groups' rows."""
        counts = {name: len(rows) for name, rows in groups.items()}
        return source_quotas(counts, min(budget, sum(counts.values())), self.turn)


def pick_rows(
    features: Tensor,
    budget: int,
    rule: PickRule,
    generator: torch.Generator | None = None,
    goal: Tensor | None = None,
) -> Picked:
    """Pick `budget` of a group's rows.

    Args:
        features: (n, h) float32, finite.
        budget: from 0 to n.
        rule: only `pick` and `metric` are read.
        generator: for ``pick="sample"``.
        goal: for ``pick="direction"``, (h,); default the sum of the rows.

    Raises:
        ConfigError: the rule is unknown, or the budget is outside its range.
    """
    n = len(features)
    sizes = features.norm(dim=1)
    even = torch.full((budget,), n / max(budget, 1), device=features.device)
    if rule.pick == "medoids":
        distances = pairwise_distances(features, rule.metric)
        rows = medoids_of_distances(distances, budget)
        return Picked(rows, _cluster_sizes(distances, rows))
    if rule.pick == "largest":
        return Picked(largest_rows(sizes, budget), even)
    if rule.pick == "middle":
        return Picked(middle_rows(sizes, budget), even)
    if rule.pick == "direction":
        return Picked(match_direction(features, budget, goal), even)
    if rule.pick == "sample":
        assert generator is not None
        rows, chances = sample_by_size(sizes, budget, generator)
        return Picked(rows, 1.0 / chances[rows])
    raise ConfigError(f"pick={rule.pick!r} is not one of 'medoids', 'largest', 'middle', 'direction', 'sample'.")


def _cluster_sizes(distances: Tensor, medoids: Tensor) -> Tensor:
    """Return how many rows have each medoid as their nearest one, (k,); the earlier pick of equals."""
    if not len(medoids):
        return distances.new_zeros(0)
    # Not bincount, which asks a GPU for the largest number.
    nearest = distances[:, medoids].argmin(1)
    return (nearest[:, None] == torch.arange(len(medoids), device=nearest.device)).sum(0).to(distances.dtype)
