"""Read how a run shares its model over GPUs, from the command line and from the training arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colm.errors import ConfigError, one_line
from colm.lab.plan.sharding import Sharding

OFFLOADS = ("offload_optimizer", "offload_param")

ZERO_SIZES = {
    "bucket": ("reduce_bucket_size",),
    "live": ("stage3_max_live_parameters", "max_live_parameters"),
    "persistent": ("stage3_param_persistence_threshold", "param_persistence_threshold"),
}
"""Fields of `Sharding` and the names of DeepSpeed's settings."""


def read_sharding(training: Mapping[str, Any], gpus: int | None = None, shard: str | None = None) -> Sharding | None:
    """Return the engine of a run, or None for one GPU.

    Args:
        training: the training arguments.
        gpus: value of --gpus.
        shard: value of --shard. Settings of the same engine in the training arguments apply.

    Raises:
        ConfigError: a number of GPUs that does not go with the engine, two engines, or settings that change memory in
            ways that are not planned.
    """
    if gpus is not None and gpus < 1:
        raise ConfigError(f"--gpus={gpus} must be at least 1, the number of GPUs that train together.")
    named = _read_named(training)
    source = "--shard" if shard is not None else f"training.{'fsdp' if training.get('fsdp') else 'deepspeed'}"
    if named is not None and shard is not None and shard != named["engine"]:
        raise ConfigError(
            f"--shard={shard}, but the training arguments set {named['engine']}; leave out --shard, or plan without "
            "them: colm plan ... training.fsdp=null training.fsdp_config=null training.deepspeed=null"
        )
    engine = shard or (named["engine"] if named is not None else None)
    if engine is not None and gpus is None:
        raise ConfigError(f"{source} shares the model over several GPUs; say how many, such as --gpus 8.")
    if engine is not None and gpus == 1:
        raise ConfigError(f"--gpus=1 leaves nothing to share; use at least 2 GPUs, or plan without {source}.")
    if gpus is None or gpus == 1:
        return None
    return Sharding(**{"engine": engine or "ddp", **(named or {}), "gpus": gpus, "deferred": _defers(training)})


def _read_named(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields of `Sharding` that the training arguments set; None without an engine."""
    if training.get("fsdp") and training.get("deepspeed"):
        raise ConfigError("training.fsdp and training.deepspeed are both set; use one of them.")
    if training.get("fsdp"):
        return _read_fsdp(training["fsdp"], training.get("fsdp_config"))
    if training.get("deepspeed"):
        return _read_deepspeed(training["deepspeed"])
    return None


def _read_fsdp(value: Any, config: Any) -> dict[str, Any]:
    words = set(value.split() if isinstance(value, str) else value if isinstance(value, list) else ())
    if words - {"full_shard", "auto_wrap", "true"}:
        raise ConfigError(
            f"training.fsdp={value!r} cannot be planned; set it to true with fsdp_config.version=2, or plan without "
            "it: colm plan ... --shard fsdp2 training.fsdp=null"
        )
    options = {key.removeprefix("fsdp_"): option for key, option in _read_file("fsdp_config", config).items()}
    version = options.get("version", 2)
    if str(version) != "2":
        raise ConfigError(f"training.fsdp_config.version={version!r} cannot be planned; set it to 2 (fully_shard).")
    for name in ("cpu_offload", "offload_params", "activation_checkpointing", "min_num_params"):
        if options.get(name):
            instead = "training.gradient_checkpointing=true" if "checkpointing" in name else "the GPUs' memory alone"
            raise ConfigError(
                f"training.fsdp_config.{name}={options[name]!r} cannot be planned; leave it out and plan {instead}."
            )
    return {"engine": "fsdp2", "reshard": options.get("reshard_after_forward", True) not in (False, "SHARD_GRAD_OP")}


def _read_deepspeed(value: Any) -> dict[str, Any]:
    zero = _read_file("deepspeed", value).get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {}
    stage = zero.get("stage", 0)
    if stage not in (1, 2, 3):
        raise ConfigError(
            f"training.deepspeed sets zero_optimization.stage={stage!r}, which cannot be planned; use 1, 2 or 3, or "
            "plan without it: colm plan ... --shard ddp training.deepspeed=null"
        )
    for name in OFFLOADS:
        held = zero.get(name)
        if isinstance(held, Mapping) and held.get("device", "none") != "none":
            raise ConfigError(
                f"training.deepspeed moves memory to {held['device']!r} ({name}), which cannot be planned; leave it "
                "out and plan the GPUs' memory alone."
            )
    found: dict[str, Any] = {"engine": f"zero{stage}", "overlap": bool(zero.get("overlap_comm", False)) and stage < 3}
    for field, names in ZERO_SIZES.items():
        given = next((zero[name] for name in names if name in zero), None)
        if given == "auto":
            found[field] = None  # by the model's hidden size
        elif isinstance(given, (int, float)) and not isinstance(given, bool) and given >= 0:
            found[field] = int(given)
        elif given is not None:
            raise ConfigError(
                f"training.deepspeed sets zero_optimization.{names[0]}={given!r}; use a number of elements of at least "
                "0, or 'auto'."
            )
    return found


def _read_file(name: str, value: Any) -> dict[str, Any]:
    """Return a mapping that is given as such or as the name of a JSON file."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    try:
        held = json.loads(Path(str(value)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"training.{name}={value!r} cannot be read as JSON ({one_line(error)}).") from error
    if not isinstance(held, dict):
        raise ConfigError(f"training.{name}={value!r} does not contain a JSON object.")
    return held


def _defers(training: Mapping[str, Any]) -> bool:
    """Return whether the Trainer reduces gradients in the last micro-batch of a step only, as by default."""
    config = _read_file("accelerator_config", training.get("accelerator_config"))
    options = config.get("gradient_accumulation_kwargs")
    return not (isinstance(options, Mapping) and options.get("sync_each_batch"))
