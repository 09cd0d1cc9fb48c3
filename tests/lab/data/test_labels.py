"""Every way to read rows gives labels the same name and missing labels the same message."""

from __future__ import annotations

import csv
import gc
import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.files import write_lines

from colm.errors import ConfigError, DataError
from colm.lab.data.fingerprint import fingerprint_data
from colm.lab.data.formats import Rendering
from colm.lab.data.load import read_mixture, read_validation
from colm.lab.data.questions import read_question_files, read_questions
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.data.stream import prepare_stream, read_stream
from colm.lab.data.tokenize import count_left, name_rows, tokenize_rows
from colm.models import train_tiny_tokenizer

TOKENIZER = train_tiny_tokenizer(["0123456789?!ab"])

LABELS: dict[str, dict[Any, str]] = {
    "text": {"no": "no", "007": "007", " a ": " a "},
    "int": {0: "0", -3: "-3"},
    "float": {1.0: "1.0", 0.25: "0.25"},
    "bool": {True: "true", False: "false"},
}
OF_ARROW: dict[str, dict[Any, str]] = {
    "decimal": {Decimal("1.50"): "1.50"},
    "date": {date(2024, 1, 5): "2024-01-05"},
    "time": {datetime(2024, 1, 5, 10): "2024-01-05 10:00:00"},
}
PAIRS = [pair for held in LABELS.values() for pair in held.items()]


def data(**changes: Any) -> DataSettings:
    return DataSettings(**{"max_length": 20, "chat_template": False, **changes})


def rows_of(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"source": label, "prompt": f"{i}?", "completion": "1"} for i, label in enumerate(labels)]


def write_jsonl(path: Path, labels: list[Any]) -> str:
    return write_lines(path, rows_of(labels))


def write_parquet(path: Path, labels: list[Any]) -> str:
    pq.write_table(pa.Table.from_pylist(rows_of(labels)), path)
    return str(path)


