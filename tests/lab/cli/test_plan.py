"""`colm plan` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.files import write_settings
from tests.support.models import tiny_model

from colm.lab.cli import main


def write(folder: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "model": "tiny",
        "data": {"train": "demo", "max_length": 24},
        "training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "output_dir": str(folder / "run"),
        **changes,
    }
    return write_settings(folder, values)


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", write(tmp_path), "--gpu-memory", "100MiB", "selection.features=none"]) == 0
    shown = capsys.readouterr().out
    texts = ("pool of 2 x 4 = 8 rows", "coreset step", "What fits", "all rows have 24 tokens", "no selection pass")
    for text in texts:
        assert text in " ".join(shown.split()), shown
    assert "goes through" not in shown
    assert not (tmp_path / "run").exists()


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu-memory", "60MiB", "--json", "--sequence-length", "16", "--labelled", "0.5"]
    assert main(["plan", write(tmp_path), *arguments, "training.bf16=true"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["sequence_length"] == 16
    assert plan["usable_bytes"] == int(0.9 * 60 * 2**20)
    ways = plan["ways"]
    assert list(ways) == ["pool", "coreset_rows", "coreset_step"]
    assert ways["pool"]["relative_time"] == 1
    assert ways["coreset_step"]["selection_bytes"] > 0
    assert ways["pool"]["peak_bytes"] > ways["coreset_step"]["peak_bytes"]
    for way in ways.values():
        training = way["gradients_bytes"] + way["activations_bytes"]
        held = way["parameters_bytes"] + way["optimizer_bytes"]
        assert way["peak_bytes"] == held + max(training, way["selection_bytes"])
    for proposals in plan["proposals"].values():
        same, most = proposals["same_pool"], proposals["largest_pool"]
        assert same["pool"] >= 8
        assert most["gradient_accumulation_steps"] == 2
        assert same["peak"] <= plan["usable_bytes"]
        assert most["peak"] <= plan["usable_bytes"]
    pools = [plan["proposals"][way]["largest_pool"]["pool"] for way in ("pool", "coreset_step")]
    assert pools[0] < pools[1]


def test_several_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu-memory", "60MiB", "--gpus", "8", "--shard", "fsdp2", "selection.keep_count=32"]
    assert main(["plan", write(tmp_path), *arguments, "selection.features=none", "selection.noise_every=0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    texts = ("each of 8 GPUs", "8 x 2 x 4 = 64", "gathered weights", "last micro-batch only", "Each GPU sends")
    for text in texts:
        assert text in shown, shown
    # 32 rows of all GPUs are 4 of each.
    assert "rows trained│ 8│ 4│ 4" in shown.replace(" │", "│"), shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu-memory", "24"], "'24' has no unit"),
        (["--gpu-memory", "5MB"], "cannot hold the model: parameters 0.0"),
        (["--gpu-memory", "1GiB", "model=no/such"], "The configuration of the model 'no/such' could not be read"),
        (["--gpu-memory", "1GiB", "--sequence-length", "1"], "--sequence-length=1 must be at least 2"),
        (["--gpu-memory", "1GiB", "--sequence-length", "2000000"], "--sequence-length=2,000,000 exceeds"),
        (
            ["--gpu-memory", "1GiB", "data.max_length=2000000"],
            "data.max_length=2,000,000 exceeds the limit of 1,048,576",
        ),
        (["--gpu-memory", "1GiB", "--labeled", "0"], "--labeled=0.0 must be above 0"),
        (["--gpu-memory", "1GiB", "training.optim=adafactory"], "Did you mean 'adafactor'"),
        (["--gpu-memory", "1GiB", "training.torch_compile=true"], "training.torch_compile=True changes memory"),
        (["--gpu-memory", "1GiB", "training.gradient_accumulation_steps=0"], "must be a whole number of at least 1"),
        (["--gpu-memory", "1GiB", "--shard", "fsdp2"], "say how many, such as --gpus 8"),
        (["--gpu-memory", "1GiB", "selection.keep=0.1"], "keeps 1, fewer than its 2 micro-batches"),
    ],
)
def test_what_can_not_be_planned(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_layer_inputs_that_are_reused_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, model=str(saved_model(tmp_path)), data={"train": "demo", "max_length": 1024})
    changes = ["selection.reuse_forward=true", "training.gradient_checkpointing=true"]
    assert main(["plan", config, "--gpu-memory", "4GiB", *changes]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    # 8 rows of 1,024 tokens, 4 layer inputs of 32 float32 numbers: 4 MiB, and half of it for the kept rows
    assert "takes 0.0039 GiB more of the GPU's memory during selection" in shown
    assert "and 0.0020 GiB during training" in shown


def saved_model(folder: Path, **changes: Any) -> Path:
    tiny_model("llama", max_position_embeddings=1024, **changes).save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize(("head", "told"), [("labeled", True), ("chunked", False)])
def test_large_logits_have_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, told: bool) -> None:
    config = write(tmp_path, model=str(saved_model(tmp_path, vocab_size=5000)))
    assert main(["plan", config, "--gpu-memory", "100MiB", f"selection.train_head={head}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("selection.train_head=chunked keeps only a chunk" in shown) == told
    assert "goes through the selection pass" in shown
