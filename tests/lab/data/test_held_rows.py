"""Held-out rows as text survive writing and reading."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from colm.errors import DataError
from colm.lab.data.held_rows import TextRows, group_rows, part_keys, part_sources, read_held_out, write_row, write_rows
from colm.step.files import replace_lines

TEXTS = st.text(max_size=8)
TURNS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXTS}), max_size=3)
ROWS = st.one_of(
    st.tuples(st.just("text"), st.fixed_dictionaries({"source": TEXTS, "text": TEXTS})),
    st.tuples(
        st.just("prompt_completion"),
        st.fixed_dictionaries(
            {"source": TEXTS, "prompt": TEXTS | TURNS, "completion": TEXTS | TURNS, "id": st.none() | st.integers()},
            optional={"answer": st.integers() | st.floats(allow_nan=False) | TEXTS},
        ),
    ),
    st.tuples(
        st.just("messages"), st.fixed_dictionaries({"source": TEXTS, "messages": TURNS, "tools": st.none() | TURNS})
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, max_size=8))
def test_rows_are_restored_in_order(rows: list[tuple[str, dict[str, Any]]]) -> None:
    lines = [write_row(name, row) for name, row in rows]
    assert all(line.count("\n") == 1 for line in lines)
    parts = group_rows(map(json.loads, lines))
    assert [(part.format, dict(row)) for part in parts for row in part] == rows
    assert sum(map(len, parts)) == len(rows)
    assert [name for part in parts for name in part_sources(part, "source")] == [row["source"] for _, row in rows]
    assert list(write_rows(parts)) == lines


def test_parts_of_several_formats(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2", "tool_calls": [{"name": "f"}]}]
    parts = [
        Dataset.from_list([{"source": "a", "prompt": f"{i}?", "completion": str(i)} for i in range(3)]),
        Dataset.from_list([{"source": "b", "messages": messages, "day": date(2026, 1, 2), "raw": b"\x00"}]),
    ]
    replace_lines(tmp_path / "held_out.jsonl", write_rows(parts))
    first, second = read_held_out(tmp_path / "held_out.jsonl")
    assert (first.format, list(first)) == ("prompt_completion", list(parts[0]))
    assert first.column_names == parts[0].column_names
    assert second.format == "messages"
    (row,) = second
    assert (row["messages"], row["day"], row["raw"]) == (parts[1][0]["messages"], "2026-01-02", "<bytes>")
    assert [key for part in (first, second) for key in part_keys(part)] == [
        key for part in parts for key in part_keys(part)
    ]
    replace_lines(tmp_path / "none.jsonl", [])
    assert read_held_out(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}\n", "line 2, is not a held-out row written by colm train"),
        ('{"format": "prose", "row": {}}\n', "line 2, is not a held-out row"),
        ('{"format": "text", "row": []}\n', "line 2, is not a held-out row"),
        ("{\n", "line 2, is not valid JSON"),
        ('{"format": "text", "row"', "line 2, is incomplete"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text(write_row("text", {"source": "a", "text": "b"}) + line)
    with pytest.raises(DataError, match=message):
        read_held_out(path)
    assert TextRows("text", []).column_names == []
