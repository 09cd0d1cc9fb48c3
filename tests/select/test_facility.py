"""Greedy facility location compared with brute force, a slow greedy, and submodlib."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from colm.errors import ConfigError
from colm.select.facility import facility_location, medoids_of_distances, pairwise_distances


def slow_distances(x: Tensor, metric: str) -> Tensor:
    d = torch.zeros(len(x), len(x))
    for i, a in enumerate(x.double()):
        for j, b in enumerate(x.double()):
            if metric == "l1":
                d[i, j] = (a - b).abs().sum()
            elif metric == "l2":
                d[i, j] = (a - b).square().sum().sqrt()
            else:
                d[i, j] = 1 - (a @ b) / max(float(a.norm() * b.norm()), 1e-12)
    return d


def value(similarity: Tensor, picks: tuple[int, ...] | list[int]) -> float:
    return float(similarity[:, list(picks)].amax(1).sum()) if picks else 0.0


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_distances(metric: str) -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    x[3] = x[2] + 1e-3  # near neighbors must keep their digits
    torch.testing.assert_close(pairwise_distances(x, metric), slow_distances(x, metric), rtol=1e-4, atol=1e-6)


@given(st.integers(0, 8), st.integers(0, 2**31 - 1), st.sampled_from(["l1", "l2", "cosine"]))
def test_within_the_greedy_bound_of_the_best_set(n: int, seed: int, metric: str) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    distances = slow_distances(x, metric)
    similarity = distances.max() - distances if n else distances
    for budget in range(n + 1):
        picks = facility_location(x, budget, metric).tolist()
        assert len(set(picks)) == budget
        best = max(value(similarity, subset) for subset in combinations(range(n), budget))
        assert value(similarity, picks) >= (1 - 1 / np.e) * best - 1e-4


@given(st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_each_pick_has_the_largest_gain_and_the_lower_row_wins_a_tie(n: int, seed: int) -> None:
    # Small whole numbers: many exact ties, and sums that float32 holds exactly.
    x = torch.randint(0, 3, (n, 2), generator=torch.Generator().manual_seed(seed)).float()
    distances = slow_distances(x, "l1")
    similarity = distances.max() - distances
    chosen: list[int] = []
    for pick in facility_location(x, n).tolist():
        gains = [value(similarity, [*chosen, j]) if j not in chosen else -1.0 for j in range(n)]
        assert pick == gains.index(max(gains))
        chosen.append(pick)


@given(st.integers(0, 40), st.integers(1, 4), st.booleans(), st.integers(0, 2**31 - 1))
def test_updated_gains_equal_recomputed_gains(n: int, d: int, whole: bool, seed: int) -> None:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    distances = pairwise_distances(x.round() if whole else x)  # rounded: duplicates, ties, gains of zero
    for budget in {0, n // 2, n}:
        anew = medoids_of_distances(distances, budget, follow=False).tolist()
        assert medoids_of_distances(distances, budget, follow=True).tolist() == anew


def test_large_pools_update_their_gains() -> None:
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(2))
    anew = medoids_of_distances(pairwise_distances(x), 300, follow=False)
    assert facility_location(x, 300).tolist() == anew.tolist()


def test_same_objective_as_submodlib_at_128() -> None:
    submodlib = pytest.importorskip("submodlib")

    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))
    distances = pairwise_distances(x, "l1")
    similarity = (distances.max() - distances).numpy()
    function = submodlib.FacilityLocationFunction(n=128, mode="dense", sijs=similarity, separate_rep=False)
    theirs = function.maximize(
        budget=32, optimizer="NaiveGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    found = facility_location(x, 32).tolist()
    ours = value(torch.from_numpy(similarity), found)
    assert ours == pytest.approx(value(torch.from_numpy(similarity), [row for row, _ in theirs]), rel=1e-5)


def test_float_noise_below_the_tie_does_not_decide() -> None:
    x = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    noisy = x + 1e-7 * torch.tensor([[1.0], [-1.0], [-1.0], [1.0]])
    assert facility_location(x, 4).tolist() == facility_location(noisy, 4).tolist() == [0, 1, 2, 3]


def test_edges() -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert facility_location(x, 0).tolist() == []
    assert sorted(facility_location(x, 5).tolist()) == [0, 1, 2, 3, 4]
    assert facility_location(torch.zeros(0, 3), 0).tolist() == []
    assert facility_location(torch.ones(1, 3), 1).tolist() == [0]
    with pytest.raises(ConfigError, match=r"budget=6 is outside \[0, 5\]"):
        facility_location(x, 6)
    with pytest.raises(ConfigError, match="metric='l3' is not one of"):
        facility_location(x, 2, "l3")
