"""Adam normalization compared with torch's optimizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.features.adam import AdamConstants, adam_constants, empty_history, fold_in, to_adam_steps
from colm.types import AdamHistory


@given(
    st.integers(0, 50), st.floats(0.0, 0.99), st.floats(0.5, 0.999), st.floats(1e-9, 1e-3), st.integers(0, 2**31 - 1)
)
def test_equals_the_step_of_torch_adam(updates: int, beta1: float, beta2: float, eps: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(6, generator=generator, dtype=torch.float64)
    if updates == 0:
        history = AdamHistory(torch.zeros(6).double(), torch.zeros(6).double(), 0)
    else:
        m = torch.randn(6, generator=generator, dtype=torch.float64)
        history = AdamHistory(m, torch.rand(6, generator=generator, dtype=torch.float64), updates)
    parameter = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=(beta1, beta2), eps=eps)
    optimizer.state[parameter] = {
        "step": torch.tensor(float(updates)),
        "exp_avg": history.m.clone(),
        "exp_avg_sq": history.v.clone(),
    }
    parameter.grad = gradient.clone()
    optimizer.step()
    constants = AdamConstants(beta1, beta2, eps)
    moments = fold_in(gradient, gradient.square(), history, constants)
    step = to_adam_steps(gradient[None], history, constants)
    torch.testing.assert_close(-step[0], parameter.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moments.m, optimizer.state[parameter]["exp_avg"])
    torch.testing.assert_close(moments.v, optimizer.state[parameter]["exp_avg_sq"])
    assert moments.updates == updates + 1


def test_the_first_step_is_the_sign() -> None:
    gradients = torch.tensor([[3.0, -0.2, 0.0]])
    step = to_adam_steps(gradients, empty_history(3, torch.device("cpu")), AdamConstants(0.9, 0.999, 1e-8))
    torch.testing.assert_close(step, torch.tensor([[1.0, -1.0, 0.0]]))


def test_constants_come_from_the_group_of_the_weight() -> None:
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([{"params": [a]}, {"params": [b], "betas": (0.5, 0.6), "eps": 1e-4}])
    assert adam_constants(optimizer, b) == AdamConstants(0.5, 0.6, 1e-4)
    assert adam_constants(optimizer, torch.zeros(2)) == AdamConstants(0.9, 0.999, 1e-8)


@pytest.mark.parametrize("kind", ["SGD", "RMSprop", "Adagrad"])
def test_other_optimizers_are_not_adam(kind: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    assert adam_constants(getattr(torch.optim, kind)([weight], lr=0.1), weight) is None
