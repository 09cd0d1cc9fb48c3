from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.select.baselines import largest_rows, middle_rows

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=0, max_size=12)


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
