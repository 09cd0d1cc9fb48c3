"""The rows that a run held out: those it stored, or, for older versions, the same rows drawn again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset

from colm.errors import DataError
from colm.lab.data.fingerprint import describe_difference
from colm.lab.data.held_rows import Parts, TextRows, part_keys, read_held_out, write_row
from colm.lab.data.load import read_validation
from colm.lab.data.prompts import HeldPrompts, prompt_keys
from colm.lab.data.questions import Question
from colm.lab.run.check import holds_out
from colm.lab.run.folder import RunFolder
from colm.lab.run.prepare import is_older, prepare_data
from colm.lab.run.resume import fingerprint_run
from colm.lab.run.settings import RunSettings
from colm.lab.run.target import Target
from colm.step.record import HELD_OUT_NAME

logger = logging.getLogger(__name__)

REMEDY = "Give questions with --data FILE."


def held_out_of(settings: RunSettings, folder: Path) -> Parts:
    """Return the rows that a run held out, if any.

    The stored rows count, even if the data has changed since. If the validation file has changed, colm logs a warning.

    Args:
        settings: the run's settings.
        folder: its output folder.

    Raises:
        DataError: an older version stored none, and the data may have changed.
    """
    data = settings.data
    if not is_older(folder):
        held = read_held_out(folder / HELD_OUT_NAME)
        _say_changed(settings, held)
        return [_rename(part, data.columns) for part in held]
    if not holds_out(settings):
        return []
    if data.streaming and data.validation:
        return read_validation(data)
    known = None if data.streaming else RunFolder(folder).fingerprint()
    if known is None:
        raise DataError(
            f"The run in {folder} was made by an older version, which stored neither the held-out rows nor a "
            f"fingerprint of the data, so the questions might include training rows. {REMEDY}"
        )
    prepared = prepare_data(settings, resume=True, kept=folder)
    difference = describe_difference(known, fingerprint_run(settings, prepared))
    if difference is not None:
        raise DataError(
            f"The data has changed since the run in {folder} ({difference}), and the older version that made it "
            f"did not store held-out rows, so the questions might include training rows. "
            f"Restore the data, or g{REMEDY[1:]}"
        )
    return prepared.held_out


def warn_trained(asked: Sequence[Question], target: Target, other: Target) -> None:
    """Log how many questions that one run held out, another run may have trained on, because it did not.

    Args:
        asked: held-out rows of `target`.
        target: the run that held them out.
        other: a run that answers them too; nothing is known of the training rows of a model.
    """
    if other.folder is None or other.folder == target.folder:
        return
    held = [] if is_older(other.folder) else read_held_out(other.folder / HELD_OUT_NAME)
    prompts = HeldPrompts(keys for part in held for keys in part_keys(part))
    open_to = sum(not prompts.meet(prompt_keys(question.format, question.row)) for question in asked)
    if open_to:
        logger.warning(
            "%s did not hold out %d of the %d questions, which %s held out, and may have trained on them. %s",
            *(other.name, open_to, len(asked), target.name, REMEDY),
        )


def format_of_run(target: Target) -> str:
    """Return the format of a run's rows, as configured or as its held-out rows have it; ``auto`` if they do not tell.

    Args:
        target: a run, or a model, which has no rows.
    """
    name = target.settings.data.format
    if name != "auto" or target.folder is None or is_older(target.folder):
        return name
    found = {part.format for part in read_held_out(target.folder / HELD_OUT_NAME)}
    return found.pop() if len(found) == 1 else name


def _rename(part: TextRows, columns: dict[str, str]) -> TextRows:
    """Rename columns as the evaluation's own data.columns asks; the run's names are already applied."""
    present = part.column_names
    names = {old: new for new, old in columns.items() if old in present and new not in present}
    if not names:
        return part
    return TextRows(part.format, [{names.get(name, name): value for name, value in row.items()} for row in part])


def _say_changed(settings: RunSettings, held: Parts) -> None:
    """Log a warning if the validation file no longer contains the run's rows; hub data sets are not checked."""
    name, column = settings.data.validation, settings.data.source_column
    if not name or not Path(name).exists():
        return
    try:
        now: list[Dataset] = read_validation(settings.data, labelled=False)
        same = all(before == after for before, after in zip_longest(_contents(held, column), _contents(now, column)))
    except DataError:
        same = False
    if not same:
        logger.warning(
            "%s has changed since the run. The questions are the run's own held-out rows, as they were. To use the "
            "current file: --data %s.",
            name,
            name,
        )


def _contents(parts: Parts, column: str) -> Iterator[Any]:
    """Yield the rows without their sources, which a run may rename."""
    for part in parts:
        for row in part:
            yield json.loads(write_row("", {name: value for name, value in row.items() if name != column}))
