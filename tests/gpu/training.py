"""Runs of CoresetTrainer on a tiny model, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.gpu.support import DEVICE, collate, mixture, tiny_model

from colm import CoresetTrainer, SelectionConfig

STEPS = 6


def make_trainer(folder: Path, *, model: Any = None, selection: SelectionConfig | None = None, **changes: Any) -> Any:
    """Make a trainer of six steps, with pools of 12 rows in three micro-batches."""
    from transformers import TrainingArguments

    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "use_cpu": DEVICE.type == "cpu",
        **changes,
    }
    return CoresetTrainer(
        model=model or tiny_model(layers=2),
        args=TrainingArguments(str(folder), **settings),
        train_dataset=mixture(),
        data_collator=collate,
        selection=selection or SelectionConfig(keep=0.5),
    )


def selection_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's selection log, without times."""
    found = [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]
    for line in found:
        del line["seconds"], line["step_seconds"]
    return found


def kept_rows(folder: Path) -> list[Any]:
    """Return the rows of each source that each step of a run kept."""
    return [line["kept"] for line in selection_lines(folder)]


def losses(trainer: Any) -> list[float]:
    """Return the logged loss of each step."""
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def weights(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().cpu().clone() for parameter in trainer.model.parameters()]
