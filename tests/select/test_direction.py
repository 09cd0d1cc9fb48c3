from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.select.direction import match_direction


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(0, 9))
def test_each_pick_is_the_best_next_one(seed: int, n: int, budget: int) -> None:
    budget = min(budget, n)
    features = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)).double() + 0.2
    picks = match_direction(features, budget).tolist()
    assert len(set(picks)) == budget
    whole = features.sum(0)
    for step, pick in enumerate(picks):
        rivals = [row for row in range(n) if row not in picks[:step]]
        cosine = {r: torch.cosine_similarity(features[[*picks[:step], r]].sum(0), whole, dim=0) for r in rivals}
        assert cosine[pick] >= max(cosine.values()) - 1e-6


def test_all_zero_and_equal_rows_go_to_the_lowest() -> None:
    assert match_direction(torch.zeros(3, 2), 2).tolist() == [0, 1]
    assert match_direction(torch.ones(3, 2), 3).tolist() == [0, 1, 2]
