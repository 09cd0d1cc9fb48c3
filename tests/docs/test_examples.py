"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command: str) -> list[str]:
    """Run a command and return the lines of its steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PL_TRAINER_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("step ")]


def losses(lines: list[str]) -> list[float]:
    return [float(re.findall(r"loss ([\d.]+)", line)[0]) for line in lines]


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 90, path.name


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


@pytest.mark.slow
def test_the_lightning_loop_has_the_weights_of_the_plain_loop_also_when_resumed(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = run(str(EXAMPLES / "plain_loop.py"), "--steps", "4", "--out", str(tmp_path / "plain"))
    script = str(EXAMPLES / "lightning_loop.py")
    whole = run(script, "--steps", "4", "--out", str(tmp_path / "whole"))
    cut = run(script, "--steps", "2", "--out", str(tmp_path / "cut"))
    cut += run(script, "--steps", "4", "--out", str(tmp_path / "cut"))
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    assert cut == whole == plain
    weights = torch.load(tmp_path / "plain" / "checkpoint.pt")["model"]
    for name in ("whole", "cut"):
        trained = torch.load(tmp_path / name / "last.ckpt")["state_dict"]
        assert all(torch.equal(trained[f"model.{key}"], weights[key]) for key in weights)


@pytest.mark.slow
def test_the_lightning_loop_is_the_same_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [str(EXAMPLES / "lightning_loop.py"), "--steps", "4", "--out"]
    one = run(*script, str(tmp_path / "one"))
    monkeypatch.setenv("PL_TRAINER_DEVICES", "2")
    two = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *script, str(tmp_path / "two"))
    assert losses(two) == pytest.approx(losses(one), abs=2e-4)
    assert one[-1].endswith("kept 16 of 32")
    moments = []  # Adam's steps hide a gradient that is too long; its moments do not
    for name in ("one", "two"):
        state = torch.load(tmp_path / name / "last.ckpt")["optimizer_states"][0]["state"]
        moments.append(torch.cat([state[number]["exp_avg"].flatten() for number in state]))
    assert (moments[1] - moments[0]).norm() < 1e-4 * moments[0].norm()
