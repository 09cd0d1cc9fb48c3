from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.features.sparsify import largest_coordinates


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=30), st.integers(1, 40))
def test_takes_the_largest_and_the_lower_of_ties(values: list[int], count: int) -> None:
    found = largest_coordinates(torch.tensor(values, dtype=torch.float32), count).tolist()
    expected = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count])
    assert found == expected


def test_float_noise_does_not_decide() -> None:
    mean = torch.ones(100)
    noisy = mean + 1e-7 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert largest_coordinates(noisy, 10).tolist() == list(range(10))
