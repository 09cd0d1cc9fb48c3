from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from colm.errors import ConfigError
from colm.lab.plan.counting import DryRun
from colm.lab.plan.memory import optimizer_bytes, parse_memory
from colm.lab.plan.propose import largest


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("24 gib", 24 * 2**30),
        ("80GB", 80 * 10**9),
        ("0.5TiB", 2**39),
        ("512MiB", 2**29),
        ("80e9", 80 * 10**9),
        ("25769803776", 24 * 2**30),
    ],
)
def test_amounts(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("24", "'24' has no unit.*use 24GiB"),
        ("lots", "'lots' is not an amount of memory; use a number"),
        ("24 gallons", "is not an amount of memory"),
        ("-3GiB", "is not an amount of memory"),
        ("0GiB", "must be more than 0"),
        ("", "is not an amount of memory"),
    ],
)
def test_bad_amounts(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_memory(text)


@pytest.mark.parametrize("name", ["adamw_torch", "sgd", "adagrad", "rmsprop"])
def test_optimizers_keep_the_stated_bytes(name: str) -> None:
    made = {
        "adamw_torch": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }
    weights = [torch.nn.Parameter(torch.ones(64, 32)), torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))]
    optimizer = made[name](weights, lr=1e-3)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    kept, _ = optimizer_bytes(name, weights)
    assert kept == sum(value.numel() * value.element_size() for value in states if isinstance(value, torch.Tensor))


def test_unknown_optimizer() -> None:
    with pytest.raises(ConfigError, match="optim='adamw_torhc' cannot be planned.*Did you mean 'adamw_torch'"):
        optimizer_bytes("adamw_torhc", [])


@given(
    st.integers(1, 30), st.integers(0, 40), st.lists(st.integers(0, 9), min_size=70, max_size=70), st.integers(0, 400)
)
def test_largest_is_the_largest(lowest: int, more: int, steps: list[int], limit: int) -> None:
    sizes = [sum(steps[:n]) for n in range(72)]
    fitting = [n for n in range(lowest, lowest + more + 1) if sizes[n] <= limit]
    assert largest(lowest, lowest + more, lambda n: sizes[n], limit) == (max(fitting) if fitting else None)


def test_live_tensors_are_counted_once_until_freed() -> None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        weight = torch.nn.Parameter(torch.empty(8, 4))
    with DryRun(fake) as dry:
        output = torch.ones(2, 4) @ weight.t()  # a view of the weight allocates nothing
        assert dry.live == dry.peak == 4 * (2 * 4 + 2 * 8)  # autograd keeps the ones for the weight's gradient
        assert dry.flops == 2 * 2 * 4 * 8
        mask = torch.tensor([True, False])
        assert output[mask].shape == (1, 8)  # real tensors are followed
        assert float(output.detach().sum()) == 1.0  # fake values are one
        del output
        assert dry.live == 0
    assert dry.peak >= 4 * (2 * 4 + 2 * 8)
