"""A run's files: their names, and its logs, one JSON line for each step's selection and for each evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from colm.errors import DataError
from colm.step.files import replace_file
from colm.types import StepRecord

FILE_NAME = "selection.jsonl"
EVALUATIONS_NAME = "evaluations.jsonl"
CONFIG_NAME = "config.yaml"
DATA_NAME = "data.json"
HELD_OUT_NAME = "held_out.jsonl"
SUMMARY_NAME = "summary.json"
EXAMPLES_NAME = "examples.json"
COMPARE_NAME = "compare.json"
ANSWERS_NAME = "answers.json"
ANSWER_LINES_NAME = "answers.jsonl"
HARNESS_NAME = "harness.json"
PARTIAL_ANSWERS_NAME = "answers.partial.jsonl"
"""Settings, and the answers so far, of an evaluation that has not ended."""
PROFILE_NAME = "profile.txt"
TRACE_NAME = "profile_trace.json"
MANIFEST_NAME = "_colm.json"
"""Which files of a folder colm wrote. The Trainer pushes no ``_`` to the hub."""

RUN_NAMES = (CONFIG_NAME, DATA_NAME, HELD_OUT_NAME, FILE_NAME, EVALUATIONS_NAME, EXAMPLES_NAME, SUMMARY_NAME)
"""What every training writes to its folder, beside the model and the checkpoints."""
ANSWER_NAMES = (ANSWERS_NAME, ANSWER_LINES_NAME, PARTIAL_ANSWERS_NAME, HARNESS_NAME)
"""What an evaluation writes."""


class StepLog:
    """Appends lines that have a step to a file, and forgets those after the step that a run resumes from.

    Args:
        path: the file; its folder must exist when the first line is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate(self, steps: int) -> None:
        """Keep the lines whose step is below `steps`, and drop one that a crash left half-written.

        Raises:
            DataError: a line has no step, so the file is another's.
        """
        if not self.path.exists():
            return
        lines = list(self.read())
        if any(not isinstance(line.get("step"), int) for line in lines):
            raise DataError(
                f"{self.path} holds lines without a step, so colm did not write it. Move it away, or choose another "
                "output_dir."
            )
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] < steps]
        replace_file(self.path, "".join(kept))

    def read(self, *, whole: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the lines as dicts; none where there is no file.

        Args:
            whole: refuse a last line that is not whole, instead of leaving it out.

        Raises:
            DataError: a line is damaged, with its number.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    if whole:
                        raise DataError(
                            f"{self.path}, line {number}, is not whole: the file was cut, or the run killed while it "
                            f"wrote. Put back a whole copy, or delete this line to do with the {number - 1} before it."
                        )
                    return
                yield self._parse(line, number)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise DataError(
                f"{self.path}, line {number}, is not valid JSON: {error}. It was damaged after it was written; put "
                "back a copy of the file."
            ) from error
        if not isinstance(values, dict):
            raise DataError(
                f"{self.path}, line {number}, does not hold what colm train writes there: it is no JSON object. Put "
                "back a copy of the file."
            )
        return values


def to_dict(record: StepRecord) -> dict[str, Any]:
    """Return the record as one JSON object, with the counts that readers want first."""
    return {
        "step": record.step,
        "pool_count": record.pool_count,
        "kept_count": record.kept_count,
        "small_kept": record.small_kept,
        "unlabelled": record.unlabelled,
        "nonfinite": record.nonfinite,
        "seconds": round(record.seconds, 6),
        "step_seconds": record.step_seconds,
        "match": record.match,
        "match_random": record.match_random,
        "pool": record.pool,
        "kept": record.kept,
        "tokens": record.tokens,
    } | ({} if record.weights is None else {"weights": record.weights})


def from_dict(line: Mapping[str, Any]) -> StepRecord:
    """Return the record that `to_dict` wrote; keys that older versions did not write have their defaults.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the line is not a record.
    """
    return StepRecord(
        step=int(line["step"]),
        pool={source: list(rows) for source, rows in line["pool"].items()},
        kept={source: list(rows) for source, rows in line["kept"].items()},
        tokens=dict(line.get("tokens", {})),
        small_kept=int(line.get("small_kept", 0)),
        unlabelled=int(line.get("unlabelled", 0)),
        nonfinite=int(line.get("nonfinite", 0)),
        seconds=float(line["seconds"]),
        match=_optional_float(line.get("match")),
        match_random=_optional_float(line.get("match_random")),
        weights=line.get("weights"),
        step_seconds=_optional_float(line.get("step_seconds")),
    )


def read_records(path: Path) -> Iterator[StepRecord]:
    """Yield a run's records, without a last line that is not whole. Raises as `StepLog.read` and `from_dict`."""
    return map(from_dict, StepLog(path).read())


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
