"""The runs of a comparison: their settings, and the processes that train them and answer questions."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from colm.errors import ConfigError
from colm.lab.report.compare_page import PAGE_NAME
from colm.lab.report.page import check_page
from colm.lab.run.cadence import evaluate_often
from colm.lab.run.changes import refused_changes
from colm.lab.run.check import check_run
from colm.lab.run.clustering import LABELS_NAME
from colm.lab.run.folder import RunFolder
from colm.lab.run.recognize import is_recognized, is_settings_file
from colm.lab.run.settings import load_run_settings, load_settings, resolve_settings
from colm.lab.run.yaml12 import write_yaml
from colm.lab.study.child import Start, run_child, split_words, start_with, verbosity_words
from colm.lab.study.finished import check_run_data
from colm.lab.study.forks import ForkServer
from colm.lab.study.methods import method_settings
from colm.step.files import replace_file
from colm.step.record import COMPARE_NAME, CONFIG_NAME


def plan_runs(
    config: str, overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> dict[Path, dict[str, Any]]:
    """Return the folder and settings of every run, checked before the first run starts.

    All runs of a seed see the data in the same order; all seeds share the held-out rows.

    Raises:
        ConfigError: an unknown method, no fixed number of steps, no validation data, or a folder that contains a run
            with other settings.
        DataError: a folder contains a run on other data.
    """
    base = load_settings(config, overrides)
    _check_base(base.values)
    values = dict(base.values)
    values["data"] = {**values["data"], "seed": base.data_seed}
    if (base.sources.cluster or base.sources.split) and base.sources.labels is None:  # clustered once, for all runs
        values["sources"] = {**values["sources"], "labels": str(base.output_dir / LABELS_NAME)}
    values["training"] = {**base.training, **evaluate_often(base.training)}
    runs: dict[Path, dict[str, Any]] = {}
    for seed in dict.fromkeys(seeds):
        if seed < 0:
            raise ConfigError(f"--seeds {seed}: a seed must be a whole number of at least 0.")
        for method in dict.fromkeys(methods):
            settings = method_settings(method, {**values, "seed": seed})
            settings["selection"]["seed"] = seed
            folder = base.output_dir / method / f"seed-{seed}"
            settings["output_dir"] = str(folder)
            resolved = resolve_settings(settings)
            check_run(resolved, whole=False)
            settings = resolved.values
            _check_folder(folder, settings)
            runs[folder] = settings
    check_run_data(base.output_dir, runs)
    return runs


def ways_to_start(
    launcher: Sequence[str], server: ForkServer | None, training: Mapping[str, Any]
) -> tuple[Start, Start]:
    """Return how to start the trainings of a comparison, and its other commands.

    A GPU's driver does not survive a fork, and a launcher starts processes of its own; both get fresh processes.

    Args:
        launcher: the words that start a run's processes; none for one process.
        server: starts commands as forks; None where the system cannot.
        training: the section of the configuration.
    """
    on_cpu = training.get("use_cpu") or not torch.accelerator.is_available()
    plain = server.start if server is not None and on_cpu else start_with([sys.executable])
    return (start_with(launcher) if launcher else plain), plain


def run_one(folder: Path, settings: Mapping[str, Any], start: Start) -> None:
    """Train one run in its own process, from its last complete checkpoint if any.

    Raises:
        ConfigError: the process failed; its output is above.
        StoppedEarly: see `run_child`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _settings_path(folder)
    replace_file(path, write_yaml(dict(settings)))
    words = [*verbosity_words(), "train", str(path), "--resume"]
    status = run_child(lambda: start(words), f"the training in {folder}")
    if status:
        raise ConfigError(
            f"The run {folder} failed with exit status {status}; see its output above. Run the same command again to "
            "continue."
        )


def check_places(out: Path, todo: Sequence[Path]) -> None:
    """Check that a comparison can write its files next to its runs.

    Args:
        out: the comparison's folder, created if missing.
        todo: folders of the runs still to train.

    Raises:
        ConfigError: the folder is not writable, or a foreign file has such a name.
    """
    RunFolder(out).prepare()
    check_page(out / PAGE_NAME)
    files = {out / COMPARE_NAME: is_recognized, **{_settings_path(folder): is_settings_file for folder in todo}}
    for path, is_own in files.items():
        if os.path.lexists(path) and not is_own(path):
            raise ConfigError(f"{path} was not written by colm. Move it, or choose another output_dir.")


def _settings_path(folder: Path) -> Path:
    return folder.with_suffix(".yaml")


def answer_one(folder: Path, data: Sequence[str], options: str, start: Start) -> None:
    """Let a finished run answer questions in its own process.

    Raises:
        ConfigError: the process failed; its output is above.
        StoppedEarly: see `run_child`.
    """
    options_of_eval = split_words("--eval-options", options)
    words = [*verbosity_words(), "eval", str(folder), "--data", *data, *options_of_eval]
    status = run_child(lambda: start(words), f"colm eval of {folder}")
    if status:
        raise ConfigError(
            f"colm eval of {folder} failed with exit status {status}; see its output above. Run the same command again "
            "to continue."
        )


def _check_base(values: Mapping[str, Any]) -> None:
    if values["training"].get("max_steps", -1) <= 0:
        raise ConfigError(
            "A comparison needs training.max_steps, so that all methods take the same number of steps; with epochs, "
            "a larger batch would take fewer."
        )
    data = values["data"]
    validates = data["validation"] or data["validation_rows"] or data["train"] == "demo"
    if not validates and not any(entry.get("validation") for entry in values["mixture"]):
        raise ConfigError("A comparison needs validation data: set data.validation, or data.validation_rows.")


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / CONFIG_NAME
    if not path.exists():
        return
    held = load_run_settings(folder).values
    changes = refused_changes(held, settings, same_length=True)
    if changes:
        differing = dict.fromkeys(key.partition(".")[0] for key, _, _ in changes)
        raise ConfigError(
            f"{folder} contains a run with other settings ({', '.join(differing)} differ); choose another output_dir, "
            "or delete that folder."
        )
