"""A run goes on with its own settings and data, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.commands import write_run
from tests.support.files import contents, read_lines
from tests.support.models import tiny_model
from transformers import Trainer

from colm.errors import ConfigError
from colm.lab.cli import main
from colm.lab.run.changes import find_differences
from colm.lab.run.resume import check_settings
from colm.lab.run.settings import load_settings
from colm.models import load_tokenizer

FEW = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True}


def test_other_settings_or_data_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = write_run(tmp_path, training=FEW, lora={"r": 4}), tmp_path / "run"
    assert main(["train", config]) == 0
    before = contents(run)
    resume = ["train", config, "--resume", "training.max_steps=3"]

    changes = ["seed=7", "selection.keep=0.25", "training.learning_rate=1", "lora.r=2"]
    assert main([*resume, *changes]) == 2
    error = capsys.readouterr().err
    for told in (
        "contains a run with other settings (lora.r: 4 -> 2; selection.keep: 0.5 -> 0.25; selection.seed: 0 -> 7; ",
        "training.learning_rate: 5e-05 -> 1; seed: 0 -> 7). Resume it without the change, start over with --overwrite",
    ):
        assert told in error
    assert "max_steps" not in error

    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("Rare ", "Seldom "))
    assert main(resume) == 2
    assert "The data or the model is not what the run in" in (error := capsys.readouterr().err)
    assert "54 training rows (" in error
    (tmp_path / "rows.jsonl").write_text(rows)

    def fail(*_: Any, **__: Any) -> None:
        raise ConfigError("the checkpoint does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_load_from_checkpoint", fail)
        assert main(resume) == 2
    assert contents(run) == before

    assert main(resume) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["max_steps"] == 3
    assert [line["step"] for line in read_lines(run / "selection.jsonl")] == [0, 1, 2]
    for name in ("data.json", "held_out.jsonl"):  # as an older version left it
        (run / name).unlink()
    (tmp_path / "rows.jsonl").write_text(rows.replace("Rare ", "Seldom "))
    assert main([*resume[:-1], "training.max_steps=4"]) == 0
    assert not (run / "data.json").exists()
    assert not (run / "held_out.jsonl").exists()


def test_a_replay_goes_on_with_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", write_run(tmp_path, training=FEW)]) == 0
    replay = ["replay", str(tmp_path / "run")]
    assert main(replay) == 0
    assert main([*replay, "--resume", "training.learning_rate=1"]) == 2
    assert "(training.learning_rate: 5e-05 -> 1)" in capsys.readouterr().err
    assert main([*replay, "--resume"]) == 0


EACH = [f"training.{name}" for name in ("eval_strategy=steps", "eval_steps=1", "save_strategy=steps", "save_steps=1")]


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        ([], ["output_dir=OTHER", "training.run_name=b", "training.report_to=none", "training.logging_steps=3"], ""),
        ([], ["training.save_steps=5", "training.save_total_limit=1", "training.dataloader_num_workers=1"], ""),
        ([], ["training.max_steps=9", "training.num_train_epochs=2", "training.eval_steps=2"], ""),
        ([], ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=4"], ""),
        ([], ["training.gradient_checkpointing=true", "selection.reuse_forward=true"], ""),
        ([], ["selection.padding_free=true", "data.num_proc=2"], ""),
        ([], ["training.weight_decay=0.0", "training.lr_scheduler_type=linear"], ""),  # the defaults, spelled out
        ([], ["lora.r=4"], "lora: None -> {'target_modules': 'all-linear', 'r': 4}"),
        (["lora.r=4"], ["lora.r=4", "lora.bias=none"], ""),
        (EACH, ["training.load_best_model_at_end=true"], "training.load_best_model_at_end: False -> True"),
        (
            [*EACH, "training.load_best_model_at_end=true"],
            ["training.eval_steps=2", "training.save_steps=2"],
            "training.eval_steps: 1 -> 2; training.save_steps: 1 -> 2",
        ),
        ([*EACH, "training.lr_scheduler_type=reduce_lr_on_plateau"], ["training.eval_steps=2"], "eval_steps: 1 -> 2"),
        ([], ["data.max_length=16", "model=demo"], "model: 'tiny' -> 'demo'; data.max_length: 32 -> 16"),
        ([], ["data.validation_rows={rare: 1}"], "data.validation_rows: 2 -> {'rare': 1}"),
    ],
)
def test_what_may_change(tmp_path: Path, before: list[str], now: list[str], refused: str) -> None:
    config = write_run(tmp_path)
    given = [change.replace("OTHER", f"{tmp_path}/./run") for change in now]
    settings = load_settings(config, [*before, *given])
    (tmp_path / "run").mkdir()
    values = load_settings(config, before).values
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    if not refused:
        check_settings(settings)
        return
    with pytest.raises(ConfigError) as caught:
        check_settings(settings)
    assert refused in str(caught.value)


def test_a_held_configuration_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    settings = load_settings(write_run(tmp_path), [])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: tiny\nold: 1\n")
    with pytest.raises(ConfigError, match=r"The run in .* cannot be resumed: Unknown setting 'old'"):
        check_settings(settings)


def test_differences_name_entries_of_lists() -> None:
    mixture: list[Any] = [{"path": "a", "source": "x"}, {"path": "b"}]
    assert list(find_differences({"m": mixture}, {"m": [mixture[0], {"path": "c"}]})) == [("m.1.path", "b", "c")]
    assert list(find_differences({"m": mixture}, {"m": []})) == [("m", mixture, [])]


def test_what_a_run_was_trained_on_is_in_its_folder(tmp_path: Path) -> None:
    assert main(["train", write_run(tmp_path, training=FEW)]) == 0
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["train"]["rows"] == 54
    assert data["validation"]["rows"] == 6


@pytest.mark.slow
def test_an_adapter_is_not_resumed_on_another_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    tokenizer = load_tokenizer("demo")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(base)
    model = tiny_model(vocab_size=len(tokenizer))
    model.save_pretrained(base)
    config = write_run(tmp_path, model=str(base), training=FEW, lora={"r": 4})
    assert main(["train", config]) == 0
    resume = ["train", config, "--resume", "training.max_steps=3"]
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight += 1e-3
    model.save_pretrained(base)
    assert main(resume) == 2
    assert "the model's files had other weights" in capsys.readouterr().err
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(base)
    assert main(resume) == 0
