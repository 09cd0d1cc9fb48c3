"""Two trainings do not write to one folder, and a comparison leaves none behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.commands import write_run
from tests.support.files import read_lines
from tests.support.processes import children, start, wait_for_lines

from colm.errors import ConfigError
from colm.lab.cli import main
from colm.lab.run.lock import LOCK_NAME, hold_folder

fcntl = pytest.importorskip("fcntl")

HOLD = """
import sys, time
from pathlib import Path
from colm.lab.run.lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_has_one_training_and_is_free_when_that_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_run(tmp_path), tmp_path / "run"
    with held_elsewhere(run) as process:
        (run / "config.yaml").write_text("{}")
        for flags in ([], ["--overwrite"], ["--resume"]):
            assert main(["train", config, *flags]) == 2
            error = capsys.readouterr().err
            assert f"Another process is training in {run} (process {process.pid} on " in error
            assert "or choose another output_dir" in error
        assert sorted(path.name for path in run.iterdir()) == [LOCK_NAME, "config.yaml"]
    (run / "config.yaml").unlink()
    assert (run / LOCK_NAME).exists()  # left by the kill, and no run
    assert main(["train", config, "training.max_steps=1"]) == 0
    assert not (run / LOCK_NAME).exists()
    with held_elsewhere(tmp_path / "run-replay"):
        assert main(["replay", str(run)]) == 2
        assert "Another process is training in" in capsys.readouterr().err


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", write_run(tmp_path, model="no-such/model")]) == 2
    assert not (tmp_path / "run").exists()
    assert main(["train", str(tmp_path / "run.yaml"), f"output_dir={tmp_path / 'rows.jsonl' / 'run'}"]) == 2
    assert "cannot be created" in capsys.readouterr().err


def test_a_lock_that_was_let_go_of_while_it_was_taken_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock, calls = tmp_path / LOCK_NAME, fcntl.flock, []

    def late(held: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            path.unlink()  # by its holder, which ends
        flock(held, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold_folder(tmp_path):
        assert len(calls) == 2
        assert path.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(held: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_folder(tmp_path):
        assert f"{tmp_path} cannot be locked ({os.strerror(number)}). Nothing stops a second" in caplog.text


def test_a_forked_worker_does_not_hold_on(tmp_path: Path) -> None:
    with hold_folder(tmp_path):
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
    try:
        with hold_folder(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_an_error_lets_the_folder_go(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="wrong"), hold_folder(tmp_path):
            raise ConfigError("wrong")


@pytest.mark.parametrize(
    "command",
    [[name, "x"] for name in ("train", "replay", "compare", "sources", "report", "eval")]
    + [["plan", "x", "--gpu-memory", "1GiB"]],
)
def test_an_interruption_before_anything_was_begun_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    def interrupt(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"colm.lab.cli.{command[0]}.run", interrupt)
    assert main(command) == 130
    assert capsys.readouterr().err == "colm: interrupted; run the same command again\n"


def _training(comparison: int) -> int:
    """Return the process id of the training, a child of the process that forks."""
    (server,) = children(comparison)
    (training,) = children(server)
    return training


@pytest.mark.slow
def test_a_comparison_that_is_told_to_stop_leaves_no_training(tmp_path: Path) -> None:
    config, run = write_run(tmp_path), tmp_path / "run" / "random" / "seed-0"
    command = [sys.executable, "-m", "colm", "compare", config, "--methods", "random", "--seeds", "0"]
    command += ["training.max_steps=80", "training.save_steps=1000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_lines(run / "selection.jsonl", 4, process)
    training = _training(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143
    assert f"stopped by SIGTERM (the training in {run} has exited too); run the same command again" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)
    done = len(read_lines(run / "selection.jsonl"))
    process = subprocess.Popen(command, text=True)
    wait_for_lines(run / "selection.jsonl", done + 4, process)
    training = _training(process.pid)
    process.kill()  # which cannot be passed on
    os.kill(training, signal.SIGSTOP)  # for it not to end before the next start looks
    process.wait()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 2
    assert f"Another process is training in {run} (process {training} on" in again.stderr
    assert "The run" in again.stderr
    for number in (signal.SIGTERM, signal.SIGCONT):
        os.kill(training, number)
    while (run / LOCK_NAME).exists():
        time.sleep(0.05)
    assert subprocess.run(command, timeout=300, check=False).returncode == 0
    assert [line["step"] for line in read_lines(run / "selection.jsonl")] == list(range(80))


@pytest.mark.slow
def test_a_refused_start_of_several_ranks_ends(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    with held_elsewhere(tmp_path / "run"):
        _, errors = start(config, ranks=2).communicate(timeout=120)
        assert "Another process is training in" in errors
        assert not (tmp_path / "run" / "config.yaml").exists()
