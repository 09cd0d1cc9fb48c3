"""Medoids by greedy facility location."""

from __future__ import annotations

import torch
from torch import Tensor

from colm.errors import ConfigError

TIE = 1e-5
"""Gains within this relative distance of the best are ties: floating-point noise must not decide."""

FOLLOW = 512
"""Row count from which, on a CPU, updating gains is faster than recomputing them for each pick."""


def pairwise_distances(features: Tensor, metric: str = "l1") -> Tensor:
    """Return the distances (n, n) between the rows of `features` (n, d), in float32.

    Raises:
        ConfigError: `metric` is not l1, l2 or cosine.
    """
    x = features.float()
    if metric in ("l1", "l2"):
        # On a CPU `pdist` is over ten times faster than `cdist`. The matrix-product shortcut for l2 would lose half
        # the digits of close neighbors, which matter most here.
        n = len(x)
        distances = x.new_zeros(n, n)
        if n > 1:
            # Not a mask: the host would have to wait for the GPU to count its entries.
            row, column = torch.triu_indices(n, n, 1, device=x.device)
            distances[row, column] = torch.nn.functional.pdist(x, p=1.0 if metric == "l1" else 2.0)
        return distances + distances.T
    if metric == "cosine":
        unit = torch.nn.functional.normalize(x, dim=1)
        return (1.0 - unit @ unit.T).clamp_min(0.0)
    raise ConfigError(f"metric={metric!r} is not one of 'l1', 'l2', 'cosine'.")


def facility_location(features: Tensor, budget: int, metric: str = "l1") -> Tensor:
    """Pick `budget` medoids greedily: each pick minimizes the total distance of all rows to their nearest pick.

    Maximizes F(S) = sum_i max_{j in S} (d_max - d_ij), which is monotone and submodular, so the
    greedy value is at least 1 - 1/e times the optimum. Gains within a relative 1e-5 of the best are
    ties, and the lowest row wins. Runs on the device of `features`, without a host round trip per pick.

    Args:
        features: (n, d), finite, any float dtype. n may be 0.
        budget: number of picks, 0 to n.
        metric: ``l1``, ``l2`` or ``cosine``.

    Returns:
        (budget,) int64 on the device of `features`, row numbers in picking order.

    Raises:
        ConfigError: the budget is outside [0, n], or the metric is unknown.

    Source: CoLM, section 4.1 and equation 4; the similarity is the largest distance minus the distance.

    >>> facility_location(torch.tensor([[0.0], [0.1], [5.0]]), 2).tolist()
    [1, 2]
    """
    _require_budget(budget, features.shape[0])
    if budget == 0:
        return torch.zeros(0, dtype=torch.int64, device=features.device)
    return medoids_of_distances(pairwise_distances(features, metric), budget)


def medoids_of_distances(distances: Tensor, budget: int, *, follow: bool | None = None) -> Tensor:
    """Pick medoids as `facility_location` does, given the distances (n, n).

    A pick changes the gains only through rows for which it is nearer than all earlier picks. On a CPU, only these rows
    are updated: a row finds a nearer pick about ln k times in k picks, so the cost is about n^2 ln k instead of n^2 k.
    Elsewhere, all gains are recomputed for each pick, which needs no host round trip. The picks are the same.

    Args:
        distances: (n, n), at least 0, float32.
        budget: number of picks, 0 to n.
        follow: update gains instead of recomputing them; default: on a CPU, for n >= FOLLOW.

    Raises:
        ConfigError: the budget is outside [0, n].
    """
    n = distances.shape[0]
    _require_budget(budget, n)
    picks = torch.zeros(budget, dtype=torch.int64, device=distances.device)
    if budget == 0:
        return picks
    follow = distances.is_cpu and n >= FOLLOW if follow is None else follow
    similarity = distances.max() - distances  # (n, n)
    covered = similarity.new_zeros(n)  # similarity of each row to its nearest pick
    picked = torch.zeros(n, dtype=torch.bool, device=distances.device)
    # Differences of float32 are exact in float64, so updated gains reach exactly zero when they should.
    gains = similarity.sum(0, dtype=torch.float64 if follow else torch.float32)
    for step in range(budget):
        gains.masked_fill_(picked, -torch.inf)
        best = gains.max()
        # argmax returns the first maximum, so the lowest of the tied rows. Keep it a 1-element tensor: indexing with a
        # 0-dimensional tensor reads it on the host.
        pick = (gains >= best - TIE * best.abs()).to(torch.uint8).argmax(0, keepdim=True)
        picks[step : step + 1] = pick
        picked.index_fill_(0, pick, True)
        nearer = torch.maximum(covered, similarity.index_select(1, pick)[:, 0])
        if follow:
            rows = (nearer > covered).nonzero()[:, 0]
            before, after = covered[rows, None].double(), nearer[rows, None].double()
            gains -= similarity[rows].double().clamp_(before, after).sub_(before).sum(0)
        else:
            gains = (similarity - nearer[:, None]).clamp_min_(0.0).sum(0)
        covered = nearer
    return picks


def _require_budget(budget: int, rows: int) -> None:
    if not 0 <= budget <= rows:
        raise ConfigError(f"budget={budget} is outside [0, {rows}], the number of rows to choose from.")
