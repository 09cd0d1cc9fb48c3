"""A pytest plugin: one line of figures for each test as soon as it has ended, and only what is not done is run.

`right.py` loads it in a process of its own, and tells it by environment variables where the figures are and when to
end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from figures import Figures, read_lines

RESULTS = "COLM_GPU_RIGHT_RESULTS"
ENDS = "COLM_GPU_RIGHT_ENDS"
"""Environment variables: the folder, and a time of time.time()."""

PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when the one that began it ends."""

POISONED = ("CUDA error", "device-side assert", "illegal memory access", "CUBLAS_STATUS", "CUDNN_STATUS")
"""In a failure: nothing more works in this process."""


class Progress(NamedTuple):
    """What a slice knows of its tests, in a file: the process that runs them may end at any time."""

    left: list[str] | None  # as collected; None before that
    tried: list[str]  # begun in this slice; one that ended its process is not begun again
    late: list[str]  # begun and not ended in an earlier slice, so they come last

    @staticmethod
    def read(folder: Path) -> Progress:
        """Return what the file holds; nothing where there is none."""
        path = folder / "right.progress.json"
        return Progress(**json.loads(path.read_text())) if path.exists() else Progress(None, [], [])

    def write(self, folder: Path) -> None:
        """Write the file."""
        partial = folder / "right.progress.new"
        partial.write_text(json.dumps(self._asdict()))
        partial.replace(folder / "right.progress.json")


def unit_of(node: str) -> str:
    """Return a test's name in the figures, ``test_picks.py::test_ties``."""
    return node.rpartition("tests/gpu/")[2] or node


def first_line(report: Any) -> str:
    """Return what a failure says first."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr).strip()
    return text.splitlines()[0][:300] if text else "failed without a message"


class Recorder:
    """Writes what tests come to; see the module."""

    def __init__(self, folder: Path, ends: float) -> None:
        self.figures = Figures(folder / "right.jsonl")
        self._folder = folder
        self._ends = ends
        self._parent = os.getppid()
        self._seconds: dict[str, float] = {}
        self._fault: dict[str, str] = {}
        self._broken = {line["unit"] for line in read_lines(folder / "right.jsonl")}  # modules among them

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Leave out what is done, or was tried in this slice."""
        progress = Progress.read(self._folder)
        gone = [
            item for item in items if unit_of(item.nodeid) in progress.tried or self.figures.done(unit_of(item.nodeid))
        ]
        if gone:
            config.hook.pytest_deselected(items=gone)
        items[:] = sorted(
            (item for item in items if item not in gone), key=lambda item: unit_of(item.nodeid) in progress.late
        )
        progress._replace(left=[unit_of(item.nodeid) for item in items]).write(self._folder)

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        """Note that a test begins, unless there is no time left, or nobody who waits for it."""
        if time.time() > self._ends or os.getppid() != self._parent:
            pytest.exit("no time left", returncode=0)
        progress = Progress.read(self._folder)
        progress._replace(tried=[*progress.tried, unit_of(nodeid)]).write(self._folder)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the test's line once it has ended; setup and teardown count where they fail."""
        unit = unit_of(report.nodeid)
        self._seconds[unit] = self._seconds.get(unit, 0.0) + report.duration
        if report.failed:
            self._fault.setdefault(unit, first_line(report))
        elif report.skipped and unit not in self._fault:
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.figures.add(unit, outcome="skipped", seconds=round(self._seconds[unit], 2), reason=reason)
        if report.when != "teardown":
            return
        if unit in self._fault:
            self.figures.fault(unit, self._fault[unit])
            if any(word in self._fault[unit] for word in POISONED):
                pytest.exit("the device's context is lost", returncode=0)
        elif not self.figures.done(unit):
            measured = dict(report.user_properties)
            self.figures.add(unit, outcome="passed", seconds=round(self._seconds[unit], 2), measured=measured)

    def pytest_collectreport(self, report: Any) -> None:
        """Write a module that can not be read as a fault, and that it can be once it can."""
        unit = unit_of(report.nodeid)
        if report.failed:
            self.figures.fault(unit, first_line(report))
        elif unit in self._broken:
            self.figures.add(unit, outcome="passed", seconds=0.0, measured={})


def pytest_configure(config: Any) -> None:
    """Register the recorder, and end with `right.py`, however that ends: a test that hangs would hold the GPU."""
    with contextlib.suppress(OSError, AttributeError):  # of Linux alone
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value)
    config.pluginmanager.register(Recorder(Path(os.environ[RESULTS]), float(os.environ[ENDS])))
