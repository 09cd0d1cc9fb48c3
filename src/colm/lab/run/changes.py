"""Which settings of a run may change when it resumes, and how two runs' settings differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from colm.lab.run.arguments import fill_lora, fill_training

# ---- Settings that may change on --resume, since what is trained stays the same; all others may not ----

LENGTH = {"max_steps", "num_train_epochs"}
"""A run may be made longer. Its learning rate then follows the schedule of the new length, so the result differs from a
run that had this length from the start."""

POOL = {"per_device_train_batch_size", "gradient_accumulation_steps"}
"""Needed to change the number of processes. The pool must keep its number of rows, which is checked elsewhere."""

PLACE = {
    *("use_cpu", "local_rank", "torch_empty_cache_steps", "skip_memory_metrics"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
}
"""Where the same steps are computed, and in how much memory."""

SHOWN = {
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node"),
    *("include_num_input_tokens_seen", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
    *("per_device_eval_batch_size", "save_total_limit", "save_only_model", "save_on_each_node"),
    *("enable_jit_checkpoint", "push_to_hub"),
}
LOADER = {
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
}
PREFIXES = ("logging_", "hub_", "trackio_", "ddp_", "eval_accumulation_", "eval_do_", "eval_use_")

CADENCE = {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_strategy", "save_steps"}
"""When to evaluate and save. An evaluation changes the dropout draws, as another device does, but has no other effect
unless the best model is loaded or the learning rate follows the loss."""

SELECTION = {
    "pass_tokens",
    "train_head",
    "head_chunk_tokens",
    "padding_free",
    "reuse_forward",
    "reuse_offload",
    "noise_every",
    "log_sources",
}
"""How much of the pool is computed at a time, with which padding, what is kept in memory, measured and logged."""


def refused_changes(
    held: Mapping[str, Any], given: Mapping[str, Any], *, same_length: bool = False
) -> list[tuple[str, Any, Any]]:
    """Return what a run cannot resume with: each dotted key whose value may not change, with both values.

    Args:
        held: resolved settings of the run, as `RunSettings.values`.
        given: those to resume with.
        same_length: the run may be finished already, so its length, and the rows that a process adds to a pool, must
            be the same, too.
    """
    lora = None not in (held["lora"], given["lora"])
    before, now = _filled(held, lora=lora), _filled(given, lora=lora)
    fixed: set[str] = set()
    if same_length:
        fixed = LENGTH | (POOL if _pool_rows(before) != _pool_rows(now) else set())
    return [
        change
        for change in find_differences(before, now)
        if not _may_change(change[0], held["training"], given["training"])
        or change[0].removeprefix("training.") in fixed
    ]


def find_differences(held: Any, given: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each dotted key whose values differ, with both values; None for a missing key."""
    if isinstance(held, list) and isinstance(given, list) and len(held) == len(given):
        held, given = dict(enumerate(held)), dict(enumerate(given))
    if isinstance(held, Mapping) and isinstance(given, Mapping):
        for name in {**held, **given}:
            yield from find_differences(held.get(name), given.get(name), f"{key}.{name}" if key else str(name))
    elif held != given:
        yield key, held, given


def _pool_rows(filled: Mapping[str, Any]) -> int:
    rows: int = filled["training"]["per_device_train_batch_size"] * filled["training"]["gradient_accumulation_steps"]
    return rows


def _may_change(key: str, held: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    section, _, rest = key.partition(".")
    if section == "training":
        name = rest.partition(".")[0]
        if name in CADENCE:
            return not any(
                training.get("load_best_model_at_end") or training.get("lr_scheduler_type") == "reduce_lr_on_plateau"
                for training in (held, given)
            )
        return name in LENGTH | POOL | PLACE | SHOWN | LOADER or name.startswith(PREFIXES)
    return key in ("output_dir", "attention", "data.num_proc") or (section == "selection" and rest in SELECTION)


def _filled(values: Mapping[str, Any], *, lora: bool) -> dict[str, Any]:
    """Fill in the defaults of training arguments and LoRA, so that spelling out a default is not a difference."""
    filled = {**values, "training": fill_training(values["training"])}
    return {**filled, "lora": fill_lora(values["lora"])} if lora else filled
