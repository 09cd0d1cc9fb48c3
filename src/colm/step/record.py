"""A run's file names and its logs: one JSON line per selection step and per evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from colm.errors import DataError
from colm.step.files import replace_file
from colm.types import NoiseScale, StepRecord

FILE_NAME = "selection.jsonl"
EVALUATIONS_NAME = "evaluations.jsonl"
LOSSES_NAME = "losses.jsonl"
CONFIG_NAME = "config.yaml"
DATA_NAME = "data.json"
HELD_OUT_NAME = "held_out.jsonl"
SUMMARY_NAME = "summary.json"
EXAMPLES_NAME = "examples.json"
COMPARE_NAME = "compare.json"
RATES_NAME = "rates.json"
ANSWERS_NAME = "answers.json"
ANSWER_LINES_NAME = "answers.jsonl"
HARNESS_NAME = "harness.json"
PARTIAL_ANSWERS_NAME = "answers.partial.jsonl"
"""Settings and partial answers of an unfinished evaluation."""
PROFILE_NAME = "profile.txt"
TRACE_NAME = "profile_trace.json"
MANIFEST_NAME = "_colm.json"
"""Lists the files that colm wrote to a folder. The Trainer does not push names with a leading ``_`` to the Hub."""

LOG_NAMES = (FILE_NAME, EVALUATIONS_NAME, LOSSES_NAME)
RUN_NAMES = (CONFIG_NAME, DATA_NAME, HELD_OUT_NAME, *LOG_NAMES, EXAMPLES_NAME, SUMMARY_NAME)
"""Files that every training run writes, in addition to the model and checkpoints."""
ANSWER_NAMES = (ANSWERS_NAME, ANSWER_LINES_NAME, PARTIAL_ANSWERS_NAME, HARNESS_NAME)
"""Files that an evaluation writes."""


class StepLog:
    """Appends one JSON line per step to a file; on resume, drops the lines after the resumed step.

    Args:
        path: the file; its folder must exist when the first line is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, which stays if the process is killed: the system has it, and need not sync every step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate(self, steps: int) -> None:
        """Keep the lines with a step below `steps`, and drop a line left incomplete by a crash.

        Raises:
            DataError: a line has no step, so colm did not write the file.
        """
        if not self.path.exists():
            return
        lines = list(self.read())
        if any(not isinstance(line.get("step"), int) for line in lines):
            raise DataError(
                f"{self.path} contains lines without a step, so colm did not write it. Move the file, or choose "
                "another output_dir."
            )
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] < steps]
        replace_file(self.path, "".join(kept))

    def read(self, *, whole: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the lines as dicts; yield nothing if the file does not exist.

        Args:
            whole: raise on an incomplete last line instead of skipping it.

        Raises:
            DataError: a line is damaged; gives its number.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    if whole:
                        raise DataError(
                            f"{self.path}, line {number}, is incomplete: the file was truncated, or the run was killed "
                            f"while writing. Restore a full copy, or delete this line and use the {number - 1} before."
                        )
                    return
                yield self._parse(line, number)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise DataError(
                f"{self.path}, line {number}, is not valid JSON: {error}. It was damaged after it was written. Restore "
                "a copy of the file."
            ) from error
        if not isinstance(values, dict):
            raise DataError(
                f"{self.path}, line {number}, is not a JSON object, so colm train did not write it. Restore a copy of "
                "the file."
            )
        return values


def to_dict(record: StepRecord) -> dict[str, Any]:
    """Return the record as a JSON object, with the most useful counts first."""
    optional: dict[str, Any] = {} if record.weights is None else {"weights": record.weights}
    if record.noise is not None:
        optional["noise"] = record.noise._asdict()
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
        **optional,
    }


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
        noise=_read_noise(line.get("noise")),
    )


def read_records(path: Path) -> Iterator[StepRecord]:
    """Yield a run's records, without a last line that is not whole. Raises as `StepLog.read` and `from_dict`."""
    return map(from_dict, StepLog(path).read())


def _read_noise(values: Mapping[str, Any] | None) -> NoiseScale | None:
    if values is None:
        return None
    sources = {name: float(scale) for name, scale in values["sources"].items()}
    return NoiseScale(int(values["rows"]), _optional_float(values["overall"]), sources)


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)
