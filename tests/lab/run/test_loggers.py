"""Loggers get one series for each run, from the first evaluation to the last, and TensorBoard's files are the run's."""

from __future__ import annotations

import json
import re
import sys
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest
from tests.support.commands import write_run
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from colm.lab.cli import main
from colm.lab.run.folder import RunFolder

FEW = {
    "eval_strategy": "no",
    "max_steps": 3,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "report_to": "tensorboard",
}


class Writer:
    """As TensorBoard's SummaryWriter: makes a file in `log_dir` at once and appends to it."""

    made = count()

    def __init__(self, log_dir: str | None = None, purge_step: int | None = None) -> None:
        folder = Path(log_dir or "runs")  # the working directory's, by default
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{next(self.made)}"
        self.path.write_bytes(b"\x18" + bytes(20) + b"brain.Event:2\n")
        self._write("purge_step", purge_step, 0)

    def _write(self, tag: str, value: Any, step: int) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([tag, value, step]) + "\n")

    add_scalar = _write

    def add_text(self, *_: Any) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("tensorboard")
    vars(module)["SummaryWriter"] = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def read_events(path: Path) -> list[tuple[str, float, int]]:
    return [tuple(json.loads(line)) for line in path.read_bytes().splitlines()[1:]]


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_writes_to_the_runs_folder_and_its_files_are_the_runs(tmp_path: Path) -> None:
    config, run = write_run(tmp_path, training=FEW), tmp_path / "run"
    assert main(["train", config]) == 0
    (path,) = (run / "logs").iterdir()
    events = read_events(path)
    steps = {tag: [step for name, _, step in events if name == tag] for tag, _, _ in events}
    assert steps["eval/loss"] == [0, 3] == steps["eval/loss/rare"]
    assert steps["train/loss"] == [1, 2, 3] == steps["train/kept/rare"]
    assert events[0] == ("purge_step", None, 0)
    assert not list(Path.cwd().iterdir())
    assert f"logs/{path.name}" in RunFolder(run).own()

    assert main(["train", config, "--resume", "training.max_steps=4"]) == 0
    added, *_ = [file for file in (run / "logs").iterdir() if file != path]
    assert read_events(added)[0] == ("purge_step", 4, 0)
    assert [step for tag, _, step in read_events(added) if tag == "eval/loss"] == [4]  # not the first one again
    assert {f"logs/{path.name}", f"logs/{added.name}"} <= set(RunFolder(run).own())

    theirs = run / "logs" / "events.out.tfevents.mine"
    theirs.write_bytes(path.read_bytes())
    added.write_bytes(added.read_bytes() + b"\n")
    assert main(["train", config, "--overwrite"]) == 0
    assert not path.exists()
    assert theirs.exists()
    assert added.exists()  # a changed file is not colm's any more
    assert len(list((run / "logs").iterdir())) == 3


@pytest.mark.usefixtures("tensorboard")
def test_a_file_in_the_place_of_the_logs_is_named_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, training=FEW)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("mine")
    assert main(["train", config]) == 2
    assert "names that colm needs: logs. Move them" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name[0] != "_"] == ["logs"]


@pytest.mark.usefixtures("tensorboard")
def test_a_file_that_a_killed_run_left_is_recognized(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    path = Path(Writer(str(tmp_path / "logs")).path)
    folder.grow([f"logs/{path.name}"])
    assert folder.own() == [f"logs/{path.name}"]
    path.write_text("notes")
    assert folder.own() == []


class Session(TrainerCallback):
    """A logger that opens for the first log or the training, whichever comes first, as those of W&B and trackio do."""

    opened: ClassVar[list[list[tuple[int, dict[str, float]]]]] = []
    _open = False

    def _begin(self) -> None:
        if not self._open:
            self.opened.append([])
        self._open = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._begin()
        assert kwargs["model"] is not None
        self.opened[-1].append((state.global_step, dict(logs)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._open = False


def test_every_evaluation_is_in_one_session_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Session)
    monkeypatch.setattr(Session, "opened", [])
    config = write_run(tmp_path, training={**FEW, "report_to": "trackio"})
    assert main(["train", config]) == 0
    (logs,) = Session.opened
    evaluations = [(step, log) for step, log in logs if "eval_loss" in log]
    assert [step for step, _ in evaluations] == [0, 3]
    assert logs[0] == evaluations[0]
    losses = [json.loads(line)["losses"] for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    for (_, log), line in zip(evaluations, losses, strict=True):
        assert {name: log[f"eval_loss/{name}"] for name in line} == line


def test_trackio_logs_at_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs: list[tuple[int | None, dict[str, float]]] = []
    trackio = MagicMock()
    trackio.log = lambda metrics, step=None: logs.append((step, metrics))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    assert main(["train", write_run(tmp_path, training={**FEW, "report_to": "trackio"})]) == 0
    assert [step for step, metrics in logs if "eval/loss" in metrics] == [0, 3]
    assert all(step == metrics["train/global_step"] for step, metrics in logs)
    trackio.finish.assert_called_once()


def test_a_missing_logger_is_one_line_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path, training=FEW)
    (tmp_path / "rows.jsonl").unlink()
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: False)
        assert main(["train", config, f"training.report_to={name}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(f"training.report_to.*{name}.*install", line)
