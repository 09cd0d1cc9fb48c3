"""Runs that a comparison forks are those that it would start anew."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run
from tests.support.files import read_lines

from colm.errors import ConfigError
from colm.lab.study.child import Start, start_with
from colm.lab.study.forks import ForkServer

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks only on Linux")


@linux
def test_a_fork_returns_the_status_of_its_command(capfd: pytest.CaptureFixture[str]) -> None:
    with ForkServer() as server:
        assert [server.start(["train", name]).wait() for name in ("one.yaml", "two.yaml")] == [2, 2]
        output = capfd.readouterr()
        assert output.out == ""
        assert all(f"no configuration file '{name}'" in output.err for name in ("one.yaml", "two.yaml"))
        server._process.kill()
        server._process.wait()
        with pytest.raises(ConfigError, match=r"ended with exit status -9; .* same command again to continue"):
            server.start(["train", "three.yaml"])


@linux
@pytest.mark.slow
def test_a_fork_trains_as_a_fresh_process_does(tmp_path: Path) -> None:
    config = write_run(tmp_path)

    def trained(start: Start) -> dict[str, Any]:
        assert start(["train", config, "--overwrite"]).wait() == 0
        run = tmp_path / "run"
        times = ("seconds", "step_seconds")
        return {
            "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
            "lines": [
                {k: v for k, v in line.items() if k not in times} for line in read_lines(run / "selection.jsonl")
            ],
            "peak": json.loads((run / "summary.json").read_text())["peak_memory_bytes"],
        }

    fresh = trained(start_with([sys.executable]))
    with ForkServer() as server:
        forked = [trained(server.start) for _ in range(2)]
    for found in forked:
        assert found.pop("peak") == pytest.approx(fresh["peak"], rel=0.05)
    assert forked == [{key: fresh[key] for key in ("weights", "lines")}] * 2


@linux
@pytest.mark.slow
def test_a_fork_hears_signals(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    with ForkServer() as server:
        fork = server.start(["train", config])
        fork.terminate()  # it may not have begun
        assert fork.wait() in (-signal.SIGTERM, 143)
        fork = server.start(["train", config, "training.max_steps=100000", "training.save_strategy=no"])
        while not (tmp_path / "run" / "selection.jsonl").exists():
            time.sleep(0.2)
        fork.terminate()
        assert fork.wait() == 143
        fork = server.start(["train", config, "--resume"])
        os.kill(fork._number, signal.SIGKILL)
        assert fork.wait() == -signal.SIGKILL
