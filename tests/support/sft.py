"""Rows of text for TRL's trainer, and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl import SFTConfig


def sft_settings(folder: Path, **changes: Any) -> SFTConfig:
    values: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        **changes,
    }
    return SFTConfig(str(folder), **values)


def text_rows(count: int = 60) -> list[dict[str, str]]:
    names = ["adding" if i % 10 < 6 else ("naming" if i % 10 < 9 else "rare") for i in range(count)]
    return [
        {
            "source": name,
            "prompt": f"What of {name} {i}?",
            "completion": f" It is {i * i} and so on." + " yes" * (i % 5),
        }
        for i, name in enumerate(names)
    ]
