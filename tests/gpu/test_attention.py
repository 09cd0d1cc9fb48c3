"""Attention kernels, and the requirements of a kernel without masks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.gpu.support import DEVICE, SIZES, lowest_cosine, on, ragged_batch, relative_error, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import is_flash_attn_2_available

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.features.exact import value_gradients
from colm.joined import check_joined
from colm.lean import LeanHead
from colm.step.pool import Pool

pytestmark = pytest.mark.gpu

LENGTHS = [13, 5, 24, 9, 17, 20]
BF16 = torch.bfloat16


class Flash(TorchDispatchMode):
    """Counts calls of the flash kernel, without a mask: a CPU's takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flash = "flash_attention" in str(func) and "backward" not in str(func)
        self.calls += flash and (kwargs or {}).get("attn_mask") is None
        return func(*args, **(kwargs or {}))


def gradients(kind: str, batch: dict[str, torch.Tensor], dtype: torch.dtype, context: Any = None) -> torch.Tensor:
    model = tiny_model(attn_implementation=kind).to(DEVICE, dtype)
    with context or nullcontext():
        return value_gradients(model, on(DEVICE, batch))


def test_eager_and_sdpa_agree(measured: Callable[..., None]) -> None:
    batch = ragged_batch(LENGTHS)
    error = relative_error(gradients("sdpa", batch, torch.float32), gradients("eager", batch, torch.float32))
    measured(error=error)
    assert error < 1e-5  # the softmax sums in another order


@pytest.mark.parametrize("rows", ["of one length", "padded, without a mask"])
def test_flash_forced(rows: str, measured: Callable[..., None]) -> None:
    """The flash kernel accepts no mask. transformers passes none if no token is padding, or without an attention_mask,
    which right-padded rows of a causal model do not need: no token attends to later ones."""
    if rows == "of one length":
        batch = ragged_batch([16] * 6)
        masked = batch
    else:
        batch, masked = ragged_batch(LENGTHS, mask=False), ragged_batch(LENGTHS)
    exact = gradients("eager", masked, torch.float32)
    with Flash() as flash:
        found = gradients("sdpa", batch, BF16, sdpa_kernel(SDPBackend.FLASH_ATTENTION))
    cosine, plain = lowest_cosine(found, exact), lowest_cosine(gradients("eager", masked, BF16), exact)
    measured(distance_of_cosine_from_1=1 - cosine, that_of_eager=1 - plain, kernel_calls=flash.calls)
    assert flash.calls >= 3  # one a layer
    assert cosine > 0.99  # see test_features.py


@pytest.mark.skipif(DEVICE.type == "cpu", reason="only CUDA's flash kernel refuses a mask")
def test_flash_refuses_padding_with_a_mask() -> None:
    with pytest.raises(RuntimeError, match="No available kernel"):
        gradients("sdpa", ragged_batch(LENGTHS), BF16, sdpa_kernel(SDPBackend.FLASH_ATTENTION))


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_a_step_with_checkpointing_is_one_without(kind: str, measured: Callable[..., None]) -> None:
    found: list[tuple[list[int], torch.Tensor]] = []
    for checkpointed in (False, True):
        model = tiny_model(attn_implementation=kind, lora=True).to(DEVICE).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        selector = CoresetSelector(model, SelectionConfig(), SIZES)
        batch = on(DEVICE, ragged_batch(LENGTHS))
        coreset = selector.select(batch, ["a", "b"] * 3)
        (kept,) = selector.take(batch, coreset)
        logits = model(input_ids=kept["input_ids"], attention_mask=kept["attention_mask"], use_cache=False).logits
        example_mean(logits, kept["labels"]).backward()
        selector.commit()
        grown = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((coreset.indices.tolist(), torch.cat(grown)))
    assert found[0][0] == found[1][0]
    error = relative_error(found[1][1], found[0][1])
    measured(error=error)
    assert error < 1e-5  # the same kernels run twice; atomic sums may round otherwise


@pytest.mark.parametrize("kind", ["sdpa", "flash_attention_2"])
def test_joined_rows_are_padded_ones(kind: str, measured: Callable[..., None]) -> None:
    """`padding_free`: sdpa gets a mask that keeps rows apart, FlashAttention the bounds of the rows."""
    if kind == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("flash_attn is not installed, or there is no GPU")
    dtype = BF16 if kind == "flash_attention_2" else torch.float32  # its kernel takes no float32
    batch = on(DEVICE, ragged_batch(LENGTHS))
    pool, found = Pool(batch), []
    for attention, rows in (("eager", batch), (kind, pool.join(range(len(pool))))):
        model = tiny_model(attn_implementation=attention).to(DEVICE, dtype).train()
        if rows is not batch:
            check_joined(model)
        losses = LeanHead(model)(model, rows)
        losses.mean().backward()
        found.append((losses.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])))
    of_losses, of_gradients = (relative_error(ours, padded) for padded, ours in zip(*found, strict=True))
    measured(error_of_losses=of_losses, error_of_gradients=of_gradients)
    assert of_losses < (1e-5 if dtype is torch.float32 else 2e-2)  # see test_features.py
    assert of_gradients < (1e-4 if dtype is torch.float32 else 1e-1)
