from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.select.direction import match_direction


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_each_pick_is_the_best_next_one(seed: int, n: int, budget: int, with_goal: bool) -> None:
    budget = min(budget, n)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 4, generator=generator).double() + 0.2
    whole = torch.randn(4, generator=generator).double() if with_goal else features.sum(0)
    picks = match_direction(features, budget, whole if with_goal else None).tolist()
    assert len(set(picks)) == budget
    for step, pick in enumerate(picks):
        rivals = [row for row in range(n) if row not in picks[:step]]
        cosine = {r: torch.cosine_similarity(features[[*picks[:step], r]].sum(0), whole, dim=0) for r in rivals}
        assert cosine[pick] >= max(cosine.values()) - 1e-6


def test_all_zero_and_equal_rows_go_to_the_lowest() -> None:
    assert match_direction(torch.zeros(3, 2), 2).tolist() == [0, 1]
    assert match_direction(torch.ones(3, 2), 3).tolist() == [0, 1, 2]
