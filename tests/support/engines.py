"""FSDP2 and DeepSpeed's ZeRO on CPU processes, without a patch of any package.

accelerate does not shard on CPUs, and does not look for DeepSpeed there. Both take the state of processes that they
find, so these functions make one that says "one device for each process". Training arguments take it as it is with
`STATE`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

DEEPSPEED = Path(sys.prefix) / "engines"
"""Where make test-slow installs DeepSpeed, which transformers and accelerate import wherever they find it."""

STATE: dict[str, Any] = {"accelerator_config": {"use_configured_state": True}}


def arguments_of(engine: str, **changes: Any) -> dict[str, Any]:
    """Return the training arguments of ``ddp``, ``fsdp2``, ``hsdp`` (of four processes), or ``zero1`` to ``zero3``."""
    if engine in ("fsdp2", "hsdp"):
        both: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2, **changes}}
        if engine == "hsdp":
            from accelerate import ParallelismConfig

            both["parallelism_config"] = ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
        return STATE | both
    if engine.startswith("zero"):
        return STATE | {"use_cpu": False, "deepspeed": zero_settings(int(engine[-1]), **changes)}
    return {}


def zero_settings(stage: int, **changes: Any) -> dict[str, Any]:
    """Return a DeepSpeed configuration that leaves everything to the training arguments."""
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    zero = {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0}
    return {
        **dict.fromkeys((*automatic, "gradient_clipping"), "auto"),
        "zero_optimization": {**zero, "stage3_gather_16bit_weights_on_model_save": True, **changes},
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,  # torch's AdamW, since DeepSpeed's own would be compiled
        "zero_force_ds_cpu_optimizer": False,
    }


def prepare_engine(engine: str) -> None:
    """Start the processes' group and tell accelerate of devices; call it before any training arguments are made."""
    from accelerate import PartialState

    if engine.startswith("zero"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        launched = "ACCELERATE_USE_DEEPSPEED" in os.environ
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
        PartialState(backend="gloo")
        if not launched:
            del os.environ["ACCELERATE_USE_DEEPSPEED"]  # else every Trainer would be DeepSpeed's, without settings
        return
    PartialState(cpu=True)
    forget_settings(engine)


def forget_settings(engine: str) -> None:
    """Make accelerate read the next training arguments; it holds those of the first Trainer."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._shared_state.clear()
    if engine in ("fsdp2", "hsdp"):
        PartialState().distributed_type = DistributedType.MULTI_XPU  # on MULTI_CPU, FSDP is dropped in silence
