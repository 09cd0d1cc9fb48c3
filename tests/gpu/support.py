"""Tiny models, ragged batches and a mixture, for tests that need neither the other tests nor their packages."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from colm.features.locate import locate_value_site

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY = 96
SIZES = {"a": 600, "b": 400, "c": 10}
"""Examples of each source; c is small."""

_state = {"under test": False}


@contextmanager
def under_test() -> Iterator[torch.device]:
    """Marks code under test, as opposed to the reference it is compared with; in the rehearsal both run on a CPU."""
    _state["under test"] = True
    try:
        yield DEVICE
    finally:
        _state["under test"] = False


def is_under_test(tensor: Tensor) -> bool:
    return tensor.is_cuda or _state["under test"]


def tiny_model(*, lora: bool = False, layers: int = 3, seed: int = 0, fused: bool = False, **changes: Any) -> Any:
    """Return a Llama, or a Phi-3 with a fused projection, with random weights on the CPU; LoRA's B is random too."""
    from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,  # so that gradients are not tiny
        "pad_token_id": 0,
        **changes,
    }
    model: Any = Phi3ForCausalLM(Phi3Config(**shape)) if fused else LlamaForCausalLM(LlamaConfig(**shape))
    return adapted(model, ["qkv_proj"] if fused else ["q_proj", "v_proj"]) if lora else model


def adapted(model: Any, target: Any = "all-linear") -> Any:
    """Add LoRA with a nonzero B to the model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=target))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def ragged_batch(
    lengths: list[int], *, seed: int = 0, width: int | None = None, mask: bool = True
) -> dict[str, Tensor]:
    """Draw random rows of the given lengths, padded on the right; the first third of each has no labels."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    ids = torch.randint(1, VOCABULARY - 1, (len(lengths), width), generator=generator)
    column, length = torch.arange(width), torch.tensor(lengths)[:, None]
    used = column < length
    batch = {"input_ids": ids * used, "attention_mask": used.long()}
    batch["labels"] = ids.masked_fill(~used | (column < length // 3), -100)
    return batch if mask else {key: value for key, value in batch.items() if key != "attention_mask"}


def pool_of(step: int, *, rows: int = 24, micro_batches: int = 3) -> tuple[list[dict[str, Tensor]], list[str]]:
    """Draw a pool of ragged micro-batches, and the source of each of its rows."""
    draw = random.Random(step)
    count = rows // micro_batches
    batches = [
        ragged_batch([draw.randint(6, 20) for _ in range(count)], seed=100 * step + number)
        for number in range(micro_batches)
    ]
    return batches, [draw.choices("abc", [0.55, 0.4, 0.05])[0] for _ in range(rows)]


def on(device: torch.device, batches: Any) -> Any:
    """Copy a batch, or a list of them, to a device."""
    if isinstance(batches, list):
        return [on(device, batch) for batch in batches]
    return {key: value.to(device) for key, value in batches.items()}


def one_backward_a_row(
    model: Any, batch: dict[str, Tensor], *, context: Callable[[], Any], scale: float = 1.0
) -> Tensor:
    """Return each row's gradient of the last value projection, (n, D), computed on that row alone, without padding.

    The loss is the model's own. With a scale it is multiplied before the backward, as a GradScaler does.
    """
    site = locate_value_site(model)
    model.eval()
    found = []
    for row, labels in enumerate(batch["labels"]):
        used = batch["attention_mask"][row].bool() if "attention_mask" in batch else torch.ones_like(labels).bool()
        model.zero_grad()
        with context():
            loss = model(input_ids=batch["input_ids"][row : row + 1, used], labels=labels[None, used]).loss
        (loss * scale).backward()
        gradient = site.weight.grad
        assert gradient is not None
        gradient = gradient if site.value_rows is None else gradient[site.value_rows]
        found.append(gradient.double().flatten() / scale)
    model.zero_grad()
    return torch.stack(found)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the Frobenius norm of the difference, relative to the norm of the expected value."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def lowest_cosine(found: Tensor, expected: Tensor) -> float:
    """Return the lowest cosine between a row and the expected row."""
    return float(torch.cosine_similarity(found.double().cpu(), expected.double().cpu(), dim=1).min())


def mixture(rows: int = 96, seed: int = 0) -> Any:
    """Return a dataset in which each source has its own range of tokens, so that there is something to learn."""
    from datasets import Dataset

    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        source = draw.choices("abc", [0.5, 0.45, 0.05])[0]
        ids = ["abc".index(source) * 30 + draw.randrange(1, 20) for _ in range(draw.randint(6, 16))]
        made.append({"source": source, "input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100, *ids[1:]]})
    return Dataset.from_list(made)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad rows on the right to the longest of them."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: torch.tensor([row[key] + [pad] * (width - len(row[key])) for row in rows]) for key, pad in fill.items()
    }
