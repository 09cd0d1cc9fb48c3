"""A finished run has a model card, and the Hub gets it with the model and the tokenizer alone."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitInfo, HfApi, ModelCard
from tests.support.commands import write_run
from tests.support.files import contents

from colm.lab.cli import main
from colm.lab.run.card import make_card
from colm.lab.run.folder import RunFolder
from colm.lab.run.settings import resolve_settings

FEW = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "save_strategy": "no"}
SOURCE = {"pooled": 9, "eval_loss_before": 2.0, "eval_loss_after": None}
SUMMARY = {
    "steps": 1200,
    "eval_loss_before": 2.0,
    "eval_loss_after": 1.25,
    "sources": {
        "a|b\nc": {**SOURCE, "rows": 10, "kept": 4},
        "large": {**SOURCE, "rows": 2000, "kept": 1500, "eval_loss_after": 1.0},
    },
}


def card_of(name: str, **changes: Any) -> ModelCard:
    values = {"model": "tiny", "data": {"train": "/secret/place.jsonl"}, "output_dir": "runs/mine"}
    settings = resolve_settings({**values, "training": {"hub_token": "hf_secret", "learning_rate": 3e-4}})
    model = SimpleNamespace(config=SimpleNamespace(_name_or_path=name), **changes)
    return make_card(settings, model, SUMMARY)


def test_a_card_names_data_losses_settings_and_citations() -> None:
    card = card_of("org/base-1B", peft_config={}, model_tags=["trackio"])
    data = card.data.to_dict()
    assert data["base_model"] == "org/base-1B"
    assert data["library_name"] == "peft"
    assert {"colm", "trackio"} <= set(data["tags"])
    assert "license" not in data
    table = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert table[2:] == [
        "| large | 2,000 | 1,500 | 2.000 | 1.000 |",
        "| a\\|b c | 10 | 4 | 2.000 | - |",
        "| all | 2,010 | 1,504 | 2.000 | 1.250 |",
    ]
    assert "# mine" in card.text
    assert "learning_rate: 0.0003" in card.text
    assert "2407.19580" in card.text
    assert "@software{colm" in card.text
    assert "secret" not in str(card)


@pytest.mark.parametrize("name", ["", "/models/base", "a/b/c"])
def test_a_base_that_is_not_on_the_hub_is_left_out(name: str) -> None:
    card = card_of(name)
    assert "base_model" not in card.data.to_dict()
    assert card.data.library_name == "transformers"
    assert not name or name not in str(card)


def test_a_runs_card_is_replaced_with_the_run_and_another_page_stays(tmp_path: Path) -> None:
    config, run = write_run(tmp_path, training=FEW, lora={"r": 2}), tmp_path / "run"
    assert main(["train", config]) == 0
    card = ModelCard.load(run / "README.md")
    assert card.data.library_name == "peft"
    assert "| rare | 4 |" in card.text
    assert "README.md" in RunFolder(run).own()
    assert main(["train", config, "--overwrite", "seed=3"]) == 0
    assert "seed: 3" in (run / "README.md").read_text()
    (run / "README.md").write_text("mine")
    assert main(["train", config, "--overwrite"]) == 0
    assert (run / "README.md").read_text() == "mine"


def test_the_hub_gets_the_card_the_model_and_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commits: list[tuple[str, set[str]]] = []

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, commit_message: str, **given: Any) -> Any:
        assert repo_id == "me/run"
        assert given["token"] == "hf_secret"
        names = {
            name for name in contents(Path(folder_path)) if any(fnmatch(name, each) for each in given["allow_patterns"])
        }
        commits.append((commit_message, names))
        done = SimpleNamespace(done=lambda: True, result=lambda: None, cancel=lambda: None)
        return (
            done if given.get("run_as_future") else CommitInfo("https://huggingface.co/me/run", commit_message, "", "")
        )

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=f"me/{name}"))
    push = {"push_to_hub": True, "hub_token": "hf_secret", "save_strategy": "steps", "save_steps": 1}
    config, run = write_run(tmp_path, training={**FEW, **push}), tmp_path / "run"
    assert main(["train", config]) == 0
    model = {"model.safetensors", "config.json", "generation_config.json"}
    model |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert commits == [("Training in progress, step 1", model), ("Model save", model | {"README.md"})]
    assert set(contents(run)) <= {*RunFolder(run).own(), "_colm.json"}
    assert "| rare | 4 |" in (run / "README.md").read_text()  # not the Trainer's own card

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "upload_folder", fail)
    assert main(["train", config, "--overwrite", "training.hub_strategy=end"]) == 2
    assert "is complete, but it could not be uploaded to me/run (" in capsys.readouterr().err
    assert RunFolder(run).finished
