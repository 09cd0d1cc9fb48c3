"""Rows of text for TRL's trainer, and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.trainers import SHORT
from trl import SFTConfig


def sft_settings(folder: Path, **changes: Any) -> SFTConfig:
    plain = {"bf16": False, "gradient_checkpointing": False}  # on by default in TRL
    return SFTConfig(str(folder), **{**SHORT, "max_steps": 3, **plain, **changes})


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
