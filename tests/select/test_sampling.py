from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.select.sampling import inclusion_chances, sample_by_size

SIZES = st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.0, 3.5, 100.0]), min_size=1, max_size=12)


@given(SIZES, st.integers(0, 12))
def test_chances_sum_to_the_budget_and_follow_the_sizes(sizes: list[float], budget: int) -> None:
    budget = min(budget, len(sizes))
    chances = inclusion_chances(torch.tensor(sizes), budget)
    assert float(chances.sum()) == pytest.approx(budget)
    assert float(chances.min()) >= 0
    assert float(chances.max()) <= 1
    for i, one in enumerate(sizes):
        for j, other in enumerate(sizes):
            if one >= other:
                assert chances[i] >= chances[j] - 1e-9
            if one > 0 and other > 0 and max(chances[i], chances[j]) < 1 - 1e-9:
                assert chances[i] * other == pytest.approx(float(chances[j]) * one)


@given(SIZES, st.integers(0, 12), st.integers(0, 99))
def test_a_draw_has_as_many_different_rows_as_the_budget(sizes: list[float], budget: int, seed: int) -> None:
    budget = min(budget, len(sizes))
    rows, chances = sample_by_size(torch.tensor(sizes), budget, torch.Generator().manual_seed(seed))
    assert len(set(rows.tolist())) == budget
    assert rows.tolist() == sorted(rows.tolist())
    assert (chances[rows] > 0).all()
    assert set(rows.tolist()) >= {row for row, chance in enumerate(chances.tolist()) if chance > 1 - 1e-12}


def test_draws_have_their_chances_and_the_weighted_mean_is_unbiased() -> None:
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0, 30.0])
    values = torch.tensor([5.0, -1.0, 2.0, 7.0, 4.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws, hits, means = 4000, torch.zeros(5, dtype=torch.float64), []
    for _ in range(draws):
        rows, chances = sample_by_size(sizes, 3, generator)
        hits[rows] += 1
        means.append((values[rows] / chances[rows]).sum() / 5)
    spread = (chances * (1 - chances) / draws).sqrt()
    assert ((hits / draws - chances).abs() <= 4 * spread + 1e-12).all()
    found = torch.stack(means)
    assert abs(float(found.mean() - values.mean())) < 4 * float(found.std()) / draws**0.5
