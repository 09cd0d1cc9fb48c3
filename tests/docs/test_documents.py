"""The documents' code runs as it stands, their configurations are valid, and their commands and messages exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from datasets import Dataset
from tests.support.models import ragged_batch, tiny_model
from tests.support.trainers import collate

from colm import __version__
from colm.lab.run.settings import resolve_settings
from colm.models import train_tiny_tokenizer

ROOT = Path(__file__).parents[2]
OWN = ("sampler", "mixing")
"""Guides whose Python blocks test_sampler_guides.py runs with other names."""

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]


class Block(NamedTuple):
    page: str
    line: int
    kind: str  # what follows the fence: "python", "python notest", "yaml theirs"
    text: str


def read_blocks() -> list[Block]:
    found = []
    for path in PAGES:
        text = path.read_text()
        for match in re.finditer(r"^```([a-z][^\n]*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(path.stem, line, match[1], match[2]))
    return found


BLOCKS = read_blocks()


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import reference_pages
    finally:
        sys.path.pop(0)
    return reference_pages


def test_configurations_are_valid() -> None:
    texts = [block.text for block in BLOCKS if block.kind == "yaml"]
    texts += [path.read_text() for path in sorted((ROOT / "examples").glob("*.yaml"))]
    assert len(texts) >= 10
    for text in texts:
        values = yaml.safe_load(text)
        values.get("training", {}).pop("bf16", None)  # checked by TrainingArguments against the hardware
        resolve_settings(values)


def test_a_block_is_checked_or_says_that_it_is_not() -> None:
    kinds = {block.kind for block in BLOCKS}
    assert kinds <= {"python", "python notest", "yaml", "yaml theirs", "sh", "text", "bibtex"}


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.kind == "python" and block.page not in OWN],
    ids=lambda block: f"{block.page}-{block.line}",
)
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    code = block.text.replace(
        'report_to="none"', 'report_to="none", dataloader_pin_memory=False, use_cpu=True, bf16=False'
    )
    ids = [[1, 2, 3, 4 + i % 9] for i in range(128)]
    rows = [
        {"source": "ab"[i % 3 == 0], "input_ids": x, "attention_mask": [1] * 4, "labels": x} for i, x in enumerate(ids)
    ]
    names: dict[str, Any] = {
        "model": tiny_model(vocab_size=600) if "chats" in code else tiny_model(),
        "dataset": Dataset.from_list(rows),
        "stream": Dataset.from_list(rows).to_iterable_dataset(),
        "chats": Dataset.from_list(
            [{"source": "ab"[i % 3 == 0], "prompt": f"What is {i}?", "completion": f" {i}"} for i in range(64)]
        ),
        "tokenizer": train_tiny_tokenizer([f"What is {i}?" for i in range(64)]),
        "collator": collate,
        "sizes": {"gsm8k": 7364, "mbpp": 190},
        "pools": [([ragged_batch([5, 6, 7]), ragged_batch([4, 8, 5])], ["gsm8k"] * 4 + ["mbpp"] * 2)] * 2,
    }
    before = [weight.clone() for weight in names["model"].parameters()]
    names["optimizer"] = torch.optim.AdamW(names["model"].parameters())
    exec(code, names)
    if "trainer" in names:
        assert names["trainer"].state.global_step == 3
    elif "selector" in names:
        assert names["selector"].state_dict()["step"] == 2
    else:
        assert not any(map(torch.equal, before, names["model"].parameters()))


def test_commands_and_their_options_exist(reference: ModuleType) -> None:
    lines = [line for block in BLOCKS if block.kind == "sh" for line in block.text.splitlines()]
    helps = {name: reference.help_of(name) for name in reference.commands()}
    seen = set()
    for line in lines:
        words = shlex.split(line, comments=True)
        if "colm" not in words[:-1] or "pip" in words:
            continue
        command, *rest = words[words.index("colm") + 1 :]
        assert command in helps, line
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in helps[command], line
        seen.add(command)
    assert seen >= {"train", "sources", "plan", "compare", "eval", "report", "replay"}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"\bmake ([a-z-]+)", " ".join(block.text for block in BLOCKS if block.kind == "sh"))
    assert named
    assert set(named) <= targets


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link
    assert text.count("\n") <= 130


def test_the_pages_of_the_code_are_complete(reference: ModuleType) -> None:
    assert reference.logged() == set(reference.METRICS)
    names = {name for name in vars(reference.record) if name.endswith("_NAME")}
    assert names == set(reference.FILES)
    page = reference.settings_page()
    for row in ("| `keep` | a number above 0 and at most 1", "| `max_steps` | ", "| `r` | ", "| `merge_below` | "):
        assert row in page
    for row in re.findall(r"^\| `\w+` \|.*$", page.partition("## training")[0], flags=re.MULTILINE):
        assert not row.endswith("|  |"), f"nothing says what this is: {row}"
    assert [name for name in reference.commands() if f"## colm {name}\n" not in reference.commands_page()] == []


def test_messages_in_troubleshooting_exist() -> None:
    source = " ".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message in several pieces
    source += " Unknown selection setting"  # one message for all kinds
    messages = re.findall(r"^`(.+)`\n:", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(messages) >= 15
    for message in messages:
        assert message in source, message


def test_the_summary_lists_every_results_page() -> None:
    index = (ROOT / "docs" / "results" / "index.md").read_text()
    for path in (ROOT / "docs" / "results").glob("*.md"):
        assert path.name == "index.md" or f"]({path.name})" in index, path.name


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## {__version__} - " in (ROOT / "CHANGELOG.md").read_text()
