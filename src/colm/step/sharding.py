"""Models with weights sharded over ranks: FSDP2 is supported, untested wrappers are rejected."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from colm.errors import UnsupportedModelError
from colm.step.ranks import gather_rows


def is_sharded(model: nn.Module) -> bool:
    """Return whether `fully_shard` (FSDP2) wraps the model or a part of it.

    Every forward of a wrapped part gathers its weights from all ranks, so all ranks must run the same number.
    """
    return any(isinstance(module, FSDPModule) for module in model.modules())


def check_sharding(model: nn.Module) -> None:
    """Reject wrappers with which selection has not been tested.

    Raises:
        UnsupportedModelError: the model uses FSDP1 or DeepSpeed.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
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
