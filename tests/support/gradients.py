"""The oracle of the features: one forward and backward per example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from colm.features.locate import locate_value_site
from colm.losses import example_losses

FAMILIES = ["llama", "phi", "gpt2", "phi3"]


def one_backward_per_example(model: Any, batch: dict[str, Any], *, own_loss: bool = True) -> Tensor:
    """Return each row's gradient, computed on that row alone, without padding: of the model's loss or of colm's.

    Some decoders from encoder-decoder families do not shift labels in their loss.
    """
    site = locate_value_site(model)
    model.eval()
    rows = []
    for row in range(len(batch["input_ids"])):
        used = batch["attention_mask"][row].bool()
        model.zero_grad()
        ids, labels = batch["input_ids"][row : row + 1, used], batch["labels"][row : row + 1, used]
        if own_loss:
            loss = model(input_ids=ids, labels=labels).loss
        else:
            loss = example_losses(model(input_ids=ids).logits, labels).sum()
        loss.backward()
        gradient = site.weight.grad
        assert gradient is not None
        if type(site.module).__name__ == "Conv1D":
            gradient = gradient.T
        rows.append((gradient if site.value_rows is None else gradient[site.value_rows]).flatten().clone())
    return torch.stack(rows)


class Interrupted(Exception):
    """Raised in the middle of a forward."""
