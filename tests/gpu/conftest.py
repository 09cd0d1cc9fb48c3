"""Tests for a GPU. Without a GPU, they run on the CPU, as a rehearsal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for full determinism; CUDA reads it when it begins

import pytest
import torch
from tests.gpu import support

WRONG = "COLM_GPU_WRONG_PICK"
"""Environment variable: with any value, the first two medoids change places on the device under test."""


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the device under test."""
    return support.DEVICE


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function whose keyword arguments are reported next to the test's outcome."""

    def note(**values: Any) -> None:
        for name, value in values.items():
            record_property(name, float(f"{value:.3g}") if isinstance(value, float) else value)

    return note


@pytest.fixture(autouse=True)
def plain_arithmetic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Multiply float32 without TF32, store gradients as factors as with large models, and restore determinism."""
    torch.set_float32_matmul_precision("highest")  # no TF32
    monkeypatch.setattr("colm.features.factors.SMALL_BYTES", 0)
    torch.set_num_threads(1)  # for the CPU's part: the models are tiny
    deterministic, flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    kept = {name: os.environ.get(name) for name in ("CUDA_LAUNCH_BLOCKING", "FLASH_ATTENTION_DETERMINISTIC")}
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = flags
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant wrong picks if requested; the tests must detect them."""
    if not os.environ.get(WRONG):
        return
    from colm.select import facility, rules

    true_picks = facility.medoids_of_distances

    def wrong_picks(distances: torch.Tensor, budget: int, **options: Any) -> torch.Tensor:
        picks = true_picks(distances, budget, **options)
        if support.is_under_test(distances):
            picks[:2] = picks[:2].flip(0)
        return picks

    monkeypatch.setattr(facility, "medoids_of_distances", wrong_picks)
    monkeypatch.setattr(rules, "medoids_of_distances", wrong_picks)
