"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command: str) -> list[str]:
    """Run a command and return the lines of its steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("step ")]


def losses(lines: list[str]) -> list[float]:
    return [float(re.findall(r"loss ([\d.]+)", line)[0]) for line in lines]


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name


@pytest.mark.slow
def test_the_plain_loop_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    script = str(EXAMPLES / "plain_loop.py")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = run(script, "--steps", "6", "--out", str(tmp_path / "whole"))
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    cut = run(script, "--steps", "3", "--out", str(tmp_path / "cut"))
    cut += run(script, "--steps", "6", "--out", str(tmp_path / "cut"))
    assert cut == whole
    one, two = (torch.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_the_accelerate_loop_is_the_same_on_two_processes() -> None:
    script = [str(EXAMPLES / "accelerate_loop.py"), "--cpu", "--steps", "4"]
    one = run(*script)
    two = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *script)
    assert losses(two) == pytest.approx(losses(one), abs=2e-4)
    assert one[-1].endswith("kept 16 of 32")
