"""Every recipe trains, with a tiny model of its family and generated rows of its data's columns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from reasoning_gym import create_dataset
from tests.support.files import read_lines
from tests.support.mathinstruct import SIZES, SMALL
from transformers import LlamaConfig, Phi3Config, PhiConfig, StableLmConfig

from colm.lab.cli import main
from colm.lab.run.settings import RunSettings, load_settings
from colm.models import train_tiny_tokenizer

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPER = {"r": 128, "lora_alpha": 512, "lora_dropout": 0.05}
STREAM = "tulu-3-stablelm-zephyr-3b"
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CATEGORIES = {"open_qa": 75, "general_qa": 44, "classification": 43, "closed_qa": 35, "brainstorming": 35}
CATEGORIES |= {"information_extraction": 30, "summarization": 24, "creative_writing": 14}


def questions(rows: int) -> list[tuple[str, str]]:
    return [(task["question"], task["answer"]) for task in create_dataset("chain_sum", size=rows, seed=0)]


def drawn(sizes: dict[str, int], make: Callable[[str, str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    names = [name for name, size in sizes.items() for _ in range(size)]
    random.Random(0).shuffle(names)
    return [make(name, *task) for name, task in zip(names, questions(len(names)), strict=True)]


def rows_of(path: str, config: str | None) -> list[dict[str, Any]]:
    """Make rows with the columns of a hub data set; its card names them."""
    if path == "TIGER-Lab/MathInstruct":
        sizes = {name: max(3, size // 600) for name, size in SIZES.items()}
        return drawn(sizes, lambda name, question, answer: {"source": name, "instruction": question, "output": answer})
    if path == "databricks/databricks-dolly-15k":
        return drawn(
            CATEGORIES,
            lambda name, q, a: {
                "instruction": q,
                "context": "" if "open" in name else q,
                "response": a,
                "category": name,
            },
        )
    if path == "allenai/tulu-3-sft-mixture":
        return drawn(
            {"maths": 150, "code": 100, "hard_coded": 20},
            lambda name, q, a: {
                "id": q,
                "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
                "source": name,
            },
        )
    columns = {
        "sst2": lambda q, i: {"sentence": q, "label": i % 2, "idx": i},
        "cb": lambda q, i: {"premise": q, "hypothesis": q, "idx": i, "label": i % 3},
        "multirc": lambda q, i: {"paragraph": q, "question": q, "answer": str(i), "idx": {"answer": i}, "label": i % 2},
    }[config or ""]
    return [columns(q, i) for i, (q, _) in enumerate(questions(300))]


def tiny_family(name: str, vocabulary: int) -> Any:
    from transformers import AutoModelForCausalLM

    kind = {"phi-2": PhiConfig, "Phi-3": Phi3Config, "stablelm": StableLmConfig, "Llama": LlamaConfig}
    config = next(kind[part] for part in kind if part in name)
    torch.manual_seed(0)
    shape = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return AutoModelForCausalLM.from_config(config(**shape))


def on_this_machine(folder: Path) -> list[str]:
    small = ["training.use_cpu=true", "training.bf16=false", "training.gradient_checkpointing=false"]
    return [f"output_dir={folder}", "training.max_steps=2", "dtype=float32", *small, "data.validation_rows=1"]


def read(recipe: Path, folder: Path) -> tuple[str, RunSettings]:
    """Return the recipe for this machine's precision, and its settings."""
    values = yaml.safe_load(recipe.read_text())
    values["training"]["bf16"] = False  # checked by TrainingArguments against the hardware
    config = folder / recipe.name
    config.write_text(yaml.safe_dump(values))
    return str(config), load_settings(str(config), [])


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_a_recipe_has_the_papers_hyperparameters(recipe: Path, tmp_path: Path) -> None:
    _, settings = read(recipe, tmp_path)
    assert settings.lora is not None
    assert {key: settings.lora[key] for key in PAPER} == PAPER
    training = settings.training
    assert (training["learning_rate"], training["lr_scheduler_type"], training["warmup_steps"]) == (
        2e-5,
        "linear",
        0.03,
    )
    assert (training["max_steps"], settings.data.max_length) == (1000, 512)
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 128
    assert settings.selection.keep_count == (96 if "dolly" in recipe.stem else 64)
    assert settings.output_dir == Path("runs") / recipe.stem
    lines = [
        line for line in recipe.read_text().splitlines() if line.strip().split(":")[0] in (*PAPER, "learning_rate")
    ]
    assert all("# paper" in line for line in lines)


QUICK = ("mathinstruct-phi-2", "mathinstruct-phi-3-mini", "superglue-sst2", STREAM)
"""One of each kind; the others, Llama among them, take as long again."""


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(each, id=each.stem, marks=() if each.stem in QUICK else pytest.mark.slow) for each in RECIPES],
)
def test_a_recipe_trains(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, settings = read(recipe, tmp_path)
    texts = [f"{question} {answer}" for question, answer in questions(50)]
    tokenizer = train_tiny_tokenizer([*texts, "Yes No Maybe terrible great <user><assistant>"])
    tokenizer.chat_template = TEMPLATE

    def load(path: str, config: str | None = None, *, split: str, revision: str | None, streaming: bool) -> Any:
        assert revision in (None, settings.data.revision)
        rows = Dataset.from_list(rows_of(path, config))
        return rows.to_iterable_dataset() if streaming else rows

    builder = SimpleNamespace(config=SimpleNamespace(data_files=None))
    monkeypatch.setattr("colm.lab.data.read.load_dataset_builder", lambda *_, **__: builder)
    monkeypatch.setattr("colm.lab.data.read.load_dataset", load)
    monkeypatch.setattr("colm.lab.run.named.load_tokenizer", lambda name: tokenizer)
    monkeypatch.setattr("colm.lab.run.named.load_model", lambda name, dtype: tiny_family(name, len(tokenizer)))
    changes = on_this_machine(tmp_path / "run")
    if recipe.stem == STREAM:
        changes += ["data.validation_rows=0", "data.window=200"]
    assert main(["train", config, *changes]) == 0
    lines = read_lines(tmp_path / "run" / "selection.jsonl")
    pools = [sum(map(len, line["pool"].values())) for line in lines]
    assert len(lines) == 2
    assert pools[0] == 128
    assert lines[0]["kept_count"] == settings.selection.keep_count
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    if "mathinstruct" in recipe.stem:
        assert set(summary["small_sources"]) == SMALL
    if "dolly" in recipe.stem:
        assert len(summary["small_sources"]) == 5
    if "superglue" in recipe.stem:
        assert set(summary["sources"]) == {f"cluster-{number:02}" for number in range(16)}
        assert 0 < len(summary["small_sources"]) < 16
    if recipe.stem == STREAM:
        assert summary["small_sources"] == ["hard_coded"]
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_every_family_and_data_set_of_the_paper_has_a_recipe() -> None:
    stems = {recipe.stem for recipe in RECIPES}
    assert {f"mathinstruct-{name}" for name in ("phi-2", "phi-3-mini", "stablelm-zephyr-3b", "llama-3.1-8b")} <= stems
    assert {"superglue-sst2", "superglue-cb", "superglue-multirc", "dolly-llama-3.1-8b", STREAM} <= stems
