"""Settings and rows for `colm train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.files import write_lines, write_settings


def write_run(folder: Path, **changes: Any) -> str:
    """Write 60 rows of three sources, and settings to train on them with other sections as given."""
    rows = []
    for i in range(60):
        name = "adding" if i % 10 < 6 else ("naming" if i % 10 < 9 else "rare")
        text = {"adding": f"{i} + 1 = ", "naming": f"Name number {i}: ", "rare": f"Rare {i}? "}[name]
        rows.append({"source": name, "prompt": text, "completion": str(i + 1)})
    folder.mkdir(exist_ok=True)
    values = {
        "model": "tiny",
        "data": {"train": write_lines(folder / "rows.jsonl", rows), "validation_rows": 2, "max_length": 32},
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
            "learning_rate": 5e-3,
            "logging_steps": 2,
            "save_steps": 2,
        },
        "output_dir": str(folder / "run"),
        **changes,
    }
    return write_settings(folder, values)