def write_csv(path: Path, labels: list[Any]) -> str:
    written = [json.dumps(label) if not isinstance(label, str) else label for label in labels]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["source", "prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows_of([*written, "text"]))  # so that every reader infers a text column
    return str(path)


WRITERS: dict[str, Callable[[Path, list[Any]], str]] = {
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "csv": write_csv,
}


def read_file(path: str) -> list[str]:
    (part,) = read_mixture(data(train=path), [], seed=0).train
    return list(part["source"][:])


def read_held_out(path: str) -> list[str]:
    (part,) = read_validation(data(validation=path, validation_split="train"))
    return list(part["source"][:])


def stream_file(path: str) -> list[str]:
    chosen = data(train=path, streaming=True)
    found = list(prepare_stream(read_stream(chosen, []), TOKENIZER, chosen, seed=0).window["source"])
    gc.collect()
    return found


def ask_file(path: str) -> list[str]:
    return [
        question.source
        for question in read_questions(read_question_files([path], {}, "source"), source_column="source").asked
    ]


READERS = {"rows": read_file, "validation": read_held_out, "stream": stream_file, "questions": ask_file}


WAYS = [
    *(("rows", kind, held) for kind in WRITERS for held in LABELS.values()),
    *(("rows", "parquet", held) for held in OF_ARROW.values()),
    *((read, "jsonl", held) for read in ("stream", "validation", "questions") for held in LABELS.values()),
    ("stream", "parquet", OF_ARROW["date"]),
    ("stream", "csv", LABELS["bool"]),
]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # from datasets, when it streams CSV
@pytest.mark.parametrize(("read", "kind", "labels"), WAYS)
def test_every_way_in_gives_the_same_name(tmp_path: Path, read: str, kind: str, labels: dict[Any, str]) -> None:
    found = READERS[read](WRITERS[kind](tmp_path / f"rows.{kind}", list(labels)))
    assert found[: len(labels)] == list(labels.values())


NONE: dict[str, list[Any]] = {"jsonl": [None, "", " "], "parquet": [None, math.nan, "", " "], "csv": ["", " "]}


@pytest.mark.parametrize(
    ("read", "kind", "label"),
    [
        *(("rows", kind, label) for kind, labels in NONE.items() for label in labels),
        *((read, "jsonl", label) for read in ("stream", "validation", "questions") for label in (None, " ")),
        ("stream", "parquet", math.nan),
    ],
)
def test_a_missing_label_is_rejected_with_row_and_file(tmp_path: Path, read: str, kind: str, label: Any) -> None:
    other = 0.5 if isinstance(label, float) else "a"
    path = WRITERS[kind](tmp_path / f"rows.{kind}", [other, label])
    with pytest.raises(DataError, match=f"Row 1 has no source: its 'source' is .*, in {path}. Give every row a label"):
        READERS[read](path)


@pytest.mark.parametrize("label", [["a"], {"a": 1}])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_list_or_a_mapping_is_not_a_label(tmp_path: Path, read: Any, label: Any) -> None:
    with pytest.raises(DataError, match=f"Row 0 has a {type(label).__name__} as its source"):
        read(write_jsonl(tmp_path / "rows.jsonl", [label]))


@settings(max_examples=30)
@given(st.lists(st.one_of(st.text(min_size=1).filter(str.strip), st.integers(-9, 9), st.booleans()), max_size=4))
def test_parts_keep_their_names_with_any_types(labels: list[Any]) -> None:
    parts = [name_rows(Dataset.from_list(rows_of([label])), "source") for label in labels]
    names = [name for part in parts for name in part["source"]]
    assert names == [label if isinstance(label, str) else json.dumps(label) for label in labels]


def test_parts_with_labels_of_several_types_are_one_data_set() -> None:
    parts = [Dataset.from_list(rows_of([label])) for label in ("a", 0, 1.0, True)]
    tokens = tokenize_rows(parts, TOKENIZER, format_name="auto", rendering=Rendering(20), source_column="source")
    assert list(tokens["source"]) == ["a", "0", "1.0", "true"]
    assert fingerprint_data(tokens, None, "source")["train"]["rows"] == 4


@pytest.mark.parametrize(("label", "name"), PAIRS)
def test_an_entrys_source_is_a_label(label: Any, name: str) -> None:
    assert MixtureEntry("a.jsonl", source=label).name == name


@pytest.mark.parametrize(("label", "name", "streaming"), [(0, "0", False), ("no", "no", False), (True, "true", True)])
def test_rows_of_a_mixture_entry_have_its_source(tmp_path: Path, label: Any, name: str, streaming: bool) -> None:
    first, second = (write_jsonl(tmp_path / f"{which}.jsonl", [which] * 3) for which in "ab")
    entries = [MixtureEntry(first, source=label), MixtureEntry(second)]  # the other keeps its own labels
    chosen = data(streaming=streaming, window=6)
    if streaming:
        found = prepare_stream(read_stream(chosen, entries), TOKENIZER, chosen, seed=0).window["source"]
    else:
        found = [row for part in read_mixture(chosen, entries, seed=0).train for row in part["source"]]
    assert sorted(found) == sorted([name] * 3 + ["b"] * 3)


@pytest.mark.parametrize("label", ["", " ", math.nan, ["a"]])
def test_a_mixture_entry_with_an_empty_source_is_rejected(label: Any) -> None:
    with pytest.raises(ConfigError, match="source names the source .*; it must be a non-blank string"):
        MixtureEntry("a.jsonl", source=label)


def test_the_digest_of_text_labels_is_unchanged() -> None:
    rows = Dataset.from_list([{"source": name, "input_ids": [1, 2], "labels": [-100, 2]} for name in ("a", "007")])
    assert fingerprint_data(rows, None, "source")["train"]["digest"] == "af246eb029533ee10d3b2fd299b6f3a8"


def test_rows_left_are_counted_and_a_source_without_any_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = [
        Dataset.from_list([{"source": "a", "prompt": "1", "completion": text} for text in ("1", "", "2")]),
        Dataset.from_list([{"source": "papers", "prompt": "1" * 40, "completion": "1"}] * 4),
    ]
    options: dict[str, Any] = {"format_name": "auto", "rendering": Rendering(20), "source_column": "source"}
    tokens = tokenize_rows(parts, TOKENIZER, **options)
    assert list(tokens["source"]) == ["a", "a"]
    assert "5 of 7 rows have no labeled token within max_length=20 and are dropped: 'papers' 4 of 4" in caplog.text
    assert count_left(parts, tokens, "source", Rendering(20)).dropped == {"papers": 4, "a": 1}
    with pytest.raises(DataError, match="None of the 4 rows has a labeled token within max_length=20"):
        tokenize_rows(parts[1:], TOKENIZER, **options)


@pytest.mark.parametrize("weights", [{}, {"0": 3, "papers": 1}])
def test_a_streams_entry_without_a_row_left_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, weights: dict[str, int]
) -> None:
    good, long = write_jsonl(tmp_path / "good.jsonl", ["x"] * 5), tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "1" * 40, "completion": "1"}) + "\n")
    chosen = data(streaming=True, weights=weights, window=50)
    entries = [MixtureEntry(good, source=0), MixtureEntry(str(long), source="papers")]
    mixture = prepare_stream(read_stream(chosen, entries), TOKENIZER, chosen, seed=0)
    assert set(mixture.window["source"]) == {"0"}
    assert set(mixture.counts.left) == {"0"}
    assert mixture.counts.gone == {"papers": "has 1 row, but none has a labeled token within max_length=20"}
    assert "'papers' 1 of 1 (none is left)" in caplog.text
    chosen = data(streaming=True, validation_rows={"papers": 1}, window=50)
    with pytest.raises(DataError, match="data.validation_rows names 'papers', which has 1 row, but none has a lab"):
        prepare_stream(read_stream(chosen, entries), TOKENIZER, chosen, seed=0)
    with pytest.raises(DataError, match="No row of the stream has a labeled token"):
        prepare_stream(read_stream(chosen, [entries[1], replace(entries[1], source="b")]), TOKENIZER, chosen, seed=0)


def test_a_size_for_a_missing_source_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = data(
        streaming=True, train=write_jsonl(tmp_path / "a.jsonl", ["code"] * 5), source_sizes={"code": 5, "cod": 1}
    )
    prepare_stream(read_stream(chosen, []), TOKENIZER, chosen, seed=0)
    assert (
        "names 'cod', but none of the first 5 rows of the stream has this source. Did you mean 'code'?" in caplog.text
    )
