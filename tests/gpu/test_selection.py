"""Full selection steps on a model: rows, weights, quotas and history are the same on a GPU as on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.gpu.support import SIZES, on, pool_of, tiny_model, under_test

from colm import Coreset, CoresetSelector, SelectionConfig, StepRecord

pytestmark = pytest.mark.gpu

STEPS = 4
NEAR = 1e-6
"""A relative change of the weights, larger than rounding, that must not change the rows on the CPU."""

CASES: dict[str, dict[str, Any]] = {
    "colm": {},
    "colm of few coordinates": {"coordinates": 100},
    "colm-spsa": {"preset": "colm-spsa"},
    "matched": {"preset": "matched"},
    "matched, a sketch, no small sources": {"preset": "matched", "coordinates": 100, "small_sources": "none"},
    "control": {"preset": "control"},
    "l2": {"metric": "l2", "coordinates": 100},
    "cosine": {"metric": "cosine", "coordinates": 100},
    "largest": {"pick": "largest", "adam": False},
    "middle": {"pick": "middle", "adam": False},
    "sample": {"pick": "sample", "weights": "relative", "adam": False},
    "represented": {"weights": "represented"},
    "balance": {"balance": 1.0, "small_sources": "none", "weights": "represented"},
    "named small sources": {"small_sources": ["b", "c"], "keep": 0.75},
    "small sources above the budget": {"small_sources": ["a", "c"], "keep": 0.25},
    "all sources as one": {"by_source": False, "small_sources": "none"},
    "mean_hidden": {"features": "mean_hidden"},
    "last_hidden": {"features": "last_hidden"},
    "loss": {"features": "loss", "pick": "middle"},
    "gradient_norm": {"features": "gradient_norm", "pick": "largest"},
    "pass_labels": {"pass_labels": 3},
    "every other step": {"every": 2},
}

DOUBLE = ("colm-spsa",)
"""In float64: a difference of two losses that are nearly the same loses the digits that float32 has."""


def run(
    settings: dict[str, Any], device: torch.device, *, lora: bool, dtype: torch.dtype, noise: float = 0.0
) -> tuple[list[Coreset], list[StepRecord], dict[str, Any]]:
    model = tiny_model(lora=lora)
    draw = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data.mul_(1 + noise * torch.randn(parameter.shape, generator=draw))
    model = model.to(device, dtype)
    selector = CoresetSelector(model, SelectionConfig.from_dict(settings), SIZES)
    coresets, records = [], []
    for step in range(STEPS):
        batches, sources = pool_of(step)
        coresets.append(selector.select(on(device, batches), sources))
        records.append(selector.commit())
    return coresets, records, selector.state_dict()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_cpu(name: str, lora: bool, measured: Callable[..., None]) -> None:
    settings, dtype = CASES[name], torch.float64 if name in DOUBLE else torch.float32
    cpu = torch.device("cpu")
    coresets, records, state = run(settings, cpu, lora=lora, dtype=dtype)
    near, _, _ = run(settings, cpu, lora=lora, dtype=dtype, noise=0.0 if name in DOUBLE else NEAR)
    rows = [coreset.indices.tolist() for coreset in coresets]
    assert [coreset.indices.tolist() for coreset in near] == rows, "the test's own rows are too close to decide"
    with under_test() as device:
        ours, our_records, our_state = run(settings, device, lora=lora, dtype=dtype)
    assert [coreset.indices.tolist() for coreset in ours] == rows
    changing = ("seconds", "match", "match_random", "weights")
    for a, b in zip(our_records, records, strict=True):
        assert {k: v for k, v in a._asdict().items() if k not in changing} == {
            k: v for k, v in b._asdict().items() if k not in changing
        }  # quotas and small sources' rows among them
    worst = max(
        float((a.weights - b.weights).abs().max() / b.weights.max()) for a, b in zip(ours, coresets, strict=True)
    )
    errors = {"weights": worst}
    for key in ("m", "v", "carried"):
        a, b = our_state[key], state[key]
        assert (a is None) == (b is None)
        if b is not None:
            errors[key] = float((a - b).norm() / b.norm())
    measured(**{f"error_of_{key}": value for key, value in errors.items()})
    # Features of float32 on two devices differ by about 1e-6, relative; the fitted weights and the residual
    # solve with them.
    assert all(value < 1e-3 for value in errors.values()), errors


def test_state_goes_from_the_gpu_to_the_cpu_and_back(device: torch.device) -> None:
    """A checkpoint's state is on the CPU; a selector on either device resumes from it."""
    batches, sources = pool_of(0)
    model = tiny_model().to(device)
    first = CoresetSelector(model, SelectionConfig(), SIZES)
    first.select(on(device, batches), sources)
    first.commit()
    state = first.state_dict()
    assert {value.device.type for value in state.values() if isinstance(value, torch.Tensor)} == {"cpu"}
    second = CoresetSelector(model, SelectionConfig(), SIZES)
    second.load_state_dict(state)
    batches, sources = pool_of(1)
    one = first.select(on(device, batches), sources)
    two = second.select(on(device, batches), sources)
    assert one.indices.tolist() == two.indices.tolist()
