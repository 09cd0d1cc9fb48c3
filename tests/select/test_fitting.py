from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.select.fitting import RIDGE, fit_weights


def descend(features: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """The unclipped fit by many small steps down the gradient of its objective."""
    x = features.double()
    held, mean = x[picks], x.mean(0)
    pull = RIDGE * held.square().sum(1).mean()
    even = torch.full((len(picks),), 1 / len(picks), dtype=torch.float64)
    weights = even.clone()
    rate = 1 / (torch.linalg.matrix_norm(held @ held.T, 2) + pull)
    for _ in range(5000):
        weights = weights - rate * (held @ (weights @ held - mean) + pull * (weights - even))
    return weights


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 8))
def test_fits_as_descent_does(seed: int, n: int, k: int) -> None:
    k = min(k, n)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 5, generator=generator) + 0.5
    picks = torch.randperm(n, generator=generator)[:k]
    expected = descend(features, picks).clamp_min(0)
    expected = expected * k / expected.sum() if expected.sum() > 0 else torch.ones(k).double()
    torch.testing.assert_close(fit_weights(features, picks), expected, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 1000), st.integers(1, 9))
def test_weights_are_at_least_0_with_a_mean_of_1(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(12, 3, generator=generator)
    weights = fit_weights(features, torch.randperm(12, generator=generator)[:k])
    assert float(weights.min()) >= 0
    assert abs(float(weights.mean()) - 1) < 1e-9


def test_the_mean_comes_nearer_to_that_of_all_rows() -> None:
    features = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) + 0.3
    picks = torch.arange(16)
    weights = fit_weights(features, picks).float() / 16
    whole = features.mean(0)
    fitted = torch.cosine_similarity(weights @ features[picks], whole, dim=0)
    assert fitted > torch.cosine_similarity(features[picks].mean(0), whole, dim=0)


def test_nothing_to_go_by() -> None:
    assert fit_weights(torch.zeros(4, 2), torch.tensor([0, 3])).tolist() == [1.0, 1.0]
    assert fit_weights(torch.ones(4, 2), torch.tensor([], dtype=torch.int64)).tolist() == []
    assert fit_weights(-torch.ones(3, 2), torch.tensor([1])).tolist() == [1.0]
    opposed = torch.tensor([[1.0], [-9.0], [-9.0]])  # the one pick points away from the mean
    assert fit_weights(opposed, torch.tensor([0])).tolist() == [1.0]
