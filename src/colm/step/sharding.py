"""Models whose weights are spread over ranks: FSDP2 is followed, what has not been run is refused."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from colm.errors import UnsupportedModelError
from colm.step.ranks import gather_rows


def is_sharded(model: nn.Module) -> bool:
    """Return whether `fully_shard` (FSDP2) has the model or a part of it.

    Every forward of such a part gathers its weights from all ranks, so all ranks must run as many.
    """
    return any(isinstance(module, FSDPModule) for module in model.modules())


def check_sharding(model: nn.Module) -> None:
    """Refuse wrappers that selection has not been run in.

    Raises:
        UnsupportedModelError: FSDP's first version, or DeepSpeed.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise UnsupportedModelError(
            "FullyShardedDataParallel is FSDP's first version, in which selection has not been run; shard the model "
            "with torch.distributed.fsdp.fully_shard."
        )
    partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if partitioned or type(model).__name__ == "DeepSpeedEngine":
        raise UnsupportedModelError(
            "Selection has not been run with DeepSpeed; use DistributedDataParallel, or shard the model with "
            "torch.distributed.fsdp.fully_shard."
        )


def most_over_ranks(count: int, device: torch.device) -> int:
    """Return the largest of the ranks' counts."""
    return int(torch.cat(gather_rows(torch.tensor([count], device=device))).max())
