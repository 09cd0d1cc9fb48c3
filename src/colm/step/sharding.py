"""Models with weights sharded over ranks: FSDP2 is supported, untested wrappers are rejected."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from colm.errors import UnsupportedModelError
from colm.step.ranks import gather_rows


def is_sharded(model: nn.Module) -> bool:
    """Return whether `fully_shard` (FSDP2) wraps the model or a part of it.

    Every forward of a wrapped part gathers its weights from all ranks, so all ranks must run the same number.
    """
    fsdp = _imported_fsdp()
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def check_sharding(model: nn.Module) -> None:
    """Reject wrappers with which selection has not been tested.

    Raises:
        UnsupportedModelError: the model uses FSDP1 or DeepSpeed.
    """
    fsdp = _imported_fsdp()
    if fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()):
        raise UnsupportedModelError(
            "FullyShardedDataParallel (FSDP1) has not been tested with selection. Shard the model with "
            "torch.distributed.fsdp.fully_shard."
        )
    partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if partitioned or type(model).__name__ == "DeepSpeedEngine":
        raise UnsupportedModelError(
            "DeepSpeed has not been tested with selection. Use DistributedDataParallel, or shard the model with "
            "torch.distributed.fsdp.fully_shard."
        )


def most_over_ranks(count: int, device: torch.device) -> int:
    """Return the largest of the ranks' counts."""
    return int(torch.cat(gather_rows(torch.tensor([count], device=device))).max())


def _imported_fsdp() -> Any:
    """Return ``torch.distributed.fsdp``, or None if nothing has imported it: then nothing is wrapped by it."""
    return sys.modules.get("torch.distributed.fsdp")
