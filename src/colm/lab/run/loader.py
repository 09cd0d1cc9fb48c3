"""Defaults of the training's data loader that depend on the machine."""

from __future__ import annotations

from typing import Any

import torch

from colm.lab.run.settings import RunSettings


def loader_defaults(settings: RunSettings) -> dict[str, Any]:
    """Return the training arguments of the data loader that are set on a GPU unless the user set them.

    One worker collates the next pool while the GPU runs a step, and batches are copied without waiting. The order of
    the rows is that of no worker. A stream whose new sources are found while it is read keeps its only reader. On a CPU
    a worker would take time from the training itself.

    They are not part of a run's settings, so that it may be resumed on another machine.
    """
    training, data = settings.training, settings.data
    if not torch.cuda.is_available() or training.get("use_cpu"):
        return {}
    grows = data.streaming and not data.source_sizes
    workers = {} if grows else {"dataloader_num_workers": 1}
    return workers | ({"accelerator_config": {"non_blocking": True}} if training["dataloader_pin_memory"] else {})
