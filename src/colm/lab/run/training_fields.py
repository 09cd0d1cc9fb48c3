"""What colm knows of the sections `training` and `lora` without importing transformers and PEFT."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from colm.errors import ConfigError
from colm.typed import Count, CountOrZero, Range, Seed, check_keys, read_value

TRAINING_PLACE = "in training (the fields of transformers.TrainingArguments)"

Least0 = Annotated[float, Range(0)]
Below1 = Annotated[float, Range(0, 1)]

OWNED = ("output_dir", "seed")
"""Training arguments with their own place at the top of the file."""

TRAINING_RANGES: dict[str, Any] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), Count
    ),
    **dict.fromkeys(("dataloader_prefetch_factor", "eval_accumulation_steps", "save_total_limit"), Count | None),
    **dict.fromkeys(("torch_empty_cache_steps", "ddp_bucket_cap_mb"), Count | None),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "warmup_steps", "logging_steps"), Least0),
    **dict.fromkeys(("save_steps", "eval_delay"), Least0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), Below1),
    **dict.fromkeys(("eval_steps", "neftune_noise_alpha"), Least0 | None),
    "max_steps": Literal[-1] | Count,
    "num_train_epochs": Annotated[float, Range(0, 2**31, open="both")],
    "max_grad_norm": Annotated[float, Range(0, open="")] | None,
    "dataloader_num_workers": Annotated[int, Range(0, 1024, open="")],
    "data_seed": Seed | None,
    "ddp_timeout": Annotated[int, Range(1, 10**8, open="")],
    "include_num_input_tokens_seen": Literal["all", "non_padding", "no"] | bool,
    "include_for_metrics": list[Literal["inputs", "loss"]],
    "lr_scheduler_kwargs": dict[str, Any] | None,
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), dict[str, Any] | None),
    "parallelism_config": type(None),  # an object, which a file cannot express
}
"""Type hints stricter than those of `transformers.TrainingArguments`."""

LORA_RANGES: dict[str, Any] = {
    "r": Count,
    "lora_alpha": Annotated[float, Range(0, open="both")],
    "lora_dropout": Below1,
    "rank_pattern": dict[str, Count],
    "alpha_pattern": dict[str, Annotated[float, Range(0, open="both")]],
    "qalora_group_size": Count,
    "trainable_token_indices": list[CountOrZero] | dict[str, list[CountOrZero]] | None,
    "layers_to_transform": list[CountOrZero] | CountOrZero | None,
    "task_type": Literal["CAUSAL_LM"] | None,
    "peft_type": Literal["LORA"] | None,
    "inference_mode": Literal[False],
}
"""Type hints stricter than those of `peft.LoraConfig`."""

FIXED: dict[str, Any] = {
    "prediction_loss_only": Literal[False],
    "batch_eval_metrics": Literal[False],
    "eval_do_concat_batches": Literal[True],
    "label_names": list[Literal["labels"]] | None,
}
"""Required by colm's evaluation, which computes the loss of each source."""

NEEDS_INIT = {"eva_config": "eva", "corda_config": "corda", "lora_ga_config": "lora_ga", "loftq_config": "loftq"}
"""LoRA settings that apply only with certain initial weights."""


def check_early(training: Any, lora: Any) -> None:
    """Report most mistakes in the two sections at once: importing transformers and PEFT, which know all, takes seconds.

    Raises:
        ConfigError: an unknown field of `training`, one with its place elsewhere, or a value out of colm's ranges.
    """
    if isinstance(training, Mapping):
        for key in OWNED:
            if key in training:
                raise ConfigError(f"training.{key} is set; move {key} to the top of the file, where colm reads it too.")
        known = _declared_fields()
        if known:
            check_keys(training, known, TRAINING_PLACE)
        _check_ranges("training", {**TRAINING_RANGES, **FIXED}, training)
    if isinstance(lora, Mapping):
        _check_ranges("lora", LORA_RANGES, lora)


def _check_ranges(section: str, hints: Mapping[str, Any], values: Mapping[Any, Any]) -> None:
    for key, value in values.items():
        is_json = isinstance(value, str) and value.startswith("{")
        if key in hints and value is not None and not is_json:
            read_value(f"{section}.{key}", hints[key], value)


def _declared_fields() -> list[str]:
    """Return the fields that the source of TrainingArguments declares; nothing if they may also come from elsewhere."""
    package = find_spec("transformers")
    if package is None or not package.submodule_search_locations:
        return []
    source = Path(package.submodule_search_locations[0], "training_args.py")
    if not source.is_file():
        return []
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments" and not node.bases:
            lines = [line.target for line in node.body if isinstance(line, ast.AnnAssign)]
            return [target.id for target in lines if isinstance(target, ast.Name)]
    return []
