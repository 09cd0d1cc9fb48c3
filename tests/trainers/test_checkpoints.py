"""Only complete checkpoints are used; killed and preempted runs end as if never interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.commands import write_run
from tests.support.files import read_lines
from tests.support.processes import children, start, wait_for_lines
from tests.support.trainers import coreset_trainer, lines, same_weights
from transformers import TrainerCallback

from colm import ConfigError
from colm.trainers.checkpoints import (
    begin_checkpoint,
    drop_old_checkpoints,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    own_files,
)
from colm.trainers.preemption import StopOnSignal

KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"
TIMES = ("seconds", "step_seconds")


def checkpoint(run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "deep" / "state.pt").write_bytes(b"state")
    return folder


def test_a_checkpoint_is_used_only_while_all_its_files_are_complete(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    assert last_complete_checkpoint(tmp_path) is None
    for folder in (first, second):
        mark_complete(folder)
    assert last_complete_checkpoint(tmp_path) == second  # by number, not by name
    (second / "deep" / "state.pt").write_bytes(b"sta")  # cut short
    assert last_complete_checkpoint(tmp_path) == first
    (second / "deep" / "state.pt").write_bytes(b"state")
    assert is_complete(second)
    (second / "model.safetensors").unlink()  # partly deleted
    assert not is_complete(second)
    begin_checkpoint(first)  # it is written again
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_the_marker_omits_temporary_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / "checkpoint-is-incomplete.txt").touch()
    mark_complete(folder)
    (folder / "checkpoint-is-incomplete.txt").unlink()
    assert is_complete(folder)


def test_only_own_files_of_own_checkpoints_are_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        mark_complete(checkpoint(tmp_path, step))
    theirs = [
        *("checkpoint-2/notes.txt", "checkpoint-best/model.safetensors", "checkpoint-7/model.safetensors"),
        "checkpoint-1-b/x",
    ]
    for name in theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    half = checkpoint(tmp_path, 5)
    begin_checkpoint(half)  # and then it was killed
    begun = checkpoint(tmp_path, 6)
    (begun / "model.safetensors").unlink()
    (begun / "deep" / "state.pt").unlink()
    begin_checkpoint(begun)
    (begun / "model.safetensors").write_bytes(b"half")
    drop_old_checkpoints(tmp_path, 2, str(tmp_path / "checkpoint-1"))
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert {path.name for path in tmp_path.iterdir() if is_complete(path)} == {"checkpoint-1", "checkpoint-4"}
    assert all((tmp_path / name).read_text() == "mine" for name in theirs)
    assert [path.name for path in (tmp_path / "checkpoint-2").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "checkpoint-3").exists()
    assert not begun.exists()
    assert own_files(half) == []  # its files were there before, and are not ours
    assert (half / "model.safetensors").exists()


def test_the_best_checkpoint_stays_whatever_way_its_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that began in a relative folder may be resumed in an absolute one."""
    for step in (1, 2, 3):
        mark_complete(checkpoint(tmp_path, step))
    monkeypatch.chdir(tmp_path.parent)
    drop_old_checkpoints(tmp_path, 1, f"{tmp_path.name}/checkpoint-1")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3"}


def test_files_already_in_a_checkpoints_folder_are_not_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    begin_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    mark_complete(folder)
    assert json.loads((folder / "coreset_complete.json").read_text()) == {"model.safetensors": 7}
    assert own_files(folder) == ["model.safetensors", "coreset_complete.json"]


def test_a_checkpoint_of_the_last_step_trains_no_further_step(tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 3}
    whole = coreset_trainer(tmp_path, args=args)
    whole.train()
    again = coreset_trainer(tmp_path, args=args)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert [line["step"] for line in lines(tmp_path)] == list(range(6))
    assert same_weights(whole, again)


def test_the_last_complete_checkpoint_stays_until_the_next_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import colm.trainers.saving as saving

    found: list[list[str]] = []

    def mark(folder: Path) -> None:
        found.append(sorted(other.name for other in tmp_path.glob("checkpoint-*") if is_complete(other)))
        mark_complete(folder)

    monkeypatch.setattr(saving, "mark_complete", mark)
    args = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer = coreset_trainer(tmp_path, args=args)
    trainer.train()
    assert found == [[], ["checkpoint-2"], ["checkpoint-4"]]
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert trainer.args.save_total_limit == 1
    saved = torch.load(tmp_path / "checkpoint-6" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 1


def test_sigterm_ends_the_process_again_after_a_training_that_failed(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            assert signal.getsignal(signal.SIGTERM) is not before
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    trainer = coreset_trainer(tmp_path, callbacks=[StopOnSignal(), Fails()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_killed_runs_end_as_one_never_killed() -> None:
    done = subprocess.run(
        [sys.executable, str(KILLS), "--kills", "3"], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    kills, runs = map(int, re.findall(r"(\d+) kills of (\d+) runs", done.stdout)[0])
    assert kills >= 3
    assert f"{runs} of {runs}." in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_saves_logs_it_and_resumes_to_the_same_run(tmp_path: Path, ranks: int) -> None:
    found: list[Any] = []
    for name in ("whole", "cut"):
        config = write_run(tmp_path / name, lora={"r": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]})
        steps = ["training.max_steps=120" if ranks == 1 else "training.max_steps=40", "training.save_steps=1000"]
        run = tmp_path / name / "run"
        process = start(config, *steps, ranks=ranks)
        if name == "cut":
            wait_for_lines(run / "selection.jsonl", 4, process)
            if ranks == 1:
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=120)
                assert process.returncode == 143
            else:  # one rank receives the signal; the other must not wait for it
                os.kill(children(process.pid)[0], signal.SIGTERM)
                _, errors = process.communicate(timeout=120)
            assert re.search(r"stopped by SIGTERM in step \d+; its checkpoint is in .*--resume", errors)
            (saved,) = run.glob("checkpoint-*")
            assert is_complete(saved)
            assert len(read_lines(run / "selection.jsonl")) == int(saved.name.rpartition("-")[2])
            process = start(config, "--resume", *steps, ranks=ranks)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        records = [
            {key: value for key, value in line.items() if key not in TIMES}
            for line in read_lines(run / "selection.jsonl")
        ]
        found.append((records, (run / "adapter_model.safetensors").read_bytes()))
        assert json.loads((run / "summary.json").read_text())["steps"] == len(records)
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]


def test_a_run_resumes_only_with_the_same_pool_size(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    coreset_trainer(tmp_path, args=saving).train()
    pools = [line["pool"] for line in lines(tmp_path)]
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 6, **saving}
    coreset_trainer(tmp_path, args=split).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [line["pool"] for line in lines(tmp_path)] == pools
    other = coreset_trainer(tmp_path, args={**saving, "gradient_accumulation_steps": 6})
    with pytest.raises(ConfigError, match="pools have 12 rows, but now 4 rows x 6 accumulation steps x 1 processes"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
