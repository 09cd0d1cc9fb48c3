"""The fields of `training` and `lora`: types, ranges and defaults, stricter than those of transformers and PEFT.

Only the functions that need every field import these two, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal

from colm.errors import ConfigError
from colm.hints import Also, Count, CountOrZero, Form, Positive, Range, Seed, arms_of, defaults_of, hints_of, options_of
from colm.lab.run.declared import lora_fields, training_fields
from colm.typed import check_keys, read_value

TRAINING_PLACE = "in training (the fields of transformers.TrainingArguments)"

Least0 = Annotated[float, Range(0)]
Below1 = Annotated[float, Range(0, 1)]

TRAINING_DEFAULTS: dict[str, Any] = {"report_to": "none", "logging_steps": 10, "remove_unused_columns": True}

LORA_DEFAULTS: dict[str, Any] = {"target_modules": "all-linear"}

ENGINE_SETTINGS = ("fsdp", "fsdp_config", "deepspeed")
"""Training arguments that name an engine, which shares the model over processes."""

OWNED = ("output_dir", "seed")
"""Training arguments with their own place at the top of the file."""


@dataclass
class CheckpointOptions:
    """Options of activation checkpointing that a file can set, see `torch.utils.checkpoint.checkpoint`."""

    use_reentrant: bool = False
    preserve_rng_state: bool = True
    debug: bool = False
    early_stop: bool = True
    determinism_check: Literal["default", "none"] = "default"


JsonText = Annotated[str, Form(r"^\{", "a mapping written as JSON")]

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
    "lr_scheduler_kwargs": Annotated[dict[str, Any] | None, Also(JsonText)],
    **dict.fromkeys(
        ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
        Annotated[CheckpointOptions | None, Also(JsonText)],
    ),
    "fsdp": bool | str | None,  # declared as text, for the command lines of scripts
    "parallelism_config": type(None),  # an object, which a file cannot express
}
"""Type hints stricter than those of `transformers.TrainingArguments`."""

LORA_RANGES: dict[str, Any] = {
    "r": Count,
    "lora_alpha": Positive,
    "lora_dropout": Below1,
    "rank_pattern": dict[str, Count],
    "alpha_pattern": dict[str, Positive],
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


MOVED = {
    "warmup_ratio": "training.warmup_steps, where a number below 1 is a fraction of all steps",
    "group_by_length": "training.train_sampling_strategy: group_by_length",
    "evaluation_strategy": "training.eval_strategy",
    "per_gpu_train_batch_size": "training.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "training.per_device_eval_batch_size",
    "no_cuda": "training.use_cpu",
    "include_inputs_for_metrics": "training.include_for_metrics",
    "overwrite_output_dir": "colm train --overwrite",
    "logging_dir": "output_dir, in whose logs/ TensorBoard finds its files",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "dataset_num_proc": "data.num_proc",
    "dataset_text_field": "data.columns: {text: ...}",
    "packing": "selection.padding_free",
    "padding_free": "selection.padding_free",
    "completion_only_loss": "data.loss_on_prompt, the reverse",
    "assistant_only_loss": "data.loss_on_prompt, the reverse",
    "chat_template_path": "data.chat_template",
}
"""Training arguments of older transformers and of TRL, and what takes their place."""

LORA_PLACE = "in lora (the fields of peft.LoraConfig)"


def check_early(training: Any, lora: Any) -> None:
    """Report most mistakes in the two sections at once: importing transformers and PEFT, which know all, takes seconds.

    Raises:
        ConfigError: an unknown field, one with its place elsewhere, or a value of the wrong type or out of range.
    """
    if isinstance(training, Mapping):
        for key in OWNED:
            if key in training:
                raise ConfigError(f"training.{key} is set; move {key} to the top of the file, where colm reads it too.")
        fields = training_fields()
        for key in training:
            if fields and key in MOVED and key not in fields:
                raise ConfigError(f"training.{key} is not a field of transformers.TrainingArguments; use {MOVED[key]}.")
        values = {key: restore_no(str(key), value) for key, value in training.items()}
        _check_section("training", fields, {**TRAINING_RANGES, **FIXED}, values, TRAINING_PLACE)
    if isinstance(lora, Mapping):
        _check_section("lora", lora_fields(), LORA_RANGES, lora, LORA_PLACE)


def _check_section(
    section: str, declared: Mapping[str, Any], ranges: Mapping[str, Any], values: Mapping[Any, Any], place: str
) -> None:
    if declared:
        check_keys(values, declared, place)
    hints = {**declared, **ranges}
    for key, value in values.items():
        is_json = isinstance(value, str) and value.startswith("{")
        if key in hints and value is not None and not is_json:
            read_value(f"{section}.{key}", hints[key], value)


def restore_no(name: str, value: Any) -> Any:
    """Return the strategy "no" where YAML 1.1 has read it as false, and any other value as it is."""
    return "no" if name.endswith("_strategy") and value is False else value


@cache
def training_hints() -> dict[str, Any]:
    """Return the type of each field of TrainingArguments, including the choices that transformers declares."""
    from transformers import TrainingArguments

    hints = dict(hints_of(TrainingArguments))
    for field in fields(TrainingArguments):
        if field.name in hints and field.metadata.get("choices"):
            options: Any = Literal[tuple(field.metadata["choices"])]
            hints[field.name] = options | None if field.default is None else options
    hints |= {name: hint for name, hint in {**TRAINING_RANGES, **FIXED}.items() if name in hints}
    for name, hint in hints.items():
        if name.endswith("_strategy") and any("no" in options_of(arm.kind) for arm in arms_of(hint)):
            hints[name] = Annotated[hint, Also(Literal[False])]  # see `restore_no`
    return hints


@cache
def _defaults(config: type[Any]) -> dict[str, Any]:
    return dict.fromkeys(hints_of(config)) | defaults_of(config)


def fill_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return every field of `transformers.TrainingArguments`, as given or by default."""
    from transformers import TrainingArguments

    return {**_defaults(TrainingArguments), **training}


def fill_lora(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Return every field of `peft.LoraConfig`, as given or by default."""
    from peft import LoraConfig

    return {**_defaults(LoraConfig), **lora}


def lora_hints() -> dict[str, Any]:
    """Return the type of each field of LoraConfig."""
    from peft import LoraConfig

    return {**hints_of(LoraConfig), **LORA_RANGES}
