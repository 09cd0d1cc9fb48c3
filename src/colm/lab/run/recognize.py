"""Tell colm's files from other files: by size and digest, or by content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from colm.lab.run.yaml12 import write_yaml
from colm.step.record import (
    ANSWER_LINES_NAME,
    ANSWERS_NAME,
    COMPARE_NAME,
    CONFIG_NAME,
    DATA_NAME,
    EVALUATIONS_NAME,
    EXAMPLES_NAME,
    FILE_NAME,
    HARNESS_NAME,
    LOSSES_NAME,
    PARTIAL_ANSWERS_NAME,
    PROFILE_NAME,
    RATES_NAME,
    SUMMARY_NAME,
    TRACE_NAME,
)

BLOCK = 2**16
BLOCKS = 64
"""Number of blocks to read from a larger file. Trained weights differ in every block."""

EVENTS_FOLDER, EVENTS_PREFIX = "logs", "events.out.tfevents."
"""The folder of TensorBoard's files in a run's folder, and how their names begin."""

SETTINGS = {"model", "data", "selection", "training", "output_dir", "seed"}


def identify(path: Path) -> list[Any]:
    """Return a file's size in bytes and a digest of its content, or of evenly spaced blocks if it is large."""
    size = path.stat().st_size
    starts = [0] if size <= BLOCK * BLOCKS else [i * (size - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS)]
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(BLOCK * BLOCKS if len(starts) == 1 else BLOCK))
    return [size, digest.hexdigest()]


def is_recognized(path: Path) -> bool:
    """Return whether the content of a file with one of colm's names shows that colm wrote it.

    Used for files without a recorded size: logs of a killed run, and all files of older versions.
    """
    check = _is_events if path.name.startswith(EVENTS_PREFIX) else RECOGNIZED.get(path.name)
    return check is not None and _holds(check, path)


def is_settings_file(path: Path) -> bool:
    """Return whether a file contains resolved settings exactly as colm writes them."""
    return _holds(_is_settings, path)


def _holds(check: Callable[[Path], bool], path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and check(path)
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return False


def _is_settings(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    if not isinstance(values, dict) or not set(values) >= SETTINGS:
        return False
    return text in (write_yaml(values), yaml.safe_dump(values, sort_keys=False))  # the latter by older versions


def _is_json(*keys: str, inner: tuple[str, ...] = (), **others: tuple[str, ...]) -> Callable[[Path], bool]:
    """Check that a file is an object with these keys as colm writes it.

    Each value must have the keys `inner`, and that of a key in `others` the keys given there.
    """

    def check(path: Path) -> bool:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        if not isinstance(values, dict) or not set(values) >= set(keys) or json.dumps(values, indent=2) + "\n" != text:
            return False
        return not inner or all(
            isinstance(value, dict) and set(value) >= set(others.get(key, inner)) for key, value in values.items()
        )

    return check


def _is_table(*keys: str) -> Callable[[Path], bool]:
    """Check that a file is an object of objects of objects that have these keys."""

    def check(path: Path) -> bool:
        values = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for held in values.values() for entry in held.values()] if isinstance(values, dict) else []
        return bool(entries) and all(isinstance(entry, dict) and set(entry) >= set(keys) for entry in entries)

    return check


def _is_log(*keys: str, first: tuple[str, ...] = ()) -> Callable[[Path], bool]:
    """Check that the lines are JSON objects with these keys; a kill may have cut off the last one."""

    def check(path: Path) -> bool:
        lines = _read_ends(path)
        for number, line in enumerate(lines):
            wanted = first if first and not number else keys
            if line.endswith(b"\n"):
                values = json.loads(line)
                if not isinstance(values, dict) or not set(values) >= set(wanted):
                    return False
            elif not line.startswith(f'{{"{wanted[0]}": '.encode()[: len(line)]):
                return False
        return True

    return check


def _read_ends(path: Path) -> Iterator[bytes]:
    """Yield a file's first line and its last two."""
    with path.open("rb") as file:
        first = file.readline()
        if first:
            yield first
        rest = b"", b""
        for line in file:
            rest = rest[1], line
        yield from filter(None, rest)


def _is_events(path: Path) -> bool:
    """Check that a file begins with the version of TensorBoard's events; a killed process may have left it empty."""
    with path.open("rb") as file:
        begin = file.read(64)
    return not begin or b"brain.Event:" in begin


def _begins_with(pattern: str) -> Callable[[Path], bool]:
    def check(path: Path) -> bool:
        with path.open(encoding="utf-8") as file:
            return re.match(pattern, file.read(2000), re.DOTALL) is not None

    return check


RECOGNIZED: dict[str, Callable[[Path], bool]] = {
    CONFIG_NAME: _is_settings,
    DATA_NAME: _is_json("train", "validation", inner=("rows", "digest"), model=("files", "digest")),
    FILE_NAME: _is_log("step", "pool_count", "pool", "kept"),
    EVALUATIONS_NAME: _is_log("step", "rows", "seconds", "losses"),
    LOSSES_NAME: _is_log("step", "loss"),
    EXAMPLES_NAME: _is_json("most_kept", "least_kept"),
    SUMMARY_NAME: _is_json("steps", "selection_seconds", "small_sources", "sources"),
    ANSWERS_NAME: _is_json("settings", "sources", "all"),
    ANSWER_LINES_NAME: _is_log("source", "index", "right"),
    PARTIAL_ANSWERS_NAME: _is_log("source", "index", "right", first=("run", "questions", "weights")),
    HARNESS_NAME: _is_table("value", "stderr"),
    COMPARE_NAME: _is_table("macro", "steps", "seconds", "selection_seconds"),
    RATES_NAME: _is_table("macro", "best"),
    PROFILE_NAME: _begins_with(r"A step's time by stage, mean of "),
    TRACE_NAME: _begins_with(r"\s*\{\s*\"schemaVersion\""),
}
