"""Runs in a folder, written by the calls of a training but without one."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from colm.lab.run.folder import RunFolder, needed_names
from colm.trainers.checkpoints import begin_checkpoint, mark_complete

STEP = {"step": 0, "pool_count": 2, "pool": {"a": [0, 1]}, "kept": {"a": [0]}}
EVALUATION = {"step": 0, "rows": 0, "seconds": 0.0, "losses": {"a": 1.0}}


def settings_text(mark: str = "") -> str:
    """Return resolved settings as far as colm looks at them."""
    keys = ("model", "data", "selection", "training", "output_dir")
    return yaml.safe_dump({**dict.fromkeys(keys, mark), "seed": 0}, sort_keys=False)


def fingerprint_text(rows: int = 4) -> str:
    part = {"rows": rows, "digest": "0"}
    return json.dumps({"train": part, "validation": part}, indent=2) + "\n"


def write_checkpoint(folder: RunFolder, step: int, mark: str = "") -> None:
    path = folder.path / f"checkpoint-{step}"
    folder.announce(path.name)
    begin_checkpoint(path)
    (path / "model.safetensors").write_text(f"weights {mark}")
    (path / "tokenizer.json").write_text("{}")
    (path / "coreset_state.pt").write_text(mark)
    mark_complete(path)


def train_in(path: Path, mark: str = "", *, steps: int = 1) -> None:
    """Leave what a training leaves, by the same calls."""
    folder = RunFolder(path)
    with folder.hold():
        folder.staging.make()
        (folder.staging.new / "evaluations.jsonl").write_text(json.dumps(EVALUATION) + "\n")
        folder.begin({"data.json": fingerprint_text(), "config.yaml": settings_text(mark)})
        for step in range(steps):
            with (path / "selection.jsonl").open("a") as file:
                file.write(json.dumps({**STEP, "step": step}) + "\n")
            write_checkpoint(folder, step + 1, mark)
        folder.staging.make()
        (folder.staging.new / "model.safetensors").write_text(f"weights {mark}")
        (folder.staging.new / "tokenizer.json").write_text("{}")
        folder.adopt()
        folder.write("examples.json", json.dumps({"most_kept": [], "least_kept": []}, indent=2) + "\n")
        summary = {"steps": steps, "selection_seconds": 0.0, "small_sources": [], "sources": {}, "mark": mark}
        folder.write("summary.json", json.dumps(summary, indent=2) + "\n")


def start(path: Path, mark: str = "next") -> None:
    """Begin a run as ``--overwrite`` does: what is in the way is refused."""
    folder = RunFolder(path)
    with folder.hold():
        folder.refuse_foreign(needed_names())
        folder.refuse_foreign(["tokenizer.json"])  # the tokenizer's, once it is there
        folder.refuse_checkpoints(0, 10)
        folder.begin({"data.json": fingerprint_text(), "config.yaml": settings_text(mark)})
