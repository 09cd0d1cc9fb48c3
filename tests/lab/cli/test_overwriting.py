"""What the commands do to files that are not theirs, to a run that they would replace, and after they were stopped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.commands import write_run
from tests.support.files import contents, read_lines
from transformers import Trainer

from colm.lab.cli import main
from colm.step.record import ANSWER_NAMES, RUN_NAMES
from colm.trainers.checkpoints import may_be_written, own_files
from colm.trainers.mixin import CoresetMixin

FEW = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 2,
    "save_steps": 1,
    "use_cpu": True,
}
MINE = b"# mine\n"
TIMES = ("seconds", "step_seconds")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with rows, settings and a run."""
    folder = tmp_path_factory.mktemp("done")
    assert main(["train", write_run(folder, training=FEW)]) == 0
    return folder


def copy_of(done: Path, place: Path, *, run: bool = True) -> tuple[str, Path]:
    """Return settings for a copy of the run, and its folder."""
    if run:
        shutil.copytree(done / "run", place / "run")
    return write_run(place, training=FEW), place / "run"


NAMES = (*RUN_NAMES, "model.safetensors", "config.json", "tokenizer.json", "checkpoint-1")


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]], ids=["plain", "overwrite", "resume"])
def test_a_training_refuses_a_file_of_somebody_else_under_its_names(
    done: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        place = tmp_path / name
        place.mkdir()
        config, run = copy_of(done, place, run=False)
        theirs = run / name / "optimizer.pt" if name == "checkpoint-1" else run / name
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(MINE)
        assert main(["train", config, *flags]) == 2
        assert name in (error := capsys.readouterr().err)
        assert "Move them, or choose another folder" in error
        assert contents(run) == {theirs.relative_to(run).as_posix(): MINE}


def test_every_name_that_a_checkpoint_has_is_looked_for(done: Path) -> None:
    checkpoint = done / "run" / "checkpoint-1"
    written = sorted(contents(checkpoint))
    assert may_be_written(checkpoint) == written
    assert sorted(own_files(checkpoint)) == written


def test_the_settings_and_the_data_may_stand_in_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, training=FEW, output_dir=".", data={"train": "data.json", "max_length": 32})
    rows = read_lines(tmp_path / "rows.jsonl")
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "run.yaml").rename(tmp_path / "config.yaml")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--overwrite"], ["--resume"]):
        assert main(["train", "config.yaml", *flags]) == 2
        assert "config.yaml, data.json" in capsys.readouterr().err
        assert contents(tmp_path) == before
    for name, other in (("config.yaml", "mine.yaml"), ("data.json", "mine.json")):  # as is advised
        (tmp_path / name).rename(tmp_path / other)
    for flags in ([], ["--overwrite"]):
        assert main(["train", "mine.yaml", "data.train=mine.json", *flags]) == 0
        assert (tmp_path / "mine.json").read_bytes() == before["data.json"]
        assert (tmp_path / "mine.yaml").read_bytes() == before["config.yaml"]


@pytest.mark.parametrize(
    "change",
    [
        "training.learning_rate=-1.0",
        "training.lr_scheduler_type=cosine_with_min_lr",
        "training.optim=galore_adamw",
        "model=no-such/model",
        "data.max_length=2",
        "selection.value_module=none",
    ],
)
def test_what_is_refused_late_leaves_the_old_run(done: Path, tmp_path: Path, change: str) -> None:
    config, run = copy_of(done, tmp_path)
    before = contents(run)
    with suppress(Exception):  # how it is said is not what this is about
        assert main(["train", config, "--overwrite", change]) == 2
    assert contents(run) == before


