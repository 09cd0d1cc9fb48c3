from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.select.weighting import RIDGE, fit_weights


def descend(features: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Compute the unclipped fit by many small gradient-descent steps on its objective."""
    x, target = features.double().numpy(), goal.double().numpy()  # small products are several times as fast in NumPy
    pull = RIDGE * (x**2).sum(1).mean()
    weights = np.ones(len(x))
    rate = 1 / (np.linalg.norm(x @ x.T, 2) + pull)
    for _ in range(5000):
        weights = weights - rate * (x @ (weights @ x - target) + pull * (weights - 1))
    return torch.from_numpy(weights)


@given(st.integers(0, 1000), st.integers(1, 8))
def test_fits_as_descent_does(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(k, 5, generator=generator) + 0.5
    goal = k * torch.randn(5, generator=generator)
    expected = descend(features, goal).clamp_min(0)
    expected = expected if expected.sum() > 0 else torch.ones(k).double()
    torch.testing.assert_close(fit_weights(features, goal), expected, atol=1e-4, rtol=1e-4)


def test_the_sum_comes_nearer_to_the_goal() -> None:
    features = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) + 0.3
    kept, goal = features[:16], 16 * features.mean(0)
    weights = fit_weights(kept, goal).float()
    assert float(weights.min()) >= 0
    assert (weights @ kept - goal).norm() < 0.8 * (kept.sum(0) - goal).norm()


def test_degenerate_fits() -> None:
    assert fit_weights(torch.zeros(2, 2), torch.zeros(2)).tolist() == [1.0, 1.0]
    assert fit_weights(torch.ones(0, 2), torch.ones(2)).tolist() == []
    assert fit_weights(torch.ones(1, 2), -9 * torch.ones(2)).tolist() == [1.0]  # points away from the goal
