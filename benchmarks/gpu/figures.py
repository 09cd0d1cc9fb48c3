"""A part's inputs and outputs: a time, a device, a size, and one line for each figure."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

UNFINISHED = 3
"""Exit status of a part that ended normally but had no time for some units."""

PLANT = "COLM_GPU_PLANT"
"""Environment variable for planted faults, such as ``wrong:right,raise:fast,hang:helps``: the page must show each."""

SLICE = "COLM_GPU_SLICE"
"""Environment variable: the name of a line's time slice, under which `run.py` stores the machine."""


class Figures:
    """A file of JSON lines, each written as soon as it is known; lines of an earlier slice count as done.

    Args:
        path: the file, ``<results>/<part>.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = read_lines(path)

    def done(self, unit: str) -> bool:
        """Return whether the unit has a line that is not a fault."""
        return any(line["unit"] == unit and "fault" not in line for line in self._lines)

    def add(self, unit: str, **values: Any) -> None:
        """Write one line: the unit's name and its figures by name."""
        line = {"unit": unit, "slice": os.environ.get(SLICE, ""), **values}
        self._lines.append(line)
        with self._path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                file.write(b"\n")  # after a partial line left by a kill
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(line), flush=True)

    def fault(self, unit: str, text: str) -> None:
        """Write that a unit is wrong or failed; the page shows it in red. The next slice tries it again."""
        self.add(unit, fault=text)


class Task(NamedTuple):
    """What a part should do."""

    figures: Figures
    results: Path  # the folder of the figures
    data: Path  # the unpacked output of pack.py
    tiny: bool  # the rehearsal: sizes for a CPU
    device: torch.device
    ends: float  # by time.monotonic()
    wrong: bool  # a wrong result is planted

    def left(self) -> float:
        """Return the seconds left."""
        return self.ends - time.monotonic()

    def fits(self, seconds: float) -> bool:
        """Return whether a unit of this many seconds on a GPU ends in time; in the rehearsal every unit does."""
        return self.tiny or seconds <= self.left()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of figures, without a partial one left by a kill; empty without a file."""
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def standing(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that count: a fault does not if a later line of its unit is not a fault."""
    last = {line["unit"]: number for number, line in enumerate(lines) if "fault" not in line}
    return [line for number, line in enumerate(lines) if "fault" not in line or number > last.get(line["unit"], -1)]


def begin(part: str, doc: str) -> Task:
    """Read a part's command line, and apply its planted faults."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--data", type=Path, required=True, help="folder of the unpacked archives")
    parser.add_argument("--seconds", type=float, required=True, help="time limit of the part")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU: the rehearsal")
    given = parser.parse_args()
    ends = time.monotonic() + given.seconds
    planted = os.environ.get(PLANT, "").split(",")
    if f"hang:{part}" in planted:
        time.sleep(3600)
    if f"raise:{part}" in planted:
        raise RuntimeError("planted: a part that raises")
    given.results.mkdir(parents=True, exist_ok=True)
    return Task(
        figures=Figures(given.results / f"{part}.jsonl"),
        results=given.results,
        data=given.data,
        tiny=given.tiny,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        ends=ends,
        wrong=f"wrong:{part}" in planted,
    )
