"""The processes that train the runs of a comparison and answer questions."""

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
from colm.lab.run.folder import RunFolder
from colm.lab.run.recognize import is_recognized, is_settings_file
from colm.lab.run.yaml12 import write_yaml
from colm.lab.study.child import Start, run_child, split_words, start_with, verbosity_words
from colm.lab.study.forks import ForkServer
from colm.step.files import replace_file
from colm.step.record import COMPARE_NAME, FILE_NAME, RATES_NAME


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
    begun = any(folder.iterdir())
    words = [*verbosity_words(), "train", str(path), *(["--resume"] if begun else [])]
    status = run_child(lambda: start(words), f"the training in {folder}")
    if status:
        raise ConfigError(
            f"The run {folder} failed with exit status {status}; see its output above. Run the same command again to "
            "continue."
        )


def refuse_run(out: Path) -> None:
    """Refuse the folder of a run for a new comparison, whose page would take the place of the run's.

    Raises:
        ConfigError: the folder contains a run.
    """
    if (out / FILE_NAME).exists() and not (out / COMPARE_NAME).exists():
        raise ConfigError(
            f"{out} contains a run ({FILE_NAME}), and colm report would show only the comparison. Choose another "
            f"output_dir, such as output_dir={out}-compared."
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
    own = {out / name: is_recognized for name in (COMPARE_NAME, RATES_NAME)}
    files = {**own, **{_settings_path(folder): is_settings_file for folder in todo}}
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
