"""The README's code runs as it stands, and its configurations are valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from tests.support.models import ragged_batch, tiny_model
from tests.support.trainers import collate

from colm.lab.run.settings import resolve_settings
from colm.models import train_tiny_tokenizer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_configurations_in_the_readme_and_examples_are_valid() -> None:
    texts = blocks("yaml") + [path.read_text() for path in sorted((ROOT / "examples").glob("*.yaml"))]
    assert len(texts) >= 4
    for text in texts:
        values = yaml.safe_load(text)
        values.get("training", {}).pop("bf16", None)  # checked by TrainingArguments against the hardware
        resolve_settings(values)


@pytest.mark.parametrize(
    "word", ["train_dataset=dataset,  # input_ids", "train_dataset=stream", "train_dataset=chats", "selector.select("]
)
def test_python_in_the_readme_runs(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    (block,) = [block for block in blocks("python") if word in block]
    block = block.replace('report_to="none"', 'report_to="none", dataloader_pin_memory=False, use_cpu=True, bf16=False')
    ids = [[1, 2, 3, 4 + i % 9] for i in range(128)]
    rows = [
        {"source": "ab"[i % 3 == 0], "input_ids": x, "attention_mask": [1] * 4, "labels": x} for i, x in enumerate(ids)
    ]
    names: dict[str, Any] = {
        "model": tiny_model(vocab_size=600) if "chats" in block else tiny_model(),
        "dataset": Dataset.from_list(rows),
        "stream": Dataset.from_list(rows).to_iterable_dataset(),
        "chats": Dataset.from_list(
            [{"source": "ab"[i % 3 == 0], "prompt": f"What is {i}?", "completion": f" {i}"} for i in range(64)]
        ),
        "tokenizer": train_tiny_tokenizer([f"What is {i}?" for i in range(64)]),
        "collator": collate,
        "pools": [([ragged_batch([5, 6, 7]), ragged_batch([4, 8, 5])], ["gsm8k"] * 4 + ["mbpp"] * 2)] * 2,
    }
    exec(block, names)
    if "trainer" in names:
        assert names["trainer"].state.global_step == 3
    else:
        assert names["selector"].state_dict()["step"] == 2
