"""What a training's settings decide by themselves, checked before data or model are read."""

from __future__ import annotations

import os

from colm.cli.named import check_adapter
from colm.cli.settings import RunSettings
from colm.cli.training import check_training


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
    check_training(training, output_dir=str(settings.output_dir), seed=settings.seed)
    if whole:
        slots = training.get("gradient_accumulation_steps", 1) * int(os.environ.get("WORLD_SIZE") or 1)
        settings.selection.check_pool(training.get("per_device_train_batch_size", 8) * slots, slots)
