"""The selection pass saves less for its backward than training on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from tests.support.models import ragged_batch, tiny_model
from torch import Tensor

from colm.features.exact import exact_features
from colm.features.locate import locate_value_site
from colm.losses import example_mean
from colm.step.pool import Pool


def saved_bytes(action: Callable[[], Any]) -> int:
    """Return the bytes of the distinct storages that autograd saves while `action` runs."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        action()
    return sum(storages.values())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("layers", "width", "rows"), [(2, 32, 4), (4, 64, 8), (8, 128, 8)])
def test_the_pass_saves_less_than_training_on_the_same_rows(lora: bool, layers: int, width: int, rows: int) -> None:
    model = tiny_model("llama", lora=lora, num_hidden_layers=layers, hidden_size=width, intermediate_size=2 * width)
    batch = ragged_batch([48] * rows)
    site, pool = locate_value_site(model), Pool(batch)

    def train() -> None:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        example_mean(logits, batch["labels"]).backward()

    selection = saved_bytes(lambda: exact_features(model, site, pool, [list(range(rows))], head_chunk_tokens=64))
    model.train()
    assert selection < saved_bytes(train)


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_the_head_runs_in_chunks_behind_accelerates_autocast(family: str) -> None:
    """accelerate wraps the forward of a prepared model: logits made in bfloat16 come out as float32."""
    model = tiny_model(family)
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    site, pool = locate_value_site(model), Pool(ragged_batch([9, 7, 5, 8]))
    read: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].shape[-2]))
    chunked = exact_features(model, site, pool, [list(range(4))], head_chunk_tokens=4).rows(torch.arange(4))
    assert len(read) > 4
    assert max(read) == 4
    whole = exact_features(model, site, pool, [list(range(4))], head_chunk_tokens=99).rows(torch.arange(4))
    torch.testing.assert_close(chunked, whole, rtol=1e-2, atol=1e-3)
