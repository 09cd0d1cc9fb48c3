"""Checks of a run's settings that need neither data nor model."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from colm.config_checks import FEATURE_FILES
from colm.errors import ConfigError
from colm.features.fused import require_fused
from colm.lab.run.named import check_adapter
from colm.lab.run.settings import RunSettings
from colm.lab.run.training import check_training
from colm.step.ranks import launched_rank_and_world
from colm.trainers.checks import check_arguments, check_dealt_stream
from colm.typed import show

logger = logging.getLogger(__name__)


def check_run(settings: RunSettings, *, whole: bool = True) -> None:
    """Check whether the settings can be trained with on this machine, before reading data or model.

    Args:
        settings: the run's settings.
        whole: this process is one of those that train; otherwise a launcher may start any number.

    Raises:
        ConfigError: missing packages, refused arguments, an adapter with other settings, or a pool that is too small.
    """
    check_adapter(settings)
    args = check_training(settings.training, output_dir=str(settings.output_dir), seed=settings.seed)
    check_arguments(args, settings.selection)
    if settings.selection.train_head == "fused":
        require_fused()
    _check_evaluation(settings)
    _check_stream(settings, args)
    _check_order(settings)
    if args.max_steps > 0 and "num_train_epochs" in settings.training:
        logger.info(
            "training.max_steps=%d sets the length of the run, so num_train_epochs=%s is ignored.",
            args.max_steps,
            settings.training["num_train_epochs"],
        )
    if whole:
        if settings.training.get("fsdp") and launched_rank_and_world()[1] == 1:
            raise ConfigError(
                f"training.fsdp={show(settings.training['fsdp'])} splits the weights over processes, but one process "
                "was started; use torchrun or accelerate launch, or leave it out."
            )
        slots = settings.arguments["gradient_accumulation_steps"] * int(os.environ.get("WORLD_SIZE") or 1)
        settings.selection.check_pool(settings.arguments["per_device_train_batch_size"] * slots, slots)


def holds_out(settings: RunSettings) -> bool:
    """Return whether the settings give the run data to evaluate on."""
    data, rows = settings.data, settings.data.validation_rows
    wanted = any(rows.values()) if isinstance(rows, dict) else rows
    return bool(data.validation or wanted or data.train == "demo")


def _check_evaluation(settings: RunSettings) -> None:
    if settings.data.validation and settings.data.validation_rows:
        logger.warning(
            "data.validation_rows=%s has no effect, because data.validation names the validation data.",
            settings.data.validation_rows,
        )
    if not holds_out(settings):
        refuse_evaluation(settings)


def refuse_evaluation(settings: RunSettings) -> None:
    """Raise ConfigError if the settings ask for evaluations, for a run without data to evaluate on."""
    for name in ("eval_strategy", "eval_on_start", "load_best_model_at_end"):
        value = settings.arguments[name]
        if value and value != "no":
            raise ConfigError(
                f"training.{name}={value} evaluates, but there is no validation data; set data.validation, or "
                "data.validation_rows for sources with at least two prompts."
            )


def _check_order(settings: RunSettings) -> None:
    selection = settings.selection
    if selection.order == "random":
        return
    if settings.data.streaming:
        check_dealt_stream(selection)
    if selection.order_by.endswith(FEATURE_FILES) and not Path(selection.order_by).is_file():
        raise ConfigError(
            f"selection.order_by={selection.order_by} is not an existing file; give one with a vector for each row, or "
            "'tokens' or 'sources'."
        )


def _check_stream(settings: RunSettings, args: Any) -> None:
    if not settings.data.streaming:
        return
    if args.max_steps <= 0:
        raise ConfigError("A stream has no known length; set training.max_steps.")
    for name, plain in (("train_sampling_strategy", "random"), ("dataloader_drop_last", False)):
        value = getattr(args, name, plain)
        if value != plain:
            raise ConfigError(
                f"training.{name}={value} has no effect on a stream, whose rows are read on demand; leave it "
                "out, or set data.streaming to false."
            )