def test_a_new_run_does_not_read_what_it_replaces(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = copy_of(done, tmp_path)
    before = contents(run)
    for model in (run, run / "checkpoint-1"):
        assert main(["train", config, "--overwrite", f"model={model}"]) == 2
        assert "would be replaced, but the new run reads it" in capsys.readouterr().err
    assert contents(run) == before


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ctrl-C come as a step ends."""
    commit: Callable[[Any], None] = CoresetMixin.commit_step

    def interrupted(trainer: Any) -> None:
        commit(trainer)
        if trainer.state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(CoresetMixin, "commit_step", interrupted)


def records(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_lines(run / "selection.jsonl")]


@pytest.mark.parametrize("command", ["train", "replay"])
def test_what_is_advised_after_ctrl_c_works(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config, run = copy_of(done, tmp_path)
    again = run if command == "train" else tmp_path / "run-replay"
    start = [command, config if command == "train" else str(run), "--overwrite"]
    with monkeypatch.context() as patch:  # before anything is begun: the old run is there, and not to be resumed
        patch.setattr("colm.lab.run.train.prepare_data", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        before = contents(again) if again.exists() else {}
        assert main(start) == 130
        assert "nothing was started; run the same command again" in capsys.readouterr().err
        assert (contents(again) if again.exists() else {}) == before
    for step, flags in ((1, ["--overwrite"]), (2, ["--resume"])):  # before the first checkpoint, and after it
        with monkeypatch.context() as patch:
            stop_at(step, patch)
            assert main([*start[:2], *flags]) == 130
        assert "colm: interrupted; resume with --resume" in capsys.readouterr().err
    assert main([*start[:2], "--resume"]) == 0
    assert records(again) == records(done / "run")
    assert (again / "model.safetensors").read_bytes() == (done / "run" / "model.safetensors").read_bytes()


def test_a_full_disk_is_said_and_the_run_resumes(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = copy_of(done, tmp_path, run=False)
    save, calls = torch.save, []

    def full(*given: Any, **more: Any) -> None:
        calls.append(given)
        if len(calls) > 8:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        save(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert main(["train", config]) == 2
    error = capsys.readouterr().err
    assert f"{run} cannot be written (not all bytes could be written, as when the disk is full)" in error
    assert "Traceback" not in error
    assert main(["train", config, "--resume"]) == 0
    assert records(run) == records(done / "run")


def test_a_changed_settings_file_stays_as_it_is(done: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, run = copy_of(done, tmp_path)
    theirs = (run / "config.yaml").read_text().replace("max_steps: 2", "max_steps: 3  # longer")
    (run / "config.yaml").write_text(theirs.replace(str(done), str(tmp_path)))
    theirs = (run / "config.yaml").read_text()
    assert main(["train", str(run / "config.yaml"), "--resume"]) == 0
    assert len(records(run)) == 3
    assert main(["train", config, "--resume", "training.max_steps=4"]) == 0
    assert "was changed, so it stays as it is" in caplog.text
    assert (run / "config.yaml").read_text() == theirs
    assert main(["train", config, "--overwrite"]) == 2
    (run / "config.yaml").rename(tmp_path / "mine.yaml")
    assert main(["train", config, "--resume"]) == 2  # nothing tells what it was trained with
    assert main(["train", config, "--overwrite"]) == 0


def test_other_commands_leave_files_of_somebody_else(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = copy_of(done, tmp_path)
    replay, compared = tmp_path / "run-replay", tmp_path / "compared"
    compare = ["compare", config, f"output_dir={compared}"]
    commands = {
        **{run / name: ["eval", str(run), "--limit", "1", "--max-new-tokens", "1"] for name in ANSWER_NAMES},
        run / "report.html": ["report", str(run)],
        run / "sources.html": ["sources", config],
        tmp_path / "page.html": ["report", str(run), "--out", str(tmp_path / "page.html")],
        tmp_path / "labels.parquet": ["sources", "--cluster", str(tmp_path / "rows.jsonl"), "--out"],
        replay / "config.yaml": ["replay", str(run)],
        compared / "compare.html": compare,
        compared / "compare.json": compare,
        compared / "random" / "seed-0.yaml": [*compare, "--methods", "random", "--seeds", "0"],
        run / "labels.centroids.npz": ["train", config, "--overwrite", "sources.cluster.clusters=2"],
        run / "labels.parquet.lock": ["train", config, "--overwrite", "sources.cluster.clusters=2"],
    }
    for path, command in commands.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MINE)
        before = contents(tmp_path)
        assert main([*command, *([str(path)] if command[-1] == "--out" else [])]) == 2, path
        assert path.name in capsys.readouterr().err
        found = contents(tmp_path)
        assert {name: found[name] for name in before} == before, path
        path.unlink()


def test_pages_and_answers_of_ours_are_written_again(done: Path, tmp_path: Path) -> None:
    config, run = copy_of(done, tmp_path)
    commands = [["report", str(run)], ["sources", config], ["eval", str(run), "--limit", "1", "--max-new-tokens", "1"]]
    for command in commands * 2:
        assert main(command) == 0
    for name in ("report.html", "answers.json"):
        (run / name).write_text((run / name).read_text().replace("e", "a", 1))
    assert main(commands[0]) == main(commands[2]) == 2
    theirs = contents(run)
    assert main(["train", config, "--overwrite"]) == 0
    found = contents(run)
    assert all(found[name] == theirs[name] for name in ("report.html", "answers.json"))
    assert "answers.jsonl" not in found  # which said nothing of the new run


@pytest.mark.parametrize("given", ["file", "within"])
def test_a_place_that_cannot_be_written_is_said_before_the_work(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    config, run = copy_of(done, tmp_path)
    (tmp_path / "file").write_bytes(MINE)
    place = str(tmp_path / "file") if given == "file" else str(tmp_path / "file" / "run")
    for name in ("train.prepare_data", "prepare.prepare_data", "prepare.read_rows_of", "target.load_target"):
        monkeypatch.setattr(f"colm.lab.run.{name}", lambda *_, **__: pytest.fail("worked before"))
    for command in (
        ["train", config, f"output_dir={place}"],
        ["replay", str(run), f"output_dir={place}"],
        ["sources", config, f"output_dir={place}"],
        ["sources", config, "--out", place],
        ["sources", "--cluster", str(tmp_path / "rows.jsonl"), "--out", f"{place}/labels.parquet"],
        ["eval", str(run), "--out", place],
        ["report", str(run), "--out", place],
        ["compare", config, f"output_dir={place}"],
    ):
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert error.startswith("colm: ")
    assert (tmp_path / "file").read_bytes() == MINE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return what mounts a disk with options; the test is skipped where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        first = ["-t", "tmpfs", "-o", options, "none"]
        command = ["mount", *(["-o", options] if mounted else first), str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no disk can be mounted here")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_small_disk_and_one_that_is_read_only_are_said_before_the_work(
    done: Path,
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, run = copy_of(done, tmp_path)
    disk = small_disk("size=3m")
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained before"))
    assert main(["train", config, f"output_dir={disk / 'run'}"]) == 2
    assert re.search(r"has room for [\d,]+ bytes, but the model alone takes 3,\d", capsys.readouterr().err)
    small_disk("remount,ro")
    for command in (
        ["train", config, f"output_dir={disk}"],
        ["train", config, f"output_dir={disk / 'run'}"],
        ["eval", str(run), "--out", str(disk)],
        ["sources", config, "--out", str(disk / "page.html")],
        ["report", str(run), "--out", str(disk / "page.html")],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "Read-only file system" in error
        assert "Tokenizing" not in error
