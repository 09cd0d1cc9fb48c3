"""Which rows of a group are picked, given their features: the paper's medoids, and what to compare them with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from colm.config_parts import Pick
from colm.errors import ConfigError
from colm.select.direction import match_direction
from colm.select.facility import medoids_of_distances, pairwise_distances
from colm.select.sampling import sample_by_size


class Picked(NamedTuple):
    """Rows of one group, in the order of picking."""

    rows: Tensor  # (k,) int64
    stands_for: Tensor  # (k,) float32, how many rows of the group each one stands for


def pick_rows(
    features: Tensor,
    budget: int,
    pick: Pick,
    generator: torch.Generator | None = None,
    goal: Tensor | None = None,
) -> Picked:
    """Pick `budget` of a group's rows.

    Args:
        features: (n, h) float32, finite.
        budget: from 0 to n.
        pick: only `by` and `metric` are read.
        generator: for ``pick="sample"``.
        goal: for ``pick="direction"``, (h,); default the sum of the rows.

    Raises:
        ConfigError: the rule is unknown, or the budget is outside its range.
    """
    n = len(features)
    sizes = features.norm(dim=1)
    even = torch.full((budget,), n / max(budget, 1), device=features.device)
    if pick.by == "medoids":
        distances = pairwise_distances(features, pick.metric)
        rows = medoids_of_distances(distances, budget)
        return Picked(rows, _cluster_sizes(distances, rows))
    if pick.by == "largest":
        return Picked(largest_rows(sizes, budget), even)
    if pick.by == "middle":
        return Picked(middle_rows(sizes, budget), even)
    if pick.by == "direction":
        return Picked(match_direction(features, budget, goal), even)
    if pick.by == "sample":
        assert generator is not None
        rows, chances = sample_by_size(sizes, budget, generator)
        return Picked(rows, 1.0 / chances[rows])
    raise ConfigError(f"pick={pick.by!r} is not one of 'medoids', 'largest', 'middle', 'direction', 'sample'.")


def largest_rows(scores: Tensor, budget: int) -> Tensor:
    """Return the `budget` rows with the largest scores (n,), best first; ties go to the lower row, (budget,) int64.

    >>> largest_rows(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    return scores.argsort(descending=True, stable=True)[:budget]


def middle_rows(scores: Tensor, budget: int) -> Tensor:
    """Return the `budget` rows in the middle of the ranking by score (n,), lowest score first, (budget,) int64.

    Based on rank, so that losses and perplexities give the same rows. Without an exact middle, the upper run is used.

    >>> middle_rows(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 3).tolist()
    [3, 4, 2]
    """
    first = (len(scores) - budget + 1) // 2
    return scores.argsort(stable=True)[first : first + budget]


def _cluster_sizes(distances: Tensor, medoids: Tensor) -> Tensor:
    """Return how many rows have each medoid as their nearest one, (k,); the earlier pick of equals."""
    if not len(medoids):
        return distances.new_zeros(0)
    # Not bincount, which asks a GPU for the largest number.
    nearest = distances[:, medoids].argmin(1)
    return (nearest[:, None] == torch.arange(len(medoids), device=nearest.device)).sum(0).to(distances.dtype)
