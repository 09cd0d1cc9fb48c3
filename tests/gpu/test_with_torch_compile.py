"""A compiled model: the selection pass is the eager one's, and training goes through the compiled forward."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu.support import DEVICE, SIZES, on, ragged_batch, tiny_model

from colm import CoresetSelector, SelectionConfig, example_mean

pytestmark = pytest.mark.gpu

LENGTHS = [20, 12, 9, 20, 17, 20, 8, 20]


def backend() -> str:
    """Return the compiler backend: inductor takes a minute on a CPU, and on a GPU needs a C compiler and Python.h."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    return "inductor" if DEVICE.type == "cuda" and compiler and header else "aot_eager"


def train(*, compiled: bool) -> tuple[list[list[int]], torch.Tensor]:
    """Train two steps on the rows kept of one micro-batch, so that there is one shape to compile."""
    model: Any = tiny_model(layers=2).to(DEVICE).train()
    trained = list(model.parameters())
    if compiled:
        model = torch.compile(model, backend=backend(), dynamic=False)
    selector = CoresetSelector(model, SelectionConfig(keep=0.5), SIZES)
    optimizer = torch.optim.SGD(trained, lr=0.02)
    rows = []
    for _ in range(2):
        batch = on(DEVICE, ragged_batch(LENGTHS))
        coreset = selector.select(batch, ["a", "b"] * 4)
        (kept,) = selector.take(batch, coreset)
        logits = model(input_ids=kept["input_ids"], attention_mask=kept["attention_mask"], use_cache=False).logits
        example_mean(logits, kept["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        selector.commit()
        rows.append(coreset.indices.tolist())
    return rows, torch.cat([parameter.detach().flatten() for parameter in trained])


def test_a_compiled_model_trains_the_same_rows(measured: Callable[..., None]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rows, plain = train(compiled=False)
    our_rows, ours = train(compiled=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    start = torch.cat([parameter.detach().flatten() for parameter in tiny_model(layers=2).parameters()]).to(DEVICE)
    error = float((ours - plain).norm() / (plain - start).norm())
    measured(error_of_the_change=error, backend=backend(), graphs=graphs)
    torch._dynamo.reset()
    assert our_rows == rows
    assert graphs > 0  # the training forward was compiled
    assert error < 1e-4  # of float32 sums in another order
