"""How GPUs share weights, gradients and optimizer states, and what each GPU then holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from colm.lab.plan.memory import optimizer_bytes
from colm.lab.plan.shapes import Shapes

ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
"""DistributedDataParallel, PyTorch's fully_shard, and DeepSpeed's three stages."""

ALIGNMENT = 2
"""Elements to whose multiple DeepSpeed pads each rank's part of the trained weights (nccl_start_alignment_factor)."""

SUB_GROUP = 10**9
"""Maximum elements of a ZeRO-3 optimizer step's gradients at a time: DeepSpeed's `sub_group_size`."""


LIVE = 1_000_000_000
"""DeepSpeed's default of `stage3_max_live_parameters`."""


class Sharding(NamedTuple):
    """An engine on several GPUs. Defaults are those of the engine.

    Sizes are in elements, not bytes; None for those that transformers sets for "auto", by the model's hidden size.
    """

    engine: str  # of ENGINES
    gpus: int
    reshard: bool = True  # fsdp2: reshard_after_forward
    deferred: bool = True  # fsdp2: gradients are reduced in the last micro-batch only, as the Trainer does
    bucket: int | None = 500_000_000  # zero: reduce_bucket_size
    overlap: bool = False  # zero1, zero2: overlap_comm, with two buckets
    live: int | None = LIVE  # zero3: stage3_max_live_parameters
    persistent: int | None = 100_000  # zero3: stage3_param_persistence_threshold

    @property
    def splits_weights(self) -> bool:
        """Whether a forward gathers the weights."""
        return self.engine in ("fsdp2", "zero3")

    @property
    def splits_moments(self) -> bool:
        """Whether a GPU has only its part of the optimizer states, without which the noise scale is not measured."""
        return self.engine != "ddp"

    @property
    def splits_gradients(self) -> bool:
        """Whether a GPU keeps only its part of the gradients once they are reduced."""
        return self.engine in ("fsdp2", "zero2", "zero3")


class Held(NamedTuple):
    """What a GPU holds all the time. Sizes in bytes."""

    weights: int  # its part, with all buffers
    optimizer: int  # states, and a float32 copy of the weights where there is one
    within_step: int  # temporary, in the optimizer's step
    gradients: int  # reduced ones, as the optimizer reads them
    gathered: int = 0  # other ranks' weights
    unreduced: int = 0  # communication buffers in training
    lasting: int = 0  # of these: what stays during a selection


def hold(shapes: Shapes, optimizer: str, sharding: Sharding | None = None) -> Held:
    """Return what a GPU holds of a model.

    Args:
        shapes: the model; its parameters have the dtype in which they are computed with.
        optimizer: value of training.optim.
        sharding: None for one GPU.

    Raises:
        ConfigError: see `optimizer_bytes`.
    """
    if sharding is None:
        return Held(shapes.parameters, *optimizer_bytes(optimizer, shapes.trained), shapes.gradients)
    if sharding.engine == "ddp":
        return _hold_ddp(shapes, optimizer)
    if sharding.engine == "fsdp2":
        return _hold_fsdp2(shapes, optimizer, sharding)
    return _hold_zero(shapes, optimizer, sharding)


def _hold_ddp(shapes: Shapes, optimizer: str) -> Held:
    """Return what DistributedDataParallel holds: everything, and buckets as large as the gradients.

    Source: gradient_as_bucket_view of torch.nn.parallel.DistributedDataParallel, False by default: "the total memory
    usage [is reduced by] the total gradients size" where it is True.
    """
    alone = hold(shapes, optimizer)
    return alone._replace(unreduced=alone.gradients, lasting=alone.gradients)


def _hold_fsdp2(shapes: Shapes, optimizer: str, sharding: Sharding) -> Held:
    """Return what fully_shard holds: of each parameter the first of `gpus` chunks of its rows, the largest.

    Weights, gradients and optimizer states have the dtype of the loaded weights; with mixed precision, accelerate
    makes trained weights float32 first.

    Source: torch/distributed/fsdp/_fully_shard/_fsdp_param.py, _init_sharded_param (Shard(0), padded to the first
    chunk); accelerate/utils/fsdp_utils.py, fsdp2_prepare_model.
    """
    mixed = shapes.cast is not None
    chunks = [
        torch.empty(
            shard_shape(loaded, sharding.gpus),
            dtype=torch.float32 if mixed and loaded.requires_grad else loaded.dtype,
            device="meta",
            requires_grad=loaded.requires_grad,
        )
        for loaded in shapes.loaded
    ]
    trained = [chunk for chunk in chunks if chunk.requires_grad]
    return Held(_bytes(chunks) + shapes.buffers, *optimizer_bytes(optimizer, trained), _bytes(trained))


