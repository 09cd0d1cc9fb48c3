"""From the host to a device, without waiting for what the device has still to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def row_numbers(rows: Sequence[int], device: torch.device) -> Tensor:
    """Return row numbers as a tensor (k,) int64 on the device."""
    return send(torch.tensor(rows, dtype=torch.int64), device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host's pageable memory on the device; the copy has read it when this returns.

    ``torch.tensor(rows, device=device)`` waits until the GPU has done all that it was given.
    """
    return tensor.to(device, non_blocking=True)
