"""A run whose model is an adapter: it is continued, or refused with a remedy that works."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.commands import write_run
from tests.support.files import read_lines

from colm.errors import ConfigError
from colm.lab.cli import main
from colm.lab.run.check import check_run
from colm.lab.run.named import find_model
from colm.lab.run.settings import load_settings, resolve_settings
from colm.lab.run.trainer import build_model
from colm.lab.run.yaml12 import read_yaml, write_yaml
from colm.models import train_tiny_tokenizer

FEW = {
    **{"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "use_cpu": True},
    **{"disable_tqdm": True, "eval_strategy": "no"},
}
ANSWERS = ["--max-new-tokens", "2", "--limit", "1"]
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def figure(run: Path, name: str) -> float:
    value: float = json.loads((run / "summary.json").read_text())[name]
    return value


def train(config: str, *overrides: str) -> None:
    assert main(["train", config, *overrides]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a model, `base`, and a LoRA on it, `run`; `tiny` is a LoRA on random weights."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_run(folder, training=FEW)
    train(config, f"output_dir={folder}/base", "training.max_steps=1")
    train(config, f"model={folder}/base", f"lora={json.dumps(LORA)}")
    train(config, f"lora={json.dumps(LORA)}", f"output_dir={folder}/tiny", "seed=3")
    return folder


@pytest.fixture
def config(trained: Path) -> str:
    return str(trained / "run.yaml")


def go_on(trained: Path, name: str, out: Path, **lora: Any) -> list[str]:
    """Return overrides of a run that continues an adapter."""
    return [f"model={trained / name}", f"lora={json.dumps({**LORA, **lora})}", f"output_dir={out}"]


@pytest.mark.parametrize("name", ["run/checkpoint-2", "tiny/"])
def test_training_begins_where_the_adapter_ended(
    trained: Path, config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    before = trained / name.partition("/")[0]
    with caplog.at_level(logging.INFO):
        train(config, *go_on(trained, name, tmp_path), "seed=3" if "tiny" in name else "seed=0")
    assert figure(tmp_path, "eval_loss_before") == pytest.approx(figure(before, "eval_loss_after"), abs=1e-6)
    assert figure(tmp_path, "eval_loss_after") != figure(tmp_path, "eval_loss_before")
    assert "Training continues from the adapter" in caplog.text


@pytest.mark.parametrize(
    "lora",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
        {"use_dora": True, "use_rslora": True},
        {"modules_to_save": ["lm_head", "norm"]},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"trainable_token_indices": [5, 6], "lora_dropout": 0.1},
        {"layers_to_transform": [1, 2], "layers_pattern": "layers"},
        {"layer_replication": [[0, 2], [1, 4]]},
        {"target_modules": r".*\.[13]\..*v_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    ],
    ids=str,
)
def test_adapters_of_any_shape(tmp_path: Path, lora: dict[str, Any]) -> None:
    tokenizer = train_tiny_tokenizer(["some text"])
    settings = resolve_settings({"model": "tiny", "seed": 3, "output_dir": "out", "lora": {**LORA, **lora}})
    model = build_model(settings, tokenizer)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text(write_yaml(settings.values))
    ids = torch.arange(5, 25)[None]

    def load(**lora: Any) -> None:
        again = resolve_settings({"model": str(tmp_path), "output_dir": "again", "lora": lora})
        loaded = build_model(again, tokenizer)
        assert loaded.eval()(ids).logits.equal(model.eval()(ids).logits)
        assert [n for n, p in loaded.named_parameters() if p.requires_grad] == trained

    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    load(**{**LORA, **lora})
    try:
        load(r=4)
    except ConfigError as error:  # it does not say which layers: what the message advises works
        advised = re.search(r"set in lora (\{.*\}), and no other", str(error))
        assert advised is not None
        load(r=4, **read_yaml(advised[1]))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (None, r"is a LoRA adapter on '.*base', but lora is null\. .* \{r: 4, target_modules: \[q_proj, v_proj\]\}\. "),
        ({"r": 8}, r"a LoRA adapter with \{r: 4\}, but lora says \{r: 8\}. Use the adapter's settings"),
        ({"lora_alpha": 8}, r"with \{lora_alpha: 16\}, but lora says \{lora_alpha: 8"),
        ({"use_dora": True}, r"with \{use_dora: false\}, but lora says \{use_dora: true\}"),
        ({"modules_to_save": ["lm_head"]}, r"with \{modules_to_save: null\}, but lora says"),
        ({"layers_to_transform": [1]}, r"with \{layers_to_transform: null\}, but lora says"),
    ],
)
def test_other_settings_are_refused_before_the_data_is_read(
    trained: Path, config: str, tmp_path: Path, lora: dict[str, Any] | None, message: str
) -> None:
    given = go_on(trained, "run", tmp_path / "out", **(lora or {}))
    settings = load_settings(config, [*given, *(["lora=null"] if lora is None else []), "data.train=missing.jsonl"])
    with pytest.raises(ConfigError, match=message):
        check_run(settings)


def test_what_null_advises_works(trained: Path, config: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(load_settings(config, [f"model={trained}/run"]))
    advised = re.search(r"set lora to its settings, (\{.*?\})", str(caught.value))
    assert advised is not None
    check_run(load_settings(config, [f"model={trained}/run", f"lora={advised[1]}", f"output_dir={tmp_path}"]))


def test_other_layers_are_refused(trained: Path, config: str, tmp_path: Path, capsys: Any) -> None:
    given = go_on(trained, "run", tmp_path / "out", target_modules="all-linear")
    assert main(["train", config, *given]) == 2
    error = capsys.readouterr().err
    assert "is an adapter on 8 layers, but the lora settings select 28" in error
    assert "set in lora {target_modules: [q_proj, v_proj]}" in error
    assert not (tmp_path / "out" / "config.yaml").exists()


def settings_of_adapter(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def content(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: bool((folder / name).write_text(text)) and None


def whole(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def no_base(folder: Path) -> None:
    settings_of_adapter(base_model_name_or_path=None)(folder)
    (folder / "config.yaml").unlink()


def other_kind(folder: Path) -> None:
    held = json.loads((folder / "adapter_config.json").read_text())
    kept = {key: held[key] for key in ("base_model_name_or_path", "task_type")}
    (folder / "adapter_config.json").write_text(json.dumps({**kept, "peft_type": "IA3"}))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (content("adapter_config.json", '{"r": 4,'), "The adapter_config.json of '.*' cannot be read"),
    "a list": (content("adapter_config.json", "[1]"), "The adapter_config.json of '.*' cannot be read"),
    "empty": (content("adapter_config.json", "{}"), r"does not say which kind of adapter it is \(peft_type\)"),
    "no text": (lambda folder: content("adapter_config.json", "\0")(folder), "cannot be read"),
    "no weights": (
        without("adapter_model.safetensors"),
        r"but not the adapter's weights \(adapter_model.safetensors or",
    ),
    "whole weights": (whole, "contains both a full model and an adapter .*Keep one"),
    "no base": (no_base, "does not say which model it was trained on; set base_model_name_or_path in its"),
    "a base that has gone": (
        settings_of_adapter(base_model_name_or_path="/nonexistent/base"),
        "was trained on '/nonexistent/base', which cannot be loaded. Restore it, or set base_model_name_or_path",
    ),
    "a base that is a number": (settings_of_adapter(base_model_name_or_path=5), "was trained on '5', which cannot"),
    "another kind": (other_kind, "an adapter of type IA3, .* merge it into its base"),
    "an unknown kind": (settings_of_adapter(peft_type="XYZ"), "The adapter_config.json of '.*' cannot be read"),
    "another task": (settings_of_adapter(task_type="SEQ_CLS"), r"is for SEQ_CLS, not for a causal language model"),
    "another rank": (settings_of_adapter(r=8), r"with \{r: 8\}, but lora says \{r: 4\}"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_adapters_that_are_not_whole(trained: Path, config: str, tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    shutil.copytree(trained / "run", tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=message) as caught:
        check_run(load_settings(config, go_on(tmp_path, "adapter", tmp_path / "out")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["abc", ""])
def test_weights_that_cannot_be_read(trained: Path, config: str, tmp_path: Path, capsys: Any, text: str) -> None:
    shutil.copytree(trained / "run", tmp_path / "adapter")
    content("adapter_model.safetensors", text)(tmp_path / "adapter")
    assert main(["train", config, *go_on(tmp_path, "adapter", tmp_path / "out")]) == 2
    assert re.search("colm: The adapter in .* could not be loaded", capsys.readouterr().err)
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_an_adapter_as_its_own_base_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "adapter")
    settings_of_adapter(base_model_name_or_path=str(tmp_path / "adapter"))(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="which cannot be loaded"):
        find_model(str(tmp_path / "adapter"))


def test_an_adapter_is_not_replaced_by_the_run_that_continues_it(trained: Path, config: str, capsys: Any) -> None:
    for name in ("run", "run/checkpoint-2"):
        assert main(["train", config, *go_on(trained, name, trained / "run"), "--overwrite"]) == 2
        assert "which would be replaced, but the new run reads it" in capsys.readouterr().err


def test_a_run_from_an_adapter_is_resumed_planned_and_evaluated(
    trained: Path, config: str, tmp_path: Path, capsys: Any
) -> None:
    given = go_on(trained, "run", tmp_path / "two")
    train(config, *given, "training.max_steps=1")
    train(config, *given, "--resume")
    assert [line["step"] for line in read_lines(tmp_path / "two" / "selection.jsonl")] == [0, 1]
    assert main(["eval", str(tmp_path / "two"), *ANSWERS]) == 0
    capsys.readouterr()
    assert main(["plan", config, *given, "--gpu-memory", "8GiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained_parameters"] == 4 * 4 * (128 + 128 + 128 + 64)


@pytest.mark.slow
def test_every_command_takes_an_adapter(trained: Path, config: str, tmp_path: Path, capsys: Any) -> None:
    train(config, *go_on(trained, "tiny", tmp_path / "two"), "seed=3")
    train(config, *go_on(tmp_path, "two", tmp_path / "three"), "seed=3")  # of a run that began with an adapter itself
    after = figure(tmp_path / "two", "eval_loss_after")
    assert figure(tmp_path / "three", "eval_loss_before") == pytest.approx(after, abs=1e-6)
    other = [*go_on(trained, "run", tmp_path / "two"), "seed=3", "--resume", "training.max_steps=3"]
    assert main(["train", config, *other]) == 2
    assert "contains a run with other settings (model: " in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "two")]) == 0
    questions = ["--data", str(trained / "rows.jsonl"), *ANSWERS, "--out", str(tmp_path / "answers")]
    assert main(["eval", str(tmp_path / "three" / "checkpoint-2"), *questions]) == 0
    assert main(["sources", config, f"model={trained}/run", f"output_dir={tmp_path / 'sources'}"]) == 0
    shutil.move(tmp_path / "two", tmp_path / "moved")
    capsys.readouterr()
    for command in (["eval", str(tmp_path / "three")], ["train", config, *go_on(tmp_path, "three", tmp_path / "four")]):
        assert main(command) == 2
        assert "two', which cannot be loaded. Restore it" in capsys.readouterr().err


def test_runs_of_a_comparison_begin_with_the_adapter(trained: Path, config: str, tmp_path: Path) -> None:
    from colm.lab.study.planning import Study

    given = go_on(trained, "run", tmp_path)
    runs = Study(config, given).plan(["random", "colm"], [0, 1])
    assert {settings["model"] for settings in runs.values()} == {str(trained / "run")}
    with pytest.raises(ConfigError, match="is a LoRA adapter on .*, but lora is null"):
        Study(config, [*given, "lora=null"]).plan(["random"], [0])
