"""A pytest plugin that writes one line of figures when each test ends, and runs only tests that are not done.

`right.py` loads it in a separate process; environment variables say where the figures are and when to end.
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
"""Environment variables: the folder, and the end by time.time()."""

PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process receives when its parent ends."""

POISONED = ("CUDA error", "device-side assert", "illegal memory access", "CUBLAS_STATUS", "CUDNN_STATUS")
"""Failure texts after which nothing works in this process."""


class Progress(NamedTuple):
    """A slice's record of its tests, in a file: the process that runs them may end at any time."""

    left: list[str] | None  # as collected; None before that
    tried: list[str]  # started in this slice; a test that ended its process is not started again
    late: list[str]  # started but not finished in an earlier slice, so they come last

    @staticmethod
    def read(folder: Path) -> Progress:
        """Return the file's contents; an empty state without a file."""
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
    """Return the first line of a failure."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr).strip()
    return text.splitlines()[0][:300] if text else "failed without a message"


class Recorder:
    """Writes the outcomes of tests; see the module."""

    def __init__(self, folder: Path, ends: float) -> None:
        self.figures = Figures(folder / "right.jsonl")
        self._folder = folder
        self._ends = ends
        self._parent = os.getppid()
        self._seconds: dict[str, float] = {}
        self._fault: dict[str, str] = {}
        self._broken = {line["unit"] for line in read_lines(folder / "right.jsonl")}  # modules among them

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Skip tests that are done or were tried in this slice."""
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
        """Note that a test starts, unless no time is left or nobody waits for it."""
        if time.time() > self._ends or os.getppid() != self._parent:
            pytest.exit("no time left", returncode=0)
        progress = Progress.read(self._folder)
        progress._replace(tried=[*progress.tried, unit_of(nodeid)]).write(self._folder)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Write the test's line once it has ended; setup and teardown count if they fail."""
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
        """Record a module that cannot be read as a fault, and clear the fault once it can."""
        unit = unit_of(report.nodeid)
        if report.failed:
            self.figures.fault(unit, first_line(report))
        elif unit in self._broken:
            self.figures.add(unit, outcome="passed", seconds=0.0, measured={})


def pytest_configure(config: Any) -> None:
    """Register the recorder, and end whenever `right.py` ends: a test that hangs would hold the GPU."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL.value)
    config.pluginmanager.register(Recorder(Path(os.environ[RESULTS]), float(os.environ[ENDS])))
