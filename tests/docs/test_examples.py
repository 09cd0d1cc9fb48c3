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
def test_the_fsdp2_loop_is_the_same_on_two_processes_and_resumes(tmp_path: Path) -> None:
    script = [str(EXAMPLES / "fsdp2_loop.py"), "--out"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *script, str(tmp_path / "two")]
    one = run("-m", "torch.distributed.run", "--standalone", *script, str(tmp_path / "one"), "--steps", "4")
    cut = run(*two, "--steps", "2") + run(*two, "--steps", "4")
    assert losses(cut) == pytest.approx(losses(one), abs=2e-4)
    assert losses(one)[-1] < losses(one)[0] - 0.5


@pytest.mark.slow
def test_ray_train_resumes_to_the_same_losses(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'colm[ray]'")
    found = []
    for workers in (1, 2):
        command = [sys.executable, str(EXAMPLES / "ray_train.py"), "--workers", str(workers), "--out"]
        for steps in (2, 4):
            done = subprocess.run(
                [*command, str(tmp_path / str(workers)), "--steps", str(steps)],
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        found.append(losses(sorted(set(re.findall(r"step \d+: loss [\d.]+", done.stdout)))))
    assert found[1] == pytest.approx(found[0], abs=2e-4)


def test_the_slurm_job_starts_a_process_for_each_gpu_and_requeues_itself(tmp_path: Path) -> None:
    programs = {
        "srun": 'export SLURM_NTASKS=2\nfor i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" || s=$?; done; exit $s',
        "scontrol": 'echo "scontrol $*" >&2; [ "$1" != show ] || printf "host0\nhost1\n"',
        "colm": 'echo "$RANK $LOCAL_RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT: $*"; exit 143',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "70005",
        "SLURM_JOB_NODELIST": "host[0-1]",
    }
    script = EXAMPLES / "launch" / "slurm.sh"
    done = subprocess.run(["bash", str(script), "my run.yaml"], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{i} {i} of 2 at host0:30005: train my run.yaml --resume" for i in (0, 1)]
    assert done.stderr.splitlines() == ["scontrol show hostnames host[0-1]", "scontrol requeue 70005"]
    assert done.returncode == 143


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
