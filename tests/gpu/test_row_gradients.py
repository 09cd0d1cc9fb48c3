"""The vectors of `colm features --by gradients` compared with those of one backward per row on the CPU."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tests.gpu.support import DEVICE, lowest_cosine, one_backward_a_row, ragged_batch, tiny_model

from colm.features.shorten import draw_sketch
from colm.lab.run.gradients import RowGradients
from colm.lab.run.prepare import PreparedData
from colm.lab.run.settings import resolve_settings
from colm.models import train_tiny_tokenizer

pytestmark = pytest.mark.gpu

LENGTHS = [13, 5, 24, 2, 9, 17, 3, 11]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("dtype", "cosine"), [(None, 1 - 1e-6), ("bfloat16", 0.99)])
def test_vectors_are_sketches_of_gradients(dtype: str | None, cosine: float, lora: bool) -> None:
    model, batch = tiny_model(lora=lora), ragged_batch(LENGTHS)
    exact = one_backward_a_row(copy.deepcopy(model), batch, context=nullcontext)
    sketch = draw_sketch(exact.shape[1], 32, exact.device)
    assert sketch is not None
    rows = [
        {name: values[row, :length].tolist() for name, values in batch.items()} for row, length in enumerate(LENGTHS)
    ]
    values: dict[str, Any] = {
        "model": "tiny",
        "data": {"train": "demo"},
        "selection": {"pass_dtype": dtype},
        "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        "output_dir": "none",
    }
    data = PreparedData(train_tiny_tokenizer(["a"]), Dataset.from_list(rows), None)
    vectors = RowGradients(model.to(DEVICE), resolve_settings(values), data, 32)
    found = np.concatenate(list(vectors(range(len(rows)))))
    assert found.dtype == np.float32
    expected = sketch.apply(exact.float())
    assert lowest_cosine(expected.new_tensor(found), expected) > cosine
