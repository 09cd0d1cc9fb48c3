"""What a training's settings decide by themselves, checked before data or model are read."""

from __future__ import annotations

import logging
import os
from typing import Any

from colm.errors import ConfigError
from colm.lab.run.named import check_adapter
from colm.lab.run.settings import RunSettings
from colm.lab.run.training import check_training
from colm.trainers.checks import check_arguments

logger = logging.getLogger(__name__)


def check_run(settings: RunSettings, *, whole: bool = True) -> None:
    """Check what the settings alone decide of a training on this machine, before data or model are read.

    Args:
        settings: the run's.
        whole: this process is one of those that train; else a launcher may start any number.

    Raises:
        ConfigError: packages that are missing, arguments that are refused, an adapter of other settings, a pool that is
            too small.
    """
    training = settings.training
    check_adapter(settings)
    args = check_training(training, output_dir=str(settings.output_dir), seed=settings.seed)
    check_arguments(args, settings.selection)
    _check_evaluation(settings)
    _check_stream(settings, args)
    if args.max_steps > 0 and "num_train_epochs" in training:
        logger.info(
            "training.max_steps=%d says how long the run is; num_train_epochs=%s does not count beside it.",
            args.max_steps,
            training["num_train_epochs"],
        )
    if whole:
        slots = training.get("gradient_accumulation_steps", 1) * int(os.environ.get("WORLD_SIZE") or 1)
        settings.selection.check_pool(training.get("per_device_train_batch_size", 8) * slots, slots)


def holds_out(settings: RunSettings) -> bool:
    """Return whether the run has data to evaluate on."""
    data = settings.data
    return bool(data["validation"] or data["validation_rows"] or data["train"] == "demo")


def _check_evaluation(settings: RunSettings) -> None:
    if settings.data["validation"] and settings.data["validation_rows"]:
        logger.warning(
            "data.validation_rows=%s holds nothing out, since data.validation names the validation data.",
            settings.data["validation_rows"],
        )
    if holds_out(settings):
        return
    for name in ("eval_strategy", "eval_on_start", "load_best_model_at_end"):
        value = settings.training.get(name)
        if value and value != "no":
            raise ConfigError(
                f"training.{name}={value} evaluates, but there is no validation data; set data.validation, or "
                "data.validation_rows."
            )


def _check_stream(settings: RunSettings, args: Any) -> None:
    if not settings.data["streaming"]:
        return
    if args.max_steps <= 0:
        raise ConfigError("A stream has no known end; set training.max_steps.")
    for name, plain in (("train_sampling_strategy", "random"), ("dataloader_drop_last", False)):
        value = getattr(args, name, plain)
        if value != plain:
            raise ConfigError(
                f"training.{name}={value} has no effect on a stream, whose rows come as they are read; leave it "
                "out, or set data.streaming to false."
            )
