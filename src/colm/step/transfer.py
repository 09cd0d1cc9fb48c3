"""Copy from the host to a device without waiting for the device's queued work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def row_numbers(rows: Sequence[int], device: torch.device) -> Tensor:
    """Return row numbers as a tensor (k,) int64 on the device."""
    return send(torch.tensor(rows, dtype=torch.int64), device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from pageable host memory to the device; the source has been read when this returns.

    In contrast, ``torch.tensor(rows, device=device)`` waits until the GPU has finished its queued work.
    """
    return tensor.to(device, non_blocking=True)
