"""A run of `colm train` on rows made here, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_run(folder: Path, **changes: Any) -> str:
    rows = []
    for i in range(60):
        name = "adding" if i % 10 < 6 else ("naming" if i % 10 < 9 else "rare")
        text = {"adding": f"{i} + 1 = ", "naming": f"Name number {i}: ", "rare": f"Rare {i}? "}[name]
        rows.append({"source": name, "prompt": text, "completion": str(i + 1)})
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": "tiny",
        "data": {"train": str(folder / "rows.jsonl"), "validation_rows": 2, "max_length": 32},
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
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "run.yaml")


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
