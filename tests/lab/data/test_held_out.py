"""Held-out rows are never trained on: rows are drawn by prompt."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from colm.errors import DataError
from colm.lab.data.held_out import HELD, LEFT_OUT, TRAINED, draw_rows, hold_out, leave_out, warn_shared
from colm.lab.data.held_rows import part_keys
from colm.lab.data.load import read_mixture
from colm.lab.data.prompts import prompt_keys
from colm.lab.data.settings import DataSettings, MixtureEntry

ROWS = [{"source": "ab"[i % 5 == 0], "prompt": f"{i}?", "completion": f"{i}!"} for i in range(20)]


def write_as(name: str, prompt: str, answer: str) -> dict[str, Any]:
    """Return a row that asks `prompt`, in one of the formats."""
    question = {"role": "user", "content": prompt}
    said = {"role": "assistant", "content": answer}
    return {
        "plain": {"prompt": prompt, "completion": answer},
        "turns": {"prompt": [question], "completion": [said]},
        "instruction": {"instruction": prompt, "input": "", "output": answer},
        "messages": {"messages": [question, said]},
        "text": {"text": prompt},
    }[name]


FORMATS = {"plain": "prompt_completion", "turns": "prompt_completion"}
PARTS = st.lists(
    st.tuples(
        st.sampled_from(["plain", "turns", "instruction", "messages", "text"]),
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.sampled_from("xy")), min_size=1, max_size=15),
    ),
    min_size=1,
    max_size=4,
)
WANTED = st.one_of(st.integers(0, 6), st.dictionaries(st.sampled_from("abc"), st.integers(0, 6)))


@settings(max_examples=300, deadline=None)
@given(PARTS, WANTED, st.integers(0, 5))
def test_no_prompt_is_on_both_sides(parts: Any, wanted: Any, seed: int) -> None:
    everything = [
        {
            "source": source,
            "asks": asks,
            "key": prompt_keys(FORMATS.get(name, name), write_as(name, f"Ask {asks}", said)),
        }
        for name, rows in parts
        for source, asks, said in rows
    ]
    sizes = Counter(row["source"] for row in everything)
    per_source = {name: rows for name, rows in wanted.items() if name in sizes} if isinstance(wanted, dict) else wanted
    labels, keys = [row["source"] for row in everything], [row["key"] for row in everything]
    sides = draw_rows(labels, "source", per_source, seed, keys)
    rest, held, left_out = (
        [everything[row] for row in np.flatnonzero(sides == side)] for side in (TRAINED, HELD, LEFT_OUT)
    )
    of = {name: per_source.get(name, 0) if isinstance(per_source, dict) else per_source for name in sizes}
    assert len(rest) + len(held) + len(left_out) == len(everything)
    assert not {row["asks"] for row in rest} & {row["asks"] for row in held}
    assert {row["asks"] for row in left_out} <= {row["asks"] for row in held}  # no row is left out without a reason
    for name, size in sizes.items():
        count, gone = (sum(row["source"] == name for row in side) for side in (held, (*held, *left_out)))
        assert count <= min(of[name], size // 2)
        assert gone <= size // 2
    # The rest could not be held out: each prompt would have taken more than half of a source.
    gone_of = Counter(row["source"] for row in (*held, *left_out))
    for name in sizes:
        if sum(row["source"] == name for row in held) < min(of[name], sizes[name] // 2):
            for asks in {row["asks"] for row in rest if row["source"] == name}:
                takes = Counter(row["source"] for row in rest if row["asks"] == asks)
                assert any(gone_of[other] + count > sizes[other] // 2 for other, count in takes.items())


def draw_by_row(labels: list[str], wanted: dict[str, int], seed: int) -> list[int]:
    """Draw rows as the first versions did, ignoring prompts."""
    left = {name: min(wanted.get(name, 0), labels.count(name) // 2) for name in labels}
    held = []
    for row in np.random.default_rng(seed).permutation(len(labels)).tolist():
        if left[labels[row]] > 0:
            left[labels[row]] -= 1
            held.append(row)
    return sorted(held)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
    st.integers(0, 9),
)
def test_rows_with_unique_prompts_are_drawn_as_before(labels: list[str], wanted: dict[str, int], seed: int) -> None:
    wanted = {name: rows for name, rows in wanted.items() if name in labels}
    keys = [(str(row).encode(),) for row in range(len(labels))]
    sides = draw_rows(labels, "source", wanted, seed, keys)
    assert np.flatnonzero(sides == HELD).tolist() == draw_by_row(labels, wanted, seed)
    assert not (sides == LEFT_OUT).any()
    assert (draw_rows(labels, "source", wanted, seed) == sides).all()


CONVERSATIONS = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2), min_size=1, max_size=3)), min_size=1, max_size=20
)


@settings(max_examples=100, deadline=None)
@given(CONVERSATIONS, st.integers(1, 4), st.integers(0, 3))
def test_no_trained_turn_is_evaluated(rows: Any, wanted: int, seed: int) -> None:
    """A conversation teaches the answer to each of its questions, and is evaluated on the last."""
    keys = []
    for _, asks in rows:
        turns = [{"role": role, "content": str(ask)} for ask in asks for role in ("user", "assistant")]
        keys.append(prompt_keys("messages", {"messages": turns}))
    sides = draw_rows([source for source, _ in rows], "source", wanted, seed, keys)
    rest, held = ([tuple(rows[row][1]) for row in np.flatnonzero(sides == side)] for side in (TRAINED, HELD))
    taught = {asks[:end] for asks in rest for end in range(1, len(asks) + 1)}
    assert not taught & set(held)
    assert not {asks[:end] for asks in held for end in range(1, len(asks) + 1)} & set(rest)


def test_held_out_rows_come_from_every_source_and_leave_half() -> None:
    rows = Dataset.from_list([*ROWS, {"source": "c", "prompt": "x", "completion": "y"}])
    (train,), (held,) = hold_out([rows], "source", 3, seed=0)
    assert len(train) + len(held) == 21
    counts = {name: list(held["source"]).count(name) for name in "abc"}
    assert counts == {"a": 3, "b": 2, "c": 0}
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    (again,) = hold_out([rows], "source", 3, seed=0)[1]
    assert list(again) == list(held)
    assert [row["prompt"] for row in held] == ["0?", "4?", "10?", "16?", "18?"]  # a resumed run needs the same rows


def test_left_out_rows_and_sources_without_held_out_rows_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"source": "a", "prompt": f"{i % 10}?", "completion": str(i)} for i in range(40)]
    rows += [{"source": "one", "prompt": "Write.", "completion": str(i)} for i in range(9)]
    rest, held = hold_out([Dataset.from_list(rows)], "source", {"a": 3, "one": 2}, seed=0)
    assert [len(part) for part in (*rest, *held)] == [45, 3]
    assert "No row of one can be held out: rows with one prompt stay together" in caplog.text
    assert "1 rows are left out of training, because their prompt is held out: a 1." in caplog.text
    caplog.clear()
    hold_out([Dataset.from_list(ROWS)], "source", 3, seed=0)
    assert not caplog.records
    hold_out([Dataset.from_list([{**row, "source": f"source-{i}"} for i, row in enumerate(rows)])], "source", 1, seed=0)
    assert "source-0, " in caplog.text
    assert "more sources can be held out" in caplog.text


def test_prompts_of_another_source_and_format_are_left_out_too(caplog: pytest.LogCaptureFixture) -> None:
    """Two kinds of answers to the same questions, one of which is evaluated."""
    programs = Dataset.from_list([{"source": "programs", "prompt": f"{i}?", "completion": "print"} for i in range(20)])
    words = [{"source": "words", "instruction": f"{i}?", "output": "So."} for i in range(20)]
    parts = [programs, Dataset.from_list(words)]
    rest, held = hold_out(parts, "source", {"programs": 4}, seed=1)
    assert [len(part) for part in (*rest, *held)] == [16, 16, 4]
    assert "4 rows are left out of training" in caplog.text
    rest, held = hold_out(parts, "source", 4, seed=1)  # of both: the same questions
    assert [len(part) for part in (*rest, *held)] == [16, 16, 4, 4]
    assert held[0]["prompt"][:] == held[1]["instruction"][:]


def test_a_prompt_with_many_rows_is_tried_once() -> None:
    keys = [(b"one",)] * 200_000 + [(str(row).encode(),) for row in range(1000)]
    sides = draw_rows(["a"] * len(keys), "source", 5, 0, keys)
    assert Counter(sides.tolist()) == {TRAINED: len(keys) - 5, HELD: 5}


def test_parts_without_a_format(caplog: pytest.LogCaptureFixture) -> None:
    part = Dataset.from_list([{"source": "a", "prompt": "1?", "completon": "2"}])
    with pytest.raises(DataError, match=r"match no format .* Did you mean 'completion'"):
        hold_out([part], "source", 1, seed=0)
    with pytest.raises(DataError, match="format='text' needs the column 'text', which the data does not have"):
        hold_out([part], "source", 1, seed=0, format_name="text")
    with pytest.raises(ValueError, match="format='txt' is not one of .* Did you mean 'text'"):
        hold_out([part], "source", 1, seed=0, format_name="txt")


def test_prompts_that_a_validation_file_shares_are_counted_by_source(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    train = Dataset.from_list(ROWS)
    own = [{"source": "b", "instruction": ask, "output": "x"} for ask in ("0?", "0? ", "new?")]
    validation = [Dataset.from_list(own), Dataset.from_list([{"source": "d", "prompt": "1?", "completion": "2"}])]
    warn_shared(part_keys(train), validation, "auto", "source")
    assert "data.validation shares 2 prompts with the training data, rows by source: b 2 of 3, d 1 of 1." in caplog.text
    assert len(caplog.records) == 1
    caplog.clear()
    warn_shared(part_keys(train), [validation[0].select([2])], "auto", "source")
    assert not caplog.records
    (rest,) = leave_out([train], validation, "auto", "source")
    assert rest["prompt"][:] == [f"{i}?" for i in range(2, 20)]
    assert "2 rows are left out of training, because their prompt is held out: a 1, b 1." in caplog.text


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_files_of_all_kinds_hold_out_the_same_rows(tmp_path: Path, ending: str) -> None:
    """Two files ask the same questions in two formats; caps and weights are applied afterwards."""
    programs = Dataset.from_list([{"prompt": f"{i % 30}?", "completion": f"print({i})"} for i in range(50)])
    getattr(programs, f"to_{ending.removesuffix('l')}")(
        str(tmp_path / f"programs.{ending}"), **({"lines": ending == "jsonl"} if ending.startswith("json") else {})
    )
    words = Dataset.from_list([{"instruction": f"{i}?", "output": "So."} for i in range(20, 45)])
    words.to_json(str(tmp_path / "words.jsonl"))
    entries = [MixtureEntry(str(tmp_path / name)) for name in (f"programs.{ending}", "words.jsonl")]
    wanted = {"programs": 10, "words": 3}
    settings = DataSettings(validation_rows=wanted, weights={"programs": 1, "words": 2}, cap=20)
    train, held = read_mixture(settings, entries, seed=3)
    asked, trained = ({keys[0] for part in side for keys in part_keys(part)} for side in (held, train))
    assert not asked & trained
    assert Counter(name for part in held for name in part["source"]) == {"programs": 10, "words": 3}
    tables = [programs.add_column("source", ["programs"] * 50), words.add_column("source", ["words"] * 25)]
    _, expected = hold_out(tables, "source", wanted, seed=3)
    assert [list(part) for part in held] == [list(part) for part in expected]
