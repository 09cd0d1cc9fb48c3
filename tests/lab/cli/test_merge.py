"""`colm merge`: one model with the logits of the base with its adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.support.commands import write_run
from tests.support.files import contents
from tests.support.models import tiny_model

from colm.lab.cli import main
from colm.lab.run.named import find_model
from colm.lab.run.target import find_target, load_target


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    lora = {"r": 4, "target_modules": ["v_proj", "down_proj"]}
    assert main(["train", write_run(folder, lora=lora), "training.max_steps=2", "training.learning_rate=0.1"]) == 0
    return folder / "run"


def logits_of(name: Path) -> torch.Tensor:
    model, tokenizer = load_target(find_target(str(name), []))
    with torch.no_grad():
        logits: torch.Tensor = model(**tokenizer("3 + 1 = ", return_tensors="pt")).logits
    return logits


def test_the_merged_model_has_the_logits_of_the_run(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = contents(run), tmp_path / "new" / "merged"
    assert main(["merge", str(run), "--out", str(out)]) == 0
    assert f"Written to {out}." in capsys.readouterr().out
    assert find_model(str(out)).adapter is None
    torch.testing.assert_close(logits_of(out), logits_of(run), rtol=1e-4, atol=1e-4)
    adapted, tokenizer = load_target(find_target(str(run), []))
    with adapted.disable_adapter(), torch.no_grad():
        base = adapted(**tokenizer("3 + 1 = ", return_tensors="pt")).logits
    assert (base - logits_of(out)).abs().max() > 0.01
    assert contents(run) == before
    assert [path.name for path in out.parent.iterdir()] == ["merged"]  # nothing else is left


def test_a_checkpoint_is_merged_into_an_empty_folder(tmp_path: Path, run: Path) -> None:
    assert main(["merge", str(run / "checkpoint-2"), "--out", str(tmp_path)]) == 0
    torch.testing.assert_close(logits_of(tmp_path), logits_of(run), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_merged(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, quantized = tmp_path / "full", tmp_path / "quantized"
    tiny_model().save_pretrained(full)
    tiny_model().save_pretrained(quantized)
    config = json.loads((quantized / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (quantized / "config.json").write_text(json.dumps({**config, **settings}))
    tiny_model(lora=True).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(quantized)}))
    (tmp_path / "file").touch()
    capsys.readouterr()
    for name, out, message in [
        (full, "out", "has no adapter to merge"),
        (tmp_path / "adapter", "out", "is quantized"),
        (tmp_path / "gone", "out", "gone"),
        (run, "full", "already contains something; choose a new or an empty folder"),
        (run, "file", "already contains something"),
    ]:
        assert main(["merge", str(name), "--out", str(tmp_path / out)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("colm: ")
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
