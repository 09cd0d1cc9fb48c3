"""What to plan: the request that a run's settings make."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from colm.config import SelectionConfig
from colm.config_checks import HeadName
from colm.errors import ConfigError
from colm.lab.plan.engines import read_sharding
from colm.lab.plan.outlook import Request
from colm.lab.plan.shapes import ModelSpec
from colm.lab.plan.steps import Rows
from colm.lab.run.checkpointing import read_checkpointing
from colm.lab.run.named import adapter_settings, check_adapter, read_adapter
from colm.lab.run.settings import RunSettings

LONGEST = 2**20
"""Maximum tokens per row to plan for: ids, masks and labels of a few rows are allocated."""

UNPLANNED = ("torch_compile", "auto_find_batch_size", "use_liger_kernel")
"""Trainer settings that change memory in ways that the plan does not model."""


def make_request(
    settings: RunSettings,
    sequence_length: int | None = None,
    labelled: float = 1.0,
    *,
    gpus: int | None = None,
    shard: str | None = None,
) -> Request:
    """Return the planning request for a run.

    Args:
        settings: of the run; its batch sizes are those of one GPU.
        sequence_length: tokens of the longest rows (default: data.max_length).
        labelled: fraction of their tokens with a label.
        gpus: that train together, see `read_sharding`.
        shard: how they share the model.

    Raises:
        ConfigError: a length, fraction or size out of range, or settings that the plan does not model.
    """
    if sequence_length is not None and sequence_length < 2:
        raise ConfigError(
            f"--sequence-length={sequence_length} must be at least 2 tokens; leave it out for the data's."
        )
    tokens = sequence_length or settings.data.max_length
    if tokens > LONGEST:
        source = "data.max_length" if sequence_length is None else "--sequence-length"
        raise ConfigError(
            f"{source}={tokens:,} exceeds the limit of {LONGEST:,} tokens; plan shorter rows: "
            f"--sequence-length {LONGEST}"
        )
    if not 0 < labelled <= 1:
        raise ConfigError(f"--labeled={labelled} must be above 0 and at most 1, the fraction of tokens with a label.")
    training = settings.arguments
    for name in UNPLANNED:
        if training.get(name):
            raise ConfigError(
                f"training.{name}={training[name]!r} changes memory in ways that colm plan does not model; plan "
                f"without it: colm plan ... training.{name}=null"
            )
    micro_batch, micro_batches = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    sharding = read_sharding(training, gpus, shard)
    count = 1 if sharding is None else sharding.gpus
    settings.selection.check_pool(micro_batch * micro_batches * count, micro_batches * count)
    named = check_adapter(settings)
    lora = settings.lora if named.adapter is None else adapter_settings(read_adapter(named.adapter))
    autocast = torch.bfloat16 if training["bf16"] else torch.float16 if training["fp16"] else None
    casts = autocast is not None and sharding is not None and sharding.engine != "ddp"
    spec = ModelSpec(
        named.base, settings.dtype, lora, autocast, read_checkpointing(training), attention=settings.attention
    )
    if casts:
        inside = sharding is not None and sharding.engine == "fsdp2"  # DeepSpeed has no autocast
        spec = spec._replace(cast=autocast, autocast=autocast if inside else None)
    return Request(
        model=spec,
        selection=_planned(settings.selection, count),
        rows=Rows(tokens, labelled),
        micro_batch=micro_batch,
        micro_batches=micro_batches,
        optimizer=str(training["optim"]),
        sharding=sharding,
    )


def _planned(selection: SelectionConfig, gpus: int) -> SelectionConfig:
    """Return one GPU's selection as it is rehearsed: without reuse, a fused head in chunks, which hold as little."""
    head: HeadName = "chunked" if selection.train_head == "fused" else selection.train_head
    count = selection.keep_count if selection.keep_count is None else math.ceil(selection.keep_count / gpus)
    return replace(selection, reuse_forward=False, reuse_offload=False, train_head=head, keep_count=count)
