"""The code of the guides to the sampler and to mixtures runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from tests.support.models import tiny_model
from tests.support.trainers import collate, mixture

from colm.lab.run.settings import resolve_settings
from colm.models import train_tiny_tokenizer

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
BLOCKS = [
    pytest.param(block, id=f"{name}-{number}", marks=[pytest.mark.slow] if "pytorch_lightning" in block else [])
    for name in ("sampler", "mixing")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (GUIDES / f"{name}.md").read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    block = block.replace('report_to="none"', 'report_to="none", dataloader_pin_memory=False, use_cpu=True, bf16=False')
    prompts = [f"What is {i}?" for i in range(64)]
    chats = {
        "prompt": prompts,
        "completion": [f" {i}" for i in range(64)],
        "source": ["ab"[i % 5 == 0] for i in range(64)],
    }
    names: dict[str, Any] = {
        "model": tiny_model("llama", vocab_size=600, num_hidden_layers=2),
        "dataset": mixture(60),
        "collator": collate,
        "chats": Dataset.from_dict(chats),
        "tokenizer": train_tiny_tokenizer(prompts),
    }
    exec(block, names)
    if "args" in names:
        assert names["trainer"].state.global_step == 3
    if "resumed" in names:
        assert list(names["resumed"]) == list(names["sampler"])[3:]
    if "data" in names:
        assert len(names["data"].train_dataloader()) == 8


def test_the_table_of_temperatures() -> None:
    from colm.mixing import temperature_shares

    (row,) = re.findall(r"\| share \| (.*) \|", (GUIDES / "mixing.md").read_text())
    shares = [temperature_shares({"large": 8100, "small": 100}, t)["small"] for t in (1, 2, 4, 1000)]
    assert [f"{100 * share:.2g}%" for share in shares] == row.split(" | ")


def test_the_configuration_is_valid() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (GUIDES / "mixing.md").read_text(), re.DOTALL)
    assert resolve_settings(yaml.safe_load(text)).data.temperature == 2.0
