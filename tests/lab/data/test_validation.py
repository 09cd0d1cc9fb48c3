"""Held-out rows that are too long to measure do not stop a run."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from colm.lab.data.held_rows import TextRows
from colm.lab.data.settings import DataSettings
from colm.lab.data.validation import tokenize_held_out
from colm.models import train_tiny_tokenizer

TOKENIZER = train_tiny_tokenizer(["0123456789?!"])
DATA = DataSettings(max_length=8, chat_template=False)


def row(source: str, length: int) -> dict[str, Any]:
    return {"source": source, "prompt": "1" * length, "completion": "2"}


def parts_of(rows: list[dict[str, Any]], *, text: bool) -> list[Any]:
    return [TextRows("prompt_completion", rows)] if text else [Dataset.from_list(rows)]


@pytest.mark.parametrize("text", [False, True])
def test_sources_without_a_row_left_are_named(text: bool, caplog: pytest.LogCaptureFixture) -> None:
    long, short = [row("b", 50), row("b", 60)], [row("a", 2), row("a", 50), row("c", 3)]
    tokens = tokenize_held_out([*parts_of(long, text=text), *parts_of(short, text=text)], TOKENIZER, DATA)
    assert tokens is not None
    assert tokens["source"][:] == ["a", "c"]
    told = [record.getMessage() for record in caplog.records if record.name == "colm.lab.data.validation"]
    assert told == [
        "No held-out row of b (2) has a labeled token within max_length=8, so these sources have no evaluation loss. "
        "colm eval still asks them; raise data.max_length to measure them."
    ]
    caplog.clear()
    assert tokenize_held_out(parts_of(long, text=text), TOKENIZER, DATA) is None
    assert "so the run trains without an evaluation" in caplog.text
    caplog.clear()
    assert tokenize_held_out([], TOKENIZER, DATA) is None
    assert not caplog.records


def test_text_gives_the_tokens_of_the_table() -> None:
    rows = [row("a", 2), row("b", 3)]
    one, two = (tokenize_held_out(parts_of(rows, text=text), TOKENIZER, DATA) for text in (False, True))
    assert one is not None
    assert two is not None
    assert list(one) == list(two)
