"""Models whose weights are split over ranks: FSDP2 and DeepSpeed's ZeRO-3.

Every forward of a split part gathers its weights from all ranks, so all ranks must run the same number of forwards.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colm.errors import UnsupportedModelError
from colm.step.ranks import most_over_ranks


class Split(NamedTuple):
    """How a model's weights are split, as far as selection depends on it."""

    sharded: bool
    waiting: bool  # split when the model was loaded, and no engine gathers them in a forward yet


def sharding_of(model: nn.Module) -> Split:
    """Return how a model is sharded now; `fully_shard` and DeepSpeed change a model in place."""
    zero = is_split_by_zero(model)
    engine = any(hasattr(module, "ds_id") for module in model.modules())  # it numbers what it gathers weights for
    return Split(zero or _has_fsdp2(model), zero and not engine)


def is_split_by_zero(model: nn.Module) -> bool:
    """Return whether DeepSpeed's ZeRO-3 has split a weight; it numbers those."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def is_sharded(model: nn.Module) -> bool:
    """Return whether `fully_shard` (FSDP2) wraps the model or a part of it, or ZeRO-3 has split a weight."""
    return sharding_of(model).sharded


def missing_forwards(model: nn.Module, count: int, device: torch.device) -> int:
    """Return how many forwards this rank must run beside its `count`, for the ranks that wait for its shard of weights.

    All ranks must call it, before the forwards.
    """
    return most_over_ranks(count, device) - count if is_sharded(model) else 0


def whole_shape(weight: Tensor) -> Sequence[int]:
    """Return the shape of a weight that may be split: ZeRO-3 leaves a weight without elements."""
    shape: Sequence[int] = getattr(weight, "ds_shape", weight.shape)
    return shape


def reads_output(module: nn.Module) -> bool:
    """Return whether a forward hook may read what the module returns; those of engines do not."""
    return any(not _is_engines(hook) for hook in module._forward_hooks.values())


def is_hooked(module: nn.Module) -> bool:
    """Return whether a hook may read or change what the module is given or returns; those of engines do not."""
    return reads_output(module) or any(not _is_engines(hook) for hook in module._forward_pre_hooks.values())


def _is_engines(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(("torch.distributed.", "deepspeed."))


def reshard(model: nn.Module) -> None:
    """Split again the weights that a forward without a backward has gathered: FSDP2 keeps those of its root.

    Saving and loading expect every weight to be split.
    """
    fsdp = _imported_fsdp()
    for module in model.modules():
        if fsdp is not None and isinstance(module, fsdp.FSDPModule):
            module.reshard()


def check_sharding(model: nn.Module) -> None:
    """Reject wrappers with which selection has not been tested.

    Raises:
        UnsupportedModelError: the model uses FSDP1.
    """
    fsdp = _imported_fsdp()
    if fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules()):
        raise UnsupportedModelError(
            "FullyShardedDataParallel (FSDP1) has not been tested with selection. Use FSDP2: fsdp_config: {version: 2} "
            "in the training arguments, or torch.distributed.fsdp.fully_shard in your own loop."
        )


def _has_fsdp2(model: nn.Module) -> bool:
    """Return whether `fully_shard` wraps the model or a part of it, or has split a weight with one that it wraps."""
    fsdp = _imported_fsdp()
    if fsdp is None:
        return False
    wrapped = any(isinstance(module, fsdp.FSDPModule) for module in model.modules())
    return wrapped or any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def _imported_fsdp() -> Any:
    """Return ``torch.distributed.fsdp``, or None if nothing has imported it: then nothing is wrapped by it."""
    return sys.modules.get("torch.distributed.fsdp")
