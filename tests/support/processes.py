"""Programs in processes of their own: runs of `colm train`, and scripts under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def torchrun(ranks: int) -> list[str]:
    """Return the beginning of a command that starts a program in so many processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]


def run_to_end(command: Sequence[str], *, seconds: float | None, **environment: str) -> None:
    """Run a command, for so many seconds at most, and show the end of its error output if it fails."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-20_000:]


def start(config: str, *more: str, ranks: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*(torchrun(ranks) if ranks > 1 else [sys.executable]), "-m", "colm", "train", config, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and (not path.exists() or path.read_text().count("\n") < count):
        time.sleep(0.01)


def children(process: int) -> list[int]:
    """Return the IDs of a process's children."""
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(number) for number in listing.stdout.split()]
