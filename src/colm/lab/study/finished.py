"""Check whether a comparison's existing results are still valid: same data, same questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from colm.errors import DataError
from colm.lab.data.fingerprint import Fingerprint, describe_difference
from colm.lab.data.questions import read_questions
from colm.lab.evaluate.options import EvalOptions, check_options, parse_eval
from colm.lab.run.answers import read_given
from colm.lab.run.folder import RunFolder
from colm.lab.run.prepare import prepare_data
from colm.lab.run.resume import fingerprint_run
from colm.lab.run.settings import resolve_settings
from colm.lab.study.child import split_words
from colm.step.record import ANSWERS_NAME, HARNESS_NAME, SUMMARY_NAME


def check_run_data(out: Path, runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Check that existing runs were trained on the data that further runs would use.

    colm reads the data only if a run has a fingerprint; runs of older versions have none.

    Args:
        out: the comparison's folder.
        runs: folder -> settings, whose data sections differ at most in the sources' shares.

    Raises:
        DataError: a finished run, or one that would resume, was trained on other data.
    """
    finished = [path.parent for path in sorted(out.glob(f"*/seed-*/{SUMMARY_NAME}"))]
    finished += [folder for folder in runs if folder not in finished and RunFolder(folder).finished]
    going = [folder for folder in runs if folder not in finished and RunFolder(folder).last_checkpoint() is not None]
    known = [folder for folder in (*finished, *going) if RunFolder(folder).fingerprint() is not None]
    if not known:
        return
    for values in {_shares(values): values for values in runs.values()}.values():
        settings = resolve_settings(values)
        require_same(known, fingerprint_run(settings, prepare_data(settings)), values)


def require_same(folders: Iterable[Path], found: Fingerprint | None, values: Mapping[str, Any]) -> None:
    """Check that runs were trained on the data of a fingerprint.

    Runs that give the sources other shares draw other rows for training; only their held-out rows must be the same.

    Args:
        folders: the runs.
        found: the fingerprint; None if it is unknown.
        values: the settings of the run that it belongs to.

    Raises:
        DataError: a run was trained on other data.
    """
    for folder in folders:
        held = RunFolder(folder).fingerprint()
        if held is not None and _shares(RunFolder(folder).config()) != _shares(values):
            held = {key: part for key, part in held.items() if key != "train"}
        difference = describe_difference(held, found)
        if difference is not None:
            raise DataError(
                f"{folder} contains a run on other data or of another model ({difference}), which cannot be compared. "
                "Restore it, choose another output_dir, or delete that folder."
            )


def _shares(values: Mapping[str, Any]) -> str:
    """Return what a configuration says about the sources' shares of the data."""
    data = values.get("data") or {}
    return f"{data.get('temperature')} {sorted((data.get('weights') or {}).items())}"


class Asked(NamedTuple):
    """The questions for every run of a comparison, and the options."""

    options: EvalOptions
    expected: dict[str, Any]  # in the settings of answers.json


def read_asked(data: Sequence[str], options: str, settings: Mapping[str, Any]) -> Asked:
    """Read the questions, to report errors before hours of training.

    Args:
        data: as ``colm eval --data``.
        options: further options of ``colm eval``, as on a command line.
        settings: settings of one of the runs.

    Raises:
        ConfigError: the options cannot be read, or one is out of range.
        DataError: see `data.questions`.
    """
    how, overrides = parse_eval(["run", "--data", *data, *split_words("--eval-options", options)])
    check_options(how)
    run = resolve_settings(settings, overrides)
    column = how.source_column or run.data.source_column
    questions = read_questions(read_given(how, run), source_column=column, format_name=run.data.format)
    return Asked(how, {**how.recorded(), "dtype": run.dtype, "rows": questions.digest})


def is_answered(folder: Path, asked: Asked) -> bool:
    """Return whether a run has answered these questions with these options, and has run the harness tasks.

    Answers of older versions do not record dtype and rows; they count if everything else is the same.
    """
    run, tasks = RunFolder(folder), set(asked.options.tasks)
    answers = run.read(ANSWERS_NAME)
    if answers is None:
        return False
    same = all(answers["settings"].get(key, value) == value for key, value in asked.expected.items())
    return same and (not tasks or tasks <= set(run.read(HARNESS_NAME) or ()))
