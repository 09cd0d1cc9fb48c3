"""The commands as a user runs them, with the tiny model on files made here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.commands import write_run
from tests.support.files import read_lines
from tests.support.models import tiny_model

from colm import ConfigError
from colm.lab.cli import main
from colm.models import check_positions


def test_train_leaves_a_run_that_loads_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_run(tmp_path), tmp_path / "run"
    assert main(["train", config]) == 0
    shown = capsys.readouterr().out
    assert "Summary by source" in shown
    assert "rare" in shown
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {
        "steps",
        "seconds",
        "selection_seconds",
        "eval_loss_before",
        "eval_loss_after",
        "small_sources",
        "sources",
        "peak_memory_bytes",
        "memory_kind",
    }
    assert summary["steps"] == 6
    assert summary["eval_loss_after"] < summary["eval_loss_before"]
    rare = summary["sources"]["rare"]
    assert rare["rows"] == 4
    assert rare["kept"] == rare["pooled"] > 0
    assert sum(source["kept"] for source in summary["sources"].values()) == 24
    lines = read_lines(run / "selection.jsonl")
    assert [line["kept_count"] for line in lines] == [4] * 6
    assert yaml.safe_load((run / "config.yaml").read_text())["selection"]["keep"] == 0.5

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert model(**tokenizer("1 + 1 = ", return_tensors="pt")).logits.shape[-1] == len(tokenizer)

    assert main(["train", config]) == 2
    assert "already contains a run" in capsys.readouterr().err
    evaluations = read_lines(run / "evaluations.jsonl")
    assert [(line["step"], line["rows"]) for line in evaluations] == [(step, 4 * step) for step in range(7)]
    assert evaluations[-1]["losses"]["rare"] == rare["eval_loss_after"]
    assert evaluations[-1]["seconds"] == summary["seconds"]
    losses = read_lines(run / "losses.jsonl")
    assert [line["step"] for line in losses] == [2, 4, 6]
    assert losses[2]["loss"] < losses[0]["loss"]
    examples = json.loads((run / "examples.json").read_text())
    assert {example["source"] for kind in examples.values() for example in kind} == {"adding"}
    assert all(example["kept"] > 0 and example["text"] for example in examples["most_kept"])
    assert main(["train", config, "training.max_steps=8", "--resume"]) == 0
    resumed = [line["step"] for line in read_lines(run / "selection.jsonl")]
    assert resumed == list(range(8))
    resumed_evaluations = read_lines(run / "evaluations.jsonl")
    assert [line["step"] for line in read_lines(run / "losses.jsonl")] == [2, 4, 6, 8]
    assert resumed_evaluations[:7] == evaluations
    assert [line["step"] for line in resumed_evaluations] == list(range(9))
    assert json.loads((run / "summary.json").read_text())["steps"] == 8
    assert main(["train", config, "--overwrite", "model=no-such/model"]) == 2
    assert (run / "checkpoint-2").exists()  # nothing is deleted for a run that can not start
    evaluated = ["training.eval_strategy=steps", "training.eval_steps=1", "training.load_best_model_at_end=true"]
    evaluated += ["training.learning_rate=2e-5", "training.save_steps=1"]
    assert main(["train", config, "--overwrite", "training.max_steps=1", *evaluated]) == 0
    assert len((run / "selection.jsonl").read_text().splitlines()) == 1
    assert not (run / "checkpoint-2").exists()


def test_the_losses_of_a_run_are_those_of_the_weights_that_it_saves(tmp_path: Path) -> None:
    config, run = write_run(tmp_path), tmp_path / "run"
    each = [f"training.{name}_{key}" for name in ("eval", "save") for key in ("strategy=steps", "steps=2")]
    diverging = ["training.learning_rate=0.1", "training.warmup_steps=6"]
    diverging += ["training.lr_scheduler_type=constant_with_warmup"]
    assert main(["train", config, "training.load_best_model_at_end=true", *each, *diverging]) == 0
    summary = json.loads((run / "summary.json").read_text())
    losses = {line["step"]: line["losses"] for line in read_lines(run / "evaluations.jsonl")}
    assert summary["best_step"] < summary["steps"] == 6
    after = {name: source["eval_loss_after"] for name, source in summary["sources"].items()}
    assert after == losses[summary["best_step"]] != losses[6]


def test_a_row_longer_than_the_learned_positions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpt2, llama = tiny_model("gpt2"), tiny_model("llama")
    check_positions(gpt2, gpt2.config.max_position_embeddings)
    limit = gpt2.config.max_position_embeddings
    with pytest.raises(ConfigError, match=f"has {limit + 1} tokens, but the model has only {limit} learned positions"):
        check_positions(gpt2, limit + 1)
    check_positions(llama, llama.config.max_position_embeddings + 1)  # rotary positions go on
    assert "more than the" in caplog.text


def test_lora_leaves_an_adapter(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    checkpointing = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
    config = write_run(tmp_path, lora={"r": 4})
    assert main(["train", config, "training.max_steps=2", f"training.{checkpointing}_checkpointing=true"]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_mixture_of_files(tmp_path: Path) -> None:
    write_run(tmp_path)
    config = write_run(
        tmp_path,
        data={"max_length": 32},
        mixture=[{"path": str(tmp_path / "rows.jsonl"), "source": "x"}, {"path": str(tmp_path / "rows.jsonl")}],
    )
    assert main(["train", config, "training.max_steps=1"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["sources"]) == {"x", "adding", "naming", "rare"}  # the second entry keeps its own labels
    assert summary["eval_loss_before"] is None


def test_sources_shows_the_mixture_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", write_run(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for word in ("adding", "naming", "rare", "big", "small", "pool 8, keep 4", "duplicates", "Small sources fill"):
        assert word in shown
    page = (tmp_path / "run" / "sources.html").read_text()
    assert "Name number" in page
    assert main(["train", str(tmp_path / "run.yaml"), "training.max_steps=1"]) == 0  # a page is no run
    assert main(["sources", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_stream_is_shown_and_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    data = {"train": str(tmp_path / "rows.jsonl"), "streaming": True, "max_length": 32, "window": 40}
    config = write_run(tmp_path, data=data)
    assert main(["sources", config]) == 0
    assert "the stream's first 40 rows, including sizes" in capsys.readouterr().out
    assert main(["train", config, "data.validation_rows=1", "data.window=30"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["eval_loss_after"] is not None
    assert json.loads((tmp_path / "run" / "examples.json").read_text()) == {"most_kept": [], "least_kept": []}
    assert main(["eval", str(tmp_path / "run"), "--max-new-tokens", "2"]) == 0  # it keeps what it held out
    assert main(["train", config, "--overwrite", "training.max_steps=2"]) == 0
    assert main(["train", config, "--resume", "training.max_steps=3"]) == 0
    resumed = [line["pool"] for line in read_lines(tmp_path / "run" / "selection.jsonl")]
    assert len(resumed) == 3
    assert sorted(row for rows in resumed[2].values() for row in rows) == list(range(16, 24))
    sizes = "data.source_sizes={adding: 36, naming: 18, rare: 6}"
    assert main(["train", config, sizes, "training.max_steps=1", "--overwrite"]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["small_sources"] == ["naming", "rare"]
    assert main(["sources", config, "data.source_sizes={adding: 36, naming: 18}"]) == 2
    assert "'rare' is in the data, but has no size" in capsys.readouterr().err
    assert main(["train", config, "training.max_steps=-1", "--overwrite"]) == 2
    assert "A stream has no known length" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no-such/model"}, "The tokenizer of 'no-such/model' could not be loaded"),
        ({"data": {"train": "missing.jsonl"}}, "no file 'missing.jsonl'"),
        ({"lora": {"r": 4, "target_modules": ["nothing"]}}, "lora settings do not fit the model"),
        (
            {"training": {"eval_strategy": "sometimes"}},
            "training.eval_strategy='sometimes' is not one of 'no', 'steps'",
        ),
        ({"selection": {"value_module": "v_prj"}}, "value_module='v_prj' does not match any module"),
        ({"selection": {"small_sources": ["addng"]}}, "names 'addng', which is not a source. Did you mean 'adding'"),
    ],
)
def test_errors_are_one_line_and_status_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert main(["train", write_run(tmp_path, **changes)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "config.yaml").exists()  # nothing was begun


def test_an_evaluation_without_a_row_to_spare_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    assert main(["train", config, "data.source_column=prompt", "training.eval_strategy=steps"]) == 2
    assert "training.eval_strategy=steps evaluates, but there is no validation data" in capsys.readouterr().err


def test_resume_without_a_run_begins_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["train", write_run(tmp_path), "--resume", "training.max_steps=1"]) == 0
    assert f"{tmp_path / 'run'} contains no complete checkpoint; the run starts from the beginning." in caplog.text


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "colm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("colm 0")


def test_replay_trains_on_the_recorded_rows_to_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, again = tmp_path / "run", tmp_path / "run-replay"
    assert main(["train", write_run(tmp_path)]) == 0
    assert main(["replay", str(run / "selection.jsonl")]) == 0
    assert "6 steps replayed" in capsys.readouterr().out
    assert (run / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert main(["replay", str(run), "output_dir=" + str(run)]) == 2
    assert "is the run that is replayed" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "none.jsonl")]) == 2
    assert "give the selection.jsonl of a run" in capsys.readouterr().err
    assert main(["replay", str(run)]) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert main(["replay", str(run), "--overwrite", "seed=1", "data.seed=0"]) == 2
    assert "is not the recorded one" in capsys.readouterr().err
    refuse_damaged_records(run, capsys)


def refuse_damaged_records(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, output = run / "selection.jsonl", f"output_dir={run.with_name('other')}"
    whole = record.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged, message in [
        (whole[:-100], "line 6, is incomplete: the file was truncated, or the run was killed while writing"),
        (b"".join(lines[:4]), "contains 4 steps, but"),
        (b"".join([*lines[:2], b"{step" + lines[2][5:], *lines[3:]]), "selection.jsonl, line 3, is not valid JSON"),
        (b"".join([*lines[:2], b"\xff" + lines[2][1:], *lines[3:]]), "selection.jsonl, line 3, is not valid JSON"),
        (b"".join([*lines[:2], b"3\n", *lines[3:]]), "line 3, is not a JSON object, so colm train did not write it"),
    ]:
        record.write_bytes(damaged)
        assert main(["replay", str(run), output]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    record.write_bytes(b"".join(lines[:4]))
    (run / "summary.json").unlink()  # as of a run that was killed
    assert main(["replay", str(run), output]) == 0
    assert "4 steps replayed" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluations_in_half_precision_leave_the_weights_as_they_are(tmp_path: Path) -> None:
    """The Trainer rounds the weights for good in an evaluation before the training, as the first one is."""
    config, run = write_run(tmp_path), tmp_path / "run"
    assert main(["train", config, "training.max_steps=1", "training.bf16_full_eval=true"]) == 0
    assert [line["step"] for line in read_lines(run / "evaluations.jsonl")] == [0, 1]
    assert json.loads((run / "config.json").read_text())["dtype"] == "float32"


def test_a_profile_shows_the_stages_of_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    assert main(["train", config, "--profile", "training.max_steps=6"]) == 0
    shown = capsys.readouterr().out
    assert "mean of 3 steps after 2" in shown
    table = (tmp_path / "run" / "profile.txt").read_text()
    names = ["fetching the pool", "selection pass", "picking", "taking rows", "training", "Optimizer.step#AdamW.step"]
    names += ["evaluation"]
    times = {
        name: float(re.search(rf"^{name} +([\d.]+) ms", table, re.MULTILINE).group(1)) for name in [*names, "step"]
    }
    assert 0.5 * times["step"] < sum(times[name] for name in names) <= times["step"]
    assert times["training"] > times["picking"] > 0
    assert "aten::mm" in table
    trace = json.loads((tmp_path / "run" / "profile_trace.json").read_text())
    assert {"colm: selection pass", "colm: training"} <= {event.get("name") for event in trace["traceEvents"]}


def test_a_run_that_is_too_short_has_no_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["train", write_run(tmp_path), "--profile", "training.max_steps=1"]) == 0
    assert "ended before step 3, so no profile was written" in caplog.text
    assert not (tmp_path / "run" / "profile.txt").exists()
