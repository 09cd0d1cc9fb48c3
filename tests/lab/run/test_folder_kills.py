"""What a kill, or a full disk, leaves in a run's folder."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.files import contents
from tests.support.folders import settings_text, start, train_in

from colm.errors import ConfigError
from colm.lab.run.folder import RunFolder
from colm.lab.run.lock import LOCK_NAME
from colm.step.record import MANIFEST_NAME
from colm.trainers.checkpoints import begin_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    train_in(path, "old")
    return path


@contextmanager
def killed_at(write: int, path: Path) -> Iterator[None]:
    """Kill this process before its `write`-th file operation under a folder."""
    seen, watching = 0, True

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        if not watching:
            return
        touches = (event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)) or event in (
            *("os.rename", "os.remove", "os.mkdir", "os.rmdir"),
        )
        if touches and str(details[0]).startswith(str(path)):
            seen += 1
            if seen == write:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    yield
    watching = False


def run_killed(path: Path, write: int) -> bool:
    """Replace the run in a process that is killed, and return whether it was."""
    child = os.fork()
    if not child:
        try:
            with killed_at(write, path):
                start(path)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_the_old_run_or_the_new_one(trained: Path, tmp_path: Path, every: int) -> None:
    found = set()
    for write in range(1, 200, every):
        path = tmp_path / str(write)
        shutil.copytree(trained, path)
        (path / "notes.txt").write_text("mine")
        old = contents(path)
        killed = run_killed(path, write)
        folder = RunFolder(path)
        with folder.hold():
            held = contents(path)
            held.pop(LOCK_NAME)
            mark = yaml.safe_load(held["config.yaml"])["model"]
            found.add(mark)
            if mark == "old":
                leftover = {name for name in set(held) - set(old) if "." in name and name.rpartition(".")[2].isdigit()}
                assert {name: text for name, text in held.items() if name not in leftover} == {
                    **old,
                    MANIFEST_NAME: held[MANIFEST_NAME],
                }
                assert "model.safetensors" in folder.own()
            else:
                assert {"summary.json", "model.safetensors", "selection.jsonl"}.isdisjoint(held)
                assert {"config.yaml", "data.json"} <= set(held)
        start(path, "after")  # what is advised works
        assert yaml.safe_load((path / "config.yaml").read_text())["model"] == "after"
        assert (path / "notes.txt").read_text() == "mine"
        if not killed:
            break
    assert found == {"old", "next"}
    assert write > 20


def test_a_full_disk_as_a_run_begins_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_in(tmp_path, "old")
    before = contents(tmp_path)
    folder = RunFolder(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, folder.hold():
        patch.setattr("colm.lab.run.folder.replace_lines", fail)
        with pytest.raises(OSError, match="No space"):
            folder.begin({"config.yaml": settings_text()})
    assert contents(tmp_path) == before


def test_a_killed_write_of_a_file_is_still_ours(tmp_path: Path) -> None:
    train_in(tmp_path)
    folder = RunFolder(tmp_path)
    old = (tmp_path / "summary.json").read_bytes()
    folder.write("summary.json", "{}\n")
    for text in (b"{}\n", old):  # renamed already, or not yet
        (tmp_path / "summary.json").write_bytes(text)
        assert "summary.json" in folder.own()


def test_a_checkpoint_that_a_kill_left_incomplete_is_replaced_and_one_of_another_trainer_is_not(tmp_path: Path) -> None:
    train_in(tmp_path)
    folder, path = RunFolder(tmp_path), tmp_path / "checkpoint-3"
    folder.announce(path.name)
    begin_checkpoint(path)
    (path / "model.safetensors").write_text("half")
    assert f"{path.name}/model.safetensors" in folder.own()
    (path / "coreset_begun.json").unlink()  # ours was deleted, and this is another's
    with pytest.raises(ConfigError, match="checkpoint-3/model.safetensors"):
        start(tmp_path)