def _hold_zero(shapes: Shapes, optimizer: str, sharding: Sharding) -> Held:
    """Return what a stage of ZeRO holds. P and T: all and the trained parameters, c: bytes of a weight.

    | stage | weights | float32 copy | gradients | buffers | other ranks' weights |
    | --- | --- | --- | --- | --- | --- |
    | 1 | c P | 4 T / gpus | c T | c bucket if it overlaps | |
    | 2 | c P | 4 T / gpus | c T / gpus | c bucket | |
    | 3 | c P / gpus | 4 T / gpus | c T / gpus | c bucket | c min(P, live), and small ones always |

    The copy is made of float32 weights too. The optimizer's states are float32, for T / gpus weights; its step converts
    their gradients to float32.

    Source: Rajbhandari et al., 2020, arXiv:1910.02054, and DeepSpeed's code: runtime/zero/stage_1_and_2.py (flat
    groups, single_partition_of_fp32_groups, ipg_buckets), stage3.py (grad_partitions_flat_buffer,
    fp32_partitioned_groups_flat), partitioned_param_coordinator.py (max_live_parameters).
    """
    weights = [weight.data for weight in shapes.model.parameters()]
    size, gpus = weights[0].element_size(), sharding.gpus
    count = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in shapes.trained)
    hidden = int(shapes.model.config.get_text_config().hidden_size)
    bucket = size * (hidden**2 if sharding.bucket is None else sharding.bucket) * (2 if sharding.overlap else 1)
    if sharding.engine != "zero3":
        part = _aligned(trained, gpus)
        kept, within = optimizer_bytes(optimizer, [torch.empty(part, device="meta")])
        padded = max(0, part * gpus - trained) * size
        held = Held(_bytes(weights) + padded + shapes.buffers, kept + 4 * part, within + 4 * part, trained * size)
        if sharding.engine == "zero2":
            return held._replace(gradients=part * size, unreduced=bucket)
        return held._replace(unreduced=bucket if sharding.overlap else 0)
    parts = [math.ceil(weight.numel() / gpus) for weight in weights]
    part = sum(math.ceil(weight.numel() / gpus) for weight in shapes.trained)
    persistent = 10 * hidden if sharding.persistent is None else sharding.persistent
    live = LIVE if sharding.live is None else sharding.live
    small = sum(weight.numel() for weight in weights if weight.numel() <= persistent)
    kept, within = optimizer_bytes(optimizer, [torch.empty(part, device="meta")])
    return Held(
        weights=sum(parts) * size + shapes.buffers,
        optimizer=kept + 4 * part,
        within_step=within + 4 * min(part, SUB_GROUP),
        gradients=part * size,
        gathered=(small + min(count - small, live)) * size,
        unreduced=bucket,
        lasting=bucket,
    )


def shard_shape(weight: Tensor, gpus: int) -> tuple[int, ...]:
    """Return the shape of the largest chunk of a parameter, sharded over its first dimension.

    >>> shard_shape(torch.empty(10, 3), 4)
    (3, 3)
    """
    rows, *others = weight.shape or (1,)
    return (math.ceil(rows / gpus), *others)


def padded_bytes(weights: Iterable[Tensor], gpus: int) -> int:
    """Return the bytes of parameters as fully_shard sends them, each padded to as many rows on every GPU."""
    return sum(gpus * math.prod(shard_shape(weight, gpus)) * weight.element_size() for weight in weights)


def _aligned(count: int, gpus: int) -> int:
    """Return the elements of a rank's part of a flat group, padded so that all parts start aligned."""
    return math.ceil(count / (ALIGNMENT * gpus)) * ALIGNMENT


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
