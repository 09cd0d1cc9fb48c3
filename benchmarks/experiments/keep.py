"""Store the figures of a `colm compare` run as one small file, and restore it where the comparison looks for it.

The files in docs/results/runs/<mixture>/ contain only figures, no text of the data. So an experiment of many hours
resumes after an interruption, even on another machine: `restore` makes `colm compare` treat the run as finished.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from colm.errors import ConfigError
from colm.step.record import ANSWERS_NAME, CONFIG_NAME, DATA_NAME, EVALUATIONS_NAME, SUMMARY_NAME

KEPT = Path(__file__).parents[2] / "docs" / "results" / "runs"
DIGITS = 6


def keep_run(folder: Path, mixture: str, *, model: str, setting: str | None) -> Path:
    """Write the figures of the finished run in `folder` (.../<method>/seed-<n>) and return the file.

    Args:
        folder: the run's output folder.
        mixture: the name to store the run under.
        model: the hash of the model that the run began with, see `hash_model`.
        setting: hardware, versions and commit; None to leave the stored setting.
    """
    path = KEPT / mixture / f"{folder.parent.name}.{folder.name}.json"
    if setting is None:
        setting = json.loads(path.read_text(encoding="utf-8"))["setting"]
    lines = (folder / EVALUATIONS_NAME).read_text(encoding="utf-8").splitlines()
    held = {
        "model": model,
        "setting": setting,
        "config": yaml.safe_load((folder / CONFIG_NAME).read_text(encoding="utf-8")),
        "summary": _round(json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))),
        "evaluations": [_round(json.loads(line)) for line in lines],
    }
    if (folder / DATA_NAME).exists():
        held["data"] = json.loads((folder / DATA_NAME).read_text(encoding="utf-8"))
    answers = folder / ANSWERS_NAME
    if answers.exists():
        held["answers"] = _round(json.loads(answers.read_text(encoding="utf-8")))
        del held["answers"]["settings"]["weights"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held) + "\n", encoding="utf-8")
    return path


def restore_runs(mixture: str, out: Path, *, model: str | None) -> None:
    """Restore the stored runs under `out`, a comparison's output folder.

    Args:
        mixture: the name that they were stored under.
        out: gets a folder for each run.
        model: the hash of the model that further runs would begin with; None without further runs.

    Raises:
        ConfigError: a run began with another model, so it cannot be compared with runs that begin with this one.
    """
    for path in sorted((KEPT / mixture).glob("*.seed-*.json")):
        held = json.loads(path.read_text(encoding="utf-8"))
        if model is not None and held["model"] != model:
            raise ConfigError(
                f"{path} began with pretrained model {held['model'][:12]}, but the one here is {model[:12]}: "
                "pretraining rounds differently on another processor. Remove this mixture's stored runs to start over."
            )
        method, _, seed = path.stem.rpartition(".")
        folder = out / method / seed
        if (folder / SUMMARY_NAME).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(yaml.safe_dump(held["config"], sort_keys=False), encoding="utf-8")
        text = "".join(json.dumps(line) + "\n" for line in held["evaluations"])
        (folder / EVALUATIONS_NAME).write_text(text, encoding="utf-8")
        if "data" in held:  # older runs do not record which rows they were trained on
            (folder / DATA_NAME).write_text(json.dumps(held["data"]), encoding="utf-8")
        if "answers" in held:
            (folder / ANSWERS_NAME).write_text(json.dumps(held["answers"]), encoding="utf-8")
        (folder / SUMMARY_NAME).write_text(json.dumps(held["summary"]), encoding="utf-8")


def hash_model(folder: Path) -> str:
    """Return the SHA-256 of the weights that runs begin with."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def _round(value: Any) -> Any:
    """Round every float within a JSON value."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    return [_round(item) for item in value] if isinstance(value, list) else value
