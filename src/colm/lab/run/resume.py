"""What a resumed run must have in common with the run in its folder: settings and data."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from colm.errors import ConfigError, DataError
from colm.lab.data.fingerprint import (
    Fingerprint,
    describe_difference,
    fingerprint_data,
    fingerprint_model,
    fingerprint_stream,
)
from colm.lab.data.held_rows import write_rows
from colm.lab.run.changes import refused_changes
from colm.lab.run.folder import RunFolder
from colm.lab.run.prepare import PreparedData
from colm.lab.run.settings import RunSettings, load_run_settings
from colm.lab.run.yaml12 import write_yaml
from colm.lab.sources.vectors import check_features
from colm.step.record import CONFIG_NAME, DATA_NAME, HELD_OUT_NAME

logger = logging.getLogger(__name__)


def check_settings(settings: RunSettings) -> None:
    """Check that a run resumes with the settings in its folder, except those that do not change the training.

    Raises:
        ConfigError: other settings differ; names each with both values.
    """
    try:
        held = load_run_settings(settings.output_dir).values
    except ConfigError as error:
        raise ConfigError(f"The run in {settings.output_dir} cannot be resumed: {error}") from error
    differing = [f"{key}: {before!r} -> {now!r}" for key, before, now in refused_changes(held, settings.values)]
    if differing:
        raise ConfigError(
            f"{settings.output_dir} contains a run with other settings ({'; '.join(differing)}). Resume it without the "
            "change, start over with --overwrite, or choose another output_dir."
        )


def check_data(folder: Path, found: Fingerprint | None) -> None:
    """Check that a run resumes with the rows it started with, for a stream with the held-out ones, and its model.

    Fingerprints of runs made by older versions are unavailable.

    Raises:
        DataError: the rows differ; gives both numbers of rows.
    """
    difference = describe_difference(RunFolder(folder).fingerprint(), found)
    if difference is not None:
        raise DataError(
            f"The data or the model is not what the run in {folder} started with ({difference}). Restore it, or start "
            "a new run with --overwrite or another output_dir."
        )


def check_order(settings: RunSettings, data: PreparedData, found: Fingerprint | None = None) -> None:
    """Check that the vectors that order the training rows (`selection.order_by`) are theirs, see `check_features`.

    Args:
        settings: the run's settings.
        data: its data.
        found: the data's fingerprint, if it is known.
    """
    order, path = settings.selection.order, str(settings.selection.order_by)
    if order == "balanced" and path.endswith(".parquet") and not settings.data.streaming:
        check_features(Path(path), (found or fingerprint_run(settings, data))["train"])


def fingerprint_run(settings: RunSettings, data: PreparedData) -> Fingerprint:
    """Return the fingerprint of the run's data, for a stream of its held-out rows, and of a local model."""
    model = fingerprint_model(settings.model)
    if settings.data.streaming:
        return fingerprint_stream(write_rows(data.held_out, settings.data.format)) | model
    return fingerprint_data(data.train, data.validation, settings.data.source_column) | model


Texts = Mapping[str, Iterable[str]]
"""Name -> lines, each with its line ending."""


def beginning(settings: RunSettings, data: Fingerprint, held_out: Iterable[str]) -> Texts:
    """Return the files that a run starts with: fingerprint, held-out rows, and resolved settings.

    Args:
        settings: the run's settings.
        data: the fingerprint of its data.
        held_out: a line for each held-out row, see `held_rows.write_rows`.
    """
    return {DATA_NAME: [json.dumps(data, indent=2) + "\n"], HELD_OUT_NAME: held_out, CONFIG_NAME: [_dump(settings)]}


def _dump(settings: RunSettings) -> str:
    return write_yaml(settings.values)


def changed_settings(settings: RunSettings, folder: RunFolder) -> Texts:
    """Return a resumed run's settings; nothing if the file has the same settings, or is not ours."""
    path = folder.path / CONFIG_NAME
    if path.exists() and load_run_settings(folder.path).values == settings.values:
        return {}
    if path.exists() and CONFIG_NAME not in folder.own():
        logger.warning(
            "%s was changed, so it stays as it is: it does not contain all settings of the resumed run.", path
        )
        return {}
    return {CONFIG_NAME: [_dump(settings)]}


class BeginRun(TrainerCallback):
    """Writes a run's initial files when training begins, after all checks.

    By then a resumed run has loaded its checkpoint; its settings are rewritten if they differ. Put this callback before
    all callbacks that write to the folder.

    Args:
        folder: the run's folder; None in processes that do not write.
        texts: the files.
        trainer: its processes wait for the one that writes.
        resumed_at: step of the checkpoint; None if the run starts.
        logs: names of further logs.
        then: called when the files are written.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        texts: Texts,
        trainer: Any,
        *,
        resumed_at: int | None,
        logs: Collection[str],
        then: Callable[[], None],
    ) -> None:
        self._folder, self._texts, self._trainer = folder, texts, trainer
        self._resumed_at, self._logs, self._then = resumed_at, logs, then

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the files in one process."""
        if self._folder is not None:
            self._folder.refuse_checkpoints(self._resumed_at or 0, state.max_steps)
            if self._resumed_at is None:
                self._folder.begin(self._texts, self._logs)
            else:
                self._folder.resume(self._texts, self._logs)
        self._then()
        self._trainer.accelerator.wait_for_everyone()
