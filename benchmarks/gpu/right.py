"""Right: do picks, features, training and resumed runs on this device match those on a CPU?

The tests of tests/gpu, one line of figures each. They run in a separate process, which is restarted for the remaining
tests if a test ends it: a CUDA error spoils everything that follows in its process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from figures import UNFINISHED, Figures, Task, begin, read_lines
from right_recorder import ENDS, RESULTS, Progress

ROOT = Path(__file__).parents[2]
WRONG = "COLM_GPU_WRONG_PICK"
"""See tests/gpu/conftest.py."""

ABOUT_PICKS = ["-k", "picks_are_those"]
"""The tests to run if wrong picks are planted."""

LONGEST = 120.0
"""Seconds after which a test is killed; the longest test compiles a model."""

SPARE = 6.0
"""Seconds before the end when no more tests start."""

COMMAND = [
    *(sys.executable, "-m", "pytest", "-c", "tests/gpu/pytest.ini", "--rootdir", ".", "--confcutdir", "tests/gpu"),
    *("tests/gpu", "-p", "right_recorder", "-q", "-s", "--no-header", "--disable-warnings", "--tb=short"),
    "--continue-on-collection-errors",
]


def environment(task: Task) -> dict[str, str]:
    """Return the environment of the test process."""
    paths = [str(Path(__file__).parent), str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    values = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        RESULTS: str(task.results.resolve()),
        ENDS: str(time.time() + task.left() - SPARE),
    }
    return {**values, WRONG: "1"} if task.wrong else values


def run_tests(task: Task) -> str:
    """Run the remaining tests in one process, and return how the process ended."""
    process = subprocess.Popen([*COMMAND, *(ABOUT_PICKS if task.wrong else [])], cwd=ROOT, env=environment(task))
    count, since = -1, time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(0.2)
            tried = len(Progress.read(task.results).tried)
            if tried != count:
                count, since = tried, time.monotonic()
            if time.monotonic() - since > LONGEST:
                return f"did not end within {LONGEST:.0f} s"
            if task.left() < 1:
                return "there was no time to finish it"
        return f"ended its process with status {process.returncode}"
    finally:
        process.kill()
        process.wait()


def unended(results: Path, tried: list[str]) -> list[str]:
    """Return the tests that started but left no line."""
    known = {line["unit"] for line in read_lines(results / "right.jsonl")}
    return [unit for unit in tried if unit not in known]


def faults(results: Path) -> list[str]:
    """Return the units whose last line is a fault."""
    last = {line["unit"]: line for line in read_lines(results / "right.jsonl")}
    return [unit for unit, line in last.items() if "fault" in line]


def run_slice(task: Task) -> int:
    """Run tests until no tests or no time is left; return the exit status."""
    results = task.results
    before = Progress.read(results)
    late = [*before.late, *unended(results, before.tried)]
    tried: list[str] = []
    while True:
        Progress(None, tried, late).write(results)
        ended = run_tests(task)
        progress = Progress.read(results)
        left = None if progress.left is None else [unit for unit in progress.left if unit not in progress.tried]
        lost = unended(results, progress.tried)
        if task.left() < SPARE and (left is None or left or lost):
            return UNFINISHED
        figures = Figures(results / "right.jsonl")
        for unit in lost:
            figures.fault(unit, ended)
        if task.wrong:  # which the tests that are about picks have seen, or not
            break
        if left is None or (left and progress.tried == tried):
            figures.fault("pytest", f"{ended} before it started a test")
            return 1
        if not left:
            break
        tried = progress.tried
    if "pytest" in faults(results):  # from an earlier slice
        figures.add("pytest", outcome="passed", seconds=0.0, measured={})
    return 1 if faults(results) else 0


def main() -> int:
    task = begin("right", __doc__ or "")
    return run_slice(task)


if __name__ == "__main__":
    sys.exit(main())
