from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.config_parts import Pick
from colm.errors import ConfigError
from colm.select.facility import pairwise_distances
from colm.select.rules import largest_rows, middle_rows, pick_rows

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=0, max_size=12)


def test_medoids_stand_for_the_rows_nearest_to_them() -> None:
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    picked = pick_rows(features, 6, Pick())
    distances = pairwise_distances(features)
    expected = [0] * 6
    for row in range(20):
        expected[min(range(6), key=lambda k: float(distances[row, picked.rows[k]]))] += 1
    assert picked.stands_for.tolist() == expected


@pytest.mark.parametrize("pick", ["largest", "middle", "direction"])
def test_rows_picked_by_rank_stand_for_equal_parts(pick: str) -> None:
    picked = pick_rows(torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), 4, Pick(by=pick))
    assert picked.stands_for.tolist() == [2.5] * 4
    assert len(set(picked.rows.tolist())) == 4


def test_sampled_rows_stand_for_one_over_their_chance() -> None:
    features = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0], [100.0, 0.0]])  # sizes 5, 1, 1, 100
    picked = pick_rows(features, 2, Pick(by="sample"), torch.Generator().manual_seed(0))
    chance = {0: 5 / 7, 1: 1 / 7, 2: 1 / 7, 3: 1.0}  # the last is certain, the others share one pick
    expected = [1 / chance[row] for row in picked.rows.tolist()]
    assert picked.stands_for.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("pick", ["medoids", "largest", "middle", "direction", "sample"])
def test_no_rows_and_no_budget(pick: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (0, 3):
        picked = pick_rows(torch.ones(rows, 2), 0, Pick(by=pick), generator)
        assert len(picked.rows) == len(picked.stands_for) == 0


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="pick='best' is not one of 'medoids'"):
        pick_rows(torch.ones(2, 2), 1, Pick(by="best"))


@given(SCORES, st.integers(0, 12))
def test_largest_rows_are_those_of_a_sort_with_ties_to_the_lower_row(scores: list[float], budget: int) -> None:
    budget = min(budget, len(scores))
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:budget]
    assert largest_rows(torch.tensor(scores), budget).tolist() == expected


@given(SCORES, st.integers(0, 12))
def test_middle_rows_leave_as_many_below_as_above(scores: list[float], budget: int) -> None:
    budget = min(budget, len(scores))
    ranking = sorted(range(len(scores)), key=lambda row: (scores[row], row))
    rows = middle_rows(torch.tensor(scores), budget).tolist()
    assert len(rows) == budget
    if rows:
        below, above = ranking.index(rows[0]), len(scores) - 1 - ranking.index(rows[-1])
        assert below - above in (0, 1)
        assert rows == ranking[below : len(scores) - above]


def test_middle_rows_of_losses_are_those_of_perplexities() -> None:
    losses = torch.tensor([0.3, 9.0, 1.2, 0.1, 2.5, 4.0])
    assert middle_rows(losses, 3).tolist() == middle_rows(losses.exp(), 3).tolist()


@pytest.mark.parametrize("rule", [largest_rows, middle_rows])
def test_all_rows(rule: object) -> None:
    assert callable(rule)
    assert sorted(rule(torch.tensor([2.0, 1.0, 3.0]), 3).tolist()) == [0, 1, 2]
