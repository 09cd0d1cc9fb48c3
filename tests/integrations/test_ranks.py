"""The Trainer in two gloo processes (DistributedDataParallel) trains what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.test_commands import write_run

SCRIPT = Path(__file__).with_name("train_on_ranks.py")


def run(folder: Path, features: str, weighing: str, world: int) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), features, weighing], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(folder / f"{features}-of-{world}.pt")
    return found


@pytest.mark.slow
def test_the_command_line_in_two_processes(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "colm"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    for again in ([], ["--resume", "training.max_steps=8"]):
        done = subprocess.run(
            [*command, "train", config, *again], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Summary by source") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 8
    lines = [json.loads(line) for line in (tmp_path / "run" / "selection.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    assert lines[0]["pool_count"] == 16  # 4 rows x 2 micro-batches x 2 ranks
    pooled = sum(source["pooled"] for source in summary["sources"].values())
    assert pooled == sum(line["pool_count"] for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("features", "weighing"), [("exact", "uniform"), ("none", "represented"), ("exact", "fitted")])
def test_two_ranks_train_as_one(tmp_path: Path, features: str, weighing: str) -> None:
    one, two = (run(tmp_path / str(world), features, weighing, world) for world in (1, 2))
    for ours, theirs in zip(one["lines"], two["lines"], strict=True):
        for key in ("pool", "kept"):
            assert {name: sorted(rows) for name, rows in ours[key].items()} == {
                name: sorted(rows) for name, rows in theirs[key].items()
            }
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["evaluation"] == pytest.approx(one["evaluation"], rel=1e-5)
    # Fitted weights differ in float noise, which Adam turns into parts of steps of 1e-2 where a gradient is nearly 0.
    atol = 1e-3 if weighing == "fitted" else 1e-5
    for a, b in zip(one["weights"], two["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=atol)
