"""A mixture as a stream: tokenized, mixed by weight, with a first window."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from colm.errors import DataError
from colm.lab.data.formats import Rendering
from colm.lab.data.load import read_mixture, read_validation
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.data.stream import prepare_stream, read_stream
from colm.lab.data.tokenize import tokenize_rows
from colm.models import train_tiny_tokenizer

TOKENIZER = train_tiny_tokenizer(["0123456789?!ab"])


def data(**changes: Any) -> DataSettings:
    return DataSettings(**{"streaming": True, "max_length": 20, "chat_template": False, **changes})


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    Dataset.from_list(rows).to_json(str(path))
    return str(path)


@pytest.fixture
def entries(tmp_path: Path) -> list[MixtureEntry]:
    first = write(tmp_path / "a.jsonl", [{"prompt": f"{i}?", "completion": "1"} for i in range(400)])
    second = write(tmp_path / "b.jsonl", [{"instruction": f"{i}!", "output": "2"} for i in range(100)])
    return [MixtureEntry(first), MixtureEntry(second, source="b")]


def test_a_streams_rows_are_those_of_the_data_set(entries: list[MixtureEntry]) -> None:
    mixture = prepare_stream(read_stream(data(), entries[:1]), TOKENIZER, data(), seed=0)
    counted = read_mixture(data(), entries[:1], seed=0).train
    options: dict[str, Any] = {"format_name": "auto", "rendering": Rendering(20), "source_column": "source"}
    tokens = tokenize_rows(counted, TOKENIZER, **options)
    found = sorted(tuple(row["input_ids"]) + tuple(row["labels"]) for row in mixture.train)
    assert found == sorted(tuple(row["input_ids"]) + tuple(row["labels"]) for row in tokens)
    assert len(mixture.window) == 400
    assert mixture.validation is None


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.5),
        ({"weights": {"a": 3, "b": 1}}, 0.75),
        ({"source_sizes": {"a": 400, "b": 100}}, 0.8),
        ({"weights": {"a": 1, "b": 0}}, 1.0),
        ({"source_sizes": {"a": 810, "b": 10}, "temperature": 4.0}, 0.75),
    ],
)
def test_entries_are_drawn_by_weight_or_size(entries: list[MixtureEntry], changes: Any, share: float) -> None:
    settings = data(window=10, **changes)
    mixture = prepare_stream(read_stream(settings, entries), TOKENIZER, settings, seed=0)
    names = [row["source"] for row in islice(iter(mixture.train), 200)]
    assert names.count("a") / 200 == pytest.approx(share, abs=0.1)


def test_held_out_rows_come_from_the_window_and_are_not_trained_on(entries: list[MixtureEntry]) -> None:
    settings = data(validation_rows={"a": 5}, window=50)
    mixture = prepare_stream(read_stream(settings, entries[:1]), TOKENIZER, settings, seed=0)
    assert mixture.validation is not None
    assert Counter(mixture.validation["source"]) == {"a": 5}
    for epoch in range(2):
        mixture.train.set_epoch(epoch)
        trained = {tuple(row["input_ids"]) for row in mixture.train}
        assert len(trained) == 395
        assert not {tuple(ids) for ids in mixture.validation["input_ids"]} & trained


def test_held_out_rows_of_several_entries_stay_out_in_every_epoch(entries: list[MixtureEntry]) -> None:
    settings = data(validation_rows=20, window=100, weights={"a": 1, "b": 1})
    mixture = prepare_stream(read_stream(settings, entries), TOKENIZER, settings, seed=0)
    assert mixture.validation is not None
    held = {tuple(ids) for ids in mixture.validation["input_ids"]}
    assert len(held) == 40
    for epoch in range(3):
        mixture.train.set_epoch(epoch)
        assert not held & {tuple(row["input_ids"]) for row in mixture.train}  # also when an entry starts again


def prompts_of(mixture: Any) -> set[str]:
    return {TOKENIZER.decode(row["input_ids"]).partition("?")[0] for row in mixture.train}


def test_all_rows_with_a_held_out_prompt_stay_out_of_the_whole_stream(tmp_path: Path) -> None:
    """The same question comes again after the window, with another answer, in another format and entry."""
    again = [{"prompt": f"{i % 40}?", "completion": str(i)} for i in range(120)]
    other = [{"instruction": f"{i}?", "output": "b"} for i in range(40)]
    entries = [MixtureEntry(write(tmp_path / "a.jsonl", again)), MixtureEntry(write(tmp_path / "b.jsonl", other))]
    settings = data(validation_rows={"a": 5}, window=30)
    mixture = prepare_stream(read_stream(settings, entries), TOKENIZER, settings, seed=0)
    (held,) = mixture.held_out
    asked = {row["prompt"].removesuffix("?") for row in held}
    assert len(asked) == len(held) == 5
    for epoch in range(2):
        mixture.train.set_epoch(epoch)
        assert prompts_of(mixture) == {str(i) for i in range(40)} - asked
    assert set(next(iter(mixture.train))) == {"input_ids", "attention_mask", "labels", "source"}


def test_a_resumed_stream_excludes_the_original_held_out_rows(entries: list[MixtureEntry]) -> None:
    settings = data(validation_rows=5, window=50)
    begun = prepare_stream(read_stream(settings, entries[:1]), TOKENIZER, settings, seed=0)
    asked = {row["prompt"].removesuffix("?") for part in begun.held_out for row in part}
    rows = [{"prompt": f"{i}?", "completion": "1"} for i in range(399, -1, -1)]  # the window has changed
    write(Path(entries[0].path), rows)
    goes_on = prepare_stream(read_stream(settings, entries[:1]), TOKENIZER, settings, seed=0, held_out=begun.held_out)
    assert goes_on.held_out == begun.held_out
    assert goes_on.validation is not None
    assert begun.validation is not None
    assert list(goes_on.validation) == list(begun.validation)
    assert prompts_of(goes_on) == {str(i) for i in range(400)} - asked
    none = prepare_stream(read_stream(settings, entries[:1]), TOKENIZER, settings, seed=0, held_out=[])
    assert none.validation is None
    assert len(prompts_of(none)) == 400


def test_rows_drawn_as_in_older_versions_are_identified_by_tokens(entries: list[MixtureEntry]) -> None:
    settings = data(validation_rows=5, window=50)
    stream = read_stream(settings, entries[:1])
    by_row, by_prompt = (
        prepare_stream(stream, TOKENIZER, settings, seed=0, by_prompt=by_prompt) for by_prompt in (False, True)
    )
    assert by_row.held_out == by_prompt.held_out
    assert list(by_row.train) == list(by_prompt.train)


def test_prompts_shared_with_a_validation_file_are_logged(
    tmp_path: Path, entries: list[MixtureEntry], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"source": "a", "prompt": ask, "completion": "2"} for ask in ("3?", "300?", "x?")]
    settings = data(validation=write(tmp_path / "held.jsonl", rows), window=50)
    stream = read_stream(settings, entries[:1])
    mixture = prepare_stream(stream, TOKENIZER, settings, seed=0, held_out=read_validation(settings))
    assert "shares 1 prompts with the training data's first 50 rows, rows by source: a 1 of 3" in caplog.text
    assert mixture.validation is not None
    assert len(mixture.validation) == 3
    assert len(prompts_of(mixture)) == 400


def test_unsupported_stream_settings(tmp_path: Path, entries: list[MixtureEntry]) -> None:
    for settings, message in (
        (data(weights={"a": 1, "c": 1}), "data.weights names 'c', which is not a source"),
        (data(weights={"a": 1}), "no weight for the source 'b'"),
        (data(temperature=2.0, source_sizes={"a": 1}), "data.temperature needs the rows of 'b'"),
    ):
        with pytest.raises(DataError, match=message):
            read_stream(settings, entries)
    with pytest.raises(DataError, match="applies to the mixture entries"):
        read_stream(data(train=entries[0].path, weights={"a": 1}, source_column="prompt"), [])
    with pytest.raises(DataError, match="no column 'source' for the source"):
        read_stream(data(train=entries[0].path), [])
    with pytest.raises(DataError, match="No training data"):
        read_stream(data(), [])
    settings = data(validation_rows={"z": 1})
    with pytest.raises(DataError, match="data.validation_rows names 'z'"):
        prepare_stream(read_stream(settings, entries), TOKENIZER, settings, seed=0)
    empty = write(tmp_path / "empty.jsonl", [{"prompt": "1", "completion": ""}])
    with pytest.raises(DataError, match="No row of the stream has a labeled token within max_length=20"):
        prepare_stream(read_stream(data(), [MixtureEntry(empty)]), TOKENIZER, data(), seed=0)
