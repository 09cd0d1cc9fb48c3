"""Every file format is read as written, and errors name the place of the problem."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from colm.errors import DataError
from colm.lab.data.formats import Rendering
from colm.lab.data.load import read_mixture
from colm.lab.data.read import read_rows
from colm.lab.data.settings import DataSettings
from colm.lab.data.stream import prepare_stream, read_stream
from colm.lab.data.tokenize import tokenize_rows
from colm.models import train_tiny_tokenizer
from colm.step.values import text_of_value

ODD_TEXTS = [
    *("2024-01-01", "2024-01-01T10:00:00Z", "10:30", "1999", "007", "012", "+5", "-0", "1e5", "1.0", "1_000", "0x10"),
    *("NA", "None", "null", "nan", "NaN", "N/A", "inf", "true", "False", "yes", "no", "#N/A", " padded ", "\ttab"),
    *(
        '{"a": 1}',
        "[1, 2]",
        '"quoted"',
        "a,b;c",
        "two\nlines",
        "line\r\nbreak",
        "back\\slash",
        "\\u0041",
        "\u2028",
        "é",
    ),
    *("日本", "😀", "a\x00b", "\ufeffmark", "<eos>", "<pad>text", "'", "=1+1", "", "%s {brace}"),
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(ODD_TEXTS)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": [0.5, None]}}}
NESTED: list[Any] = [
    [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
    [{"role": "assistant", "content": "x", "name": "n"}],
]


def as_json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_utf8_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode("utf-8-sig")


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: text_of_value(value) for key, value in row.items()} for row in rows)
    return out.getvalue().encode()


def as_zstd(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with pa.CompressedOutputStream(pa.PythonFile(out, "w"), "zstd") as file:
        file.write(as_json_lines(rows))
        file.flush()
        held = out
    return held.getvalue()


FILES: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "rows.jsonl": as_json_lines,
    "ROWS.JSONL": as_json_lines,
    "rows.ndjson": as_utf8_lines,
    "list.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "lines.json": as_json_lines,
    "rows.jsonl.gz": lambda rows: gzip.compress(as_json_lines(rows)),
    "rows.jsonl.xz": lambda rows: lzma.compress(as_json_lines(rows)),
    "rows.csv": as_csv,
    "rows.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "[abc]*?.jsonl": as_json_lines,
    "a::b.jsonl": as_json_lines,
}


def write_all(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Write the rows in every format, and return the names to read them by."""
    for name, write in FILES.items():
        (folder / name).write_bytes(write(rows))
    with pa.output_stream(str(folder / "rows.jsonl.zst"), compression="zstd") as file:
        file.write(as_json_lines(rows))
    table = pa.Table.from_pylist(rows)
    for name in ("rows.parquet", "[0-9]*.parquet"):
        with open(folder / name, "wb") as file:
            parquet.write_table(table, file)
    for kind, name in (
        ("json", "rows.jsonl"),
        ("csv", "rows.csv"),
        ("packed", "rows.jsonl.gz"),
        ("table", "rows.parquet"),
    ):
        (folder / kind / "data").mkdir(parents=True)
        (folder / kind / "data" / f"train{''.join(Path(name).suffixes)}").write_bytes((folder / name).read_bytes())
    Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder / "splits"))
    folders = ("json", "csv", "packed", "table", "saved", "splits")
    return [str(folder / name) for name in (*FILES, "rows.jsonl.zst", "rows.parquet", "[0-9]*.parquet", *folders)]


def texts(rows: Any) -> list[dict[str, str | None]]:
    return [{key: text_of_value(value) for key, value in row.items()} for row in rows]


def test_every_format_gives_the_same_rows_and_the_original_tokens(tmp_path: Path) -> None:
    rows = [
        {
            "source": text.strip() or "s",
            "prompt": f"{text}:",
            "completion": text or "x",
            "n": number,
            "flag": number % 2 > 0,
        }
        for number, text in enumerate(ODD_TEXTS)
    ]
    tokenizer = train_tiny_tokenizer(["0123456789 the"])
    for name in write_all(tmp_path, rows):
        assert texts(read_rows(name)) == texts(rows), name
        assert texts(read_rows(name, streaming=True)) == texts(rows), name
        mixture = read_mixture(DataSettings(train=name), [], seed=0)
        tokens = tokenize_rows(
            mixture.train, tokenizer, format_name="auto", rendering=Rendering(200), source_column="source"
        )
        assert list(tokens["source"]) == [row["source"] for row in rows], name
        for row, ids, labels in zip(rows, tokens["input_ids"], tokens["labels"], strict=True):
            end = "" if row["completion"] == "<eos>" else "<eos>"
            assert tokenizer.decode(ids) == f"{row['prompt']}{row['completion']}{end}", name
            assert tokenizer.decode([token for token in labels if token >= 0]) == f"{row['completion']}{end}", name


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20))
def test_any_text_survives_json_and_csv(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("files")
    held = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
    for name in ("rows.jsonl", "rows.ndjson", "list.json", "rows.csv"):
        (folder / name).write_bytes(FILES[name](held))
        assert list(read_rows(str(folder / name), streaming=True)) == held


def test_lists_and_mappings_keep_their_own_keys_in_their_own_order(tmp_path: Path) -> None:
    rows = [
        {"messages": turns, "tools": [{"z": 1, "a": None}] if number else None} for number, turns in enumerate(NESTED)
    ]
    for name in ("rows.jsonl", "list.json"):
        (tmp_path / name).write_bytes(FILES[name](rows))
        for streaming in (False, True):
            found = list(read_rows(str(tmp_path / name), streaming=streaming))
            assert found == rows
            assert json.dumps(found) == json.dumps(rows)  # the order of keys too
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    for streaming in (False, True):
        found = list(read_rows(str(tmp_path / "rows.parquet"), streaming=streaming))
        assert [set(turn) for turn in found[1]["messages"]] == [{"role", "content", "name"}]
        assert "tool_calls" not in found[0]["messages"][0]


def test_mixed_cells_are_text_as_written_and_missing_ones_are_missing(tmp_path: Path) -> None:
    lines = ['{"a": 1, "b": 1.50}', '{"a": "x", "b": 2}', '{"a": true}', '{"a": null, "b": NaN}', '{"b": 1e400}']
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, f'{{"a": {10**30}, "b": 12}}']))
    for streaming in (False, True):
        rows = list(read_rows(str(tmp_path / "rows.jsonl"), streaming=streaming))
        assert [text_of_value(row.get("a")) for row in rows] == ["1", "x", "true", None, None, str(10**30)]
        assert [text_of_value(row.get("b")) for row in rows] == ["1.50", "2", None, None, "1e400", "12"]


def test_table_columns_that_are_not_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "category": pa.array(["a", "b"]).dictionary_encode(),
            "float": pa.array([0.1, None], pa.float32()),
            "large": pa.array([2**64 - 1, 1], pa.uint64()),
            "day": pa.array([0, 1], pa.date32()),
            "image": pa.array([b"\x00\xff", None]),
            "missing": pa.nulls(2),
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet")
    for streaming in (False, True):
        first, _ = read_rows(str(tmp_path / "rows.parquet"), streaming=streaming)
        assert first.pop("image") == b"\x00\xff"
        assert {key: text_of_value(value) for key, value in first.items()} == {
            "category": "a",
            "float": "0.1",
            "large": str(2**64 - 1),
            "day": "1970-01-01",
            "missing": None,
        }


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for number in range(3):
        path.write_text(json.dumps({"text": str(number)}))
        assert list(read_rows(str(path))) == [{"text": str(number)}]


BAD: dict[str, tuple[str, bytes, str]] = {
    "byte": (
        "r.jsonl",
        b'{"a": "x"}\n{"a": "caf\xe9"}\n',
        r"r.jsonl, line 2, is not UTF-8: byte 11 of the line is 0xe9",
    ),
    "byte in a list": ("r.json", b'[{"a": "x"},\n\n{"a": "\xff"}]', r"r.json, line 3, is not UTF-8: byte 8"),
    "byte in csv": ("r.csv", b"a,b\n1,2\n\xfc,3\n", r"r.csv, line 3, is not UTF-8: byte 1"),
    "utf-16": ("r.jsonl", '{"a": "x"}'.encode("utf-16"), r"line 1, is not UTF-8: byte 1 of the line is 0xff"),
    "cut": ("r.jsonl", b'{"a": "x"}\n\n{"a": "y"\n', r"r.jsonl, line 3, is not valid JSON: .* at column 10"),
    "text": ("r.jsonl", b"hello\n", r"r.jsonl, line 1, is not valid JSON"),
    "two a line": ("r.jsonl", b'{"a": 1} {"a": 2}\n', r"line 1, contains more than one JSON object"),
    "list a line": ("r.jsonl", b'{"a": 1}\n[1]\n', r"line 2, contains a list, '\[1\]'; each row must be an object"),
    "null": ("r.jsonl", b"null\n", r"line 1, contains a number or a constant, 'null'"),
    "a key twice": ("r.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', r"line 2, has the key 'a' twice in one object"),
    "within": ("r.jsonl", b'{"a": [{"b": 1, "b": 1}]}', r"line 1, has the key 'b' twice"),
    "twice in a list": ("r.json", b'[\n{"a": 1},\n{"a": 1, "a": 2}]', r"r.json, line 3, has the key 'a' twice"),
    "half a pair": ("r.jsonl", rb'{"a": "\ud83d"}', r"line 1, has half a surrogate pair \('\\ud83d'\)"),
    "no comma": ("r.json", b'[{"a": 1}\n{"a": 2}]', r"r.json, line 2: a comma or the end of the list"),
    "open list": ("r.json", b'[{"a": 1},\n', r"line 2: truncated: the file ends inside its list of rows"),
    "after the list": ("r.json", b'[{"a": 1}]\n{"a": 2}', r"unexpected content after the list of rows"),
    "numbers": ("r.json", b"[1, 2]", r"line 1, contains a number or a constant, '1'"),
    "digits": ("r.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"line 1, cannot be read as JSON"),
    "depth": ("r.jsonl", b'{"a": ' + b"[" * 200000, r"line 1, cannot be read as JSON"),
    "no row": ("r.json", b"[]", r"has no row"),
    "blank": ("r.jsonl", b"\n \n", r"has no row"),
    "empty": ("r.csv", b"", r"is empty"),
    "header": ("r.csv", b"a,b\n", r"has no row"),
    "cells": ("r.csv", b'a,b\n"x\ny",1\n1,2,3\n', r"r.csv, line 4, has 3 cells, but the header has 2"),
    "few cells": ("r.csv", b"a,b\n1\n", r"line 2, has 1 cells"),
    "quotes": ("r.csv", b'a,b\n1,"x\n', r"r.csv, line 2, is not valid CSV"),
    "columns": ("r.csv", b"a,b,a\n1,2,3\n", r"line 1, names the column 'a' twice"),
    "gzip": ("r.jsonl.gz", b"not compressed", r"r.jsonl.gz' could not be decompressed as .gz"),
    "cut gzip": ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999)[:40], r"could not be decompressed as .gz"),
    "zstd": ("r.jsonl.zst", b"not compressed", r"could not be decompressed as .zst"),
    "parquet": ("r.parquet", b"PAR1 not", r"could not be read: '.*r.parquet'"),
    "ending": ("r.txt", b"x", r"r.txt' has an unknown ending \(.txt\). .*\.jsonl"),
    "no ending": ("rows", b"x", r"rows' has an unknown ending \(none\)"),
    "packed table": ("r.parquet.gz", b"x", r"has an unknown ending \(.parquet.gz\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_their_place(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_name_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    for missing in ("*.jsonl", "[a].jsonl", "b.jsonl", "a.jsonl.gz", "a.ndjson"):
        with pytest.raises(DataError, match="There is no file"):
            read_rows(str(tmp_path / missing))
    DatasetDict({"train": Dataset.from_list([{"a": 1}])}).save_to_disk(str(tmp_path / "held"))
    with pytest.raises(DataError, match="has no split 'test'. It has: train"):
        read_rows(str(tmp_path / "held"), split="test")


def test_a_row_that_cannot_be_tokenized_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"source": "a", "prompt": "x", "completion": str(number)} for number in range(30)]
    rows[23]["completion"] = ["not", "text"]
    path.write_bytes(as_json_lines(rows))
    tokenizer = train_tiny_tokenizer(["0123456789 the"])
    options: dict[str, Any] = {"format_name": "auto", "rendering": Rendering(20), "source_column": "source"}
    part = read_rows(str(path))
    for chosen in (part, part.select(range(20, 30)), part.select([29, 23, 1]).select([1, 2])):
        with pytest.raises(DataError, match=r"rows.jsonl, line 24: A cell is a list where text"):
            tokenize_rows([chosen], tokenizer, **options)
    with pytest.raises(DataError, match="The data, the row that begins .*not.*: A cell is a list where text"):
        tokenize_rows([Dataset.from_list(rows[23:24])], tokenizer, **options)


def test_a_data_set_with_features_of_its_own_is_read(tmp_path: Path) -> None:
    features = Features({"text": Value("large_string"), "ids": [Value("int64")]})
    Dataset.from_list([{"text": "2024-01-01", "ids": [1, 2]}], features=features).save_to_disk(str(tmp_path / "d"))
    assert list(read_rows(str(tmp_path / "d"))) == [{"text": "2024-01-01", "ids": [1, 2]}]


def test_missing_columns_are_empty_in_streams_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"source": "a", "prompt": "x", "completion": "1"}, {"source": "a", "prompt": "y"}, {"source": "b"}]
    path.write_bytes(as_json_lines([*rows, {"source": "b", "completion": "2", "note": "later"}]))
    data = DataSettings(train=str(path), streaming=True, chat_template=False)
    tokenizer = train_tiny_tokenizer(["0123456789 the"])
    mixture = prepare_stream(read_stream(data, []), tokenizer, data, seed=0)
    assert sorted(tokenizer.decode(row["input_ids"]) for row in mixture.train) == ["2<eos>", "x1<eos>"]


def test_floats_maps_and_bytes_of_a_table(tmp_path: Path) -> None:
    values = [1.0, 0.1, 1e10, None, float("nan")]
    pair = pa.struct([("m", pa.map_(pa.string(), pa.float32())), ("empty", pa.int8())])
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        table = pa.table(
            {
                "number": pa.array([None if value is None else min(value, 2.0**11) for value in values], kind),
                "map": pa.array([[("z", 1), ("a", 2)], None, [], [], []], pa.map_(pa.string(), pa.int8())),
                "within": pa.array([[{"m": [("k", 0.1)], "empty": None}]] * 5, pa.list_(pair)),
                "image": pa.array([{"bytes": b"\xff\xd8", "path": None}] * 5),
                "images": pa.array([[b"\xff"]] * 5),
            }
        )
        parquet.write_table(table, tmp_path / "rows.parquet")
        for streaming in (False, True):
            rows = list(read_rows(str(tmp_path / "rows.parquet"), streaming=streaming))
            numbers = [text_of_value(row["number"]) for row in rows]
            assert numbers == ["1.0", "0.1", "2048.0", None, None]
            assert [row["map"] for row in rows] == [{"z": 1, "a": 2}, None, {}, {}, {}]
            assert rows[0]["within"] == [{"m": {"k": 0.1}}]
            assert rows[0]["image"]["bytes"] == b"\xff\xd8"
            assert rows[0]["images"] == [b"\xff"]
    doubled = pa.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(doubled, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="has the column 'text' twice"):
        read_rows(str(tmp_path / "twice.parquet"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_every_line_ending_works(end: str, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(f'a,b{end}1,"x\ry"{end}2,z{end}'.encode())
    (tmp_path / "r.jsonl").write_bytes(f'{{"a": "1"}}{end}{{"a": "2"}}'.encode())
    for streaming in (False, True):
        rows = list(read_rows(str(tmp_path / "r.csv"), streaming=streaming))
        assert rows == [{"a": "1", "b": "x\ry"}, {"a": "2", "b": "z"}]
        assert list(read_rows(str(tmp_path / "r.jsonl"), streaming=streaming)) == [{"a": "1"}, {"a": "2"}]


def test_a_file_is_read_again_even_if_its_size_and_time_are_the_same(tmp_path: Path) -> None:
    for name, write in FILES.items():
        for text in ("1", "2"):
            (tmp_path / "new").write_bytes(write([{"text": text}]))
            os.utime(tmp_path / "new", (1, 1))
            (tmp_path / "new").replace(tmp_path / name)
            assert list(read_rows(str(tmp_path / name))) == [{"text": text}]


CARDS: dict[str, tuple[str, bytes]] = {
    "separator": ('sep: ";"', b'prompt;completion\n007;"a;b"\nNA;\n'),
    "delimiter": ('delimiter: "\\t"', b'prompt\tcompletion\n007\t"a;b"\nNA\t\n'),
    "names": ("column_names: [prompt, completion]", b"007,a;b\nNA,\n"),
    "skipped": ("skiprows: 1", b"# of 2024\nprompt,completion\n007,a;b\nNA,\n"),
    "quotes": ('quotechar: "\'"', b"prompt,completion\n'007','a;b'\n'NA',\n"),
    "encoding": ("encoding: utf-16", "prompt,completion\n007,a;b\nNA,\n".encode("utf-16")),
}


@pytest.mark.parametrize("card", CARDS)
def test_a_data_card_is_respected(card: str, tmp_path: Path) -> None:
    setting, content = CARDS[card]
    header = f"---\nconfigs:\n- config_name: default\n  data_files: rows.csv\n  {setting}\n---\n"
    (tmp_path / "README.md").write_text(header)
    (tmp_path / "rows.csv").write_bytes(content)
    for streaming in (False, True):
        rows = list(read_rows(str(tmp_path), streaming=streaming))
        assert rows == [{"prompt": "007", "completion": "a;b"}, {"prompt": "NA", "completion": ""}]


def test_parts_of_splits_and_archives_are_read_as_written(tmp_path: Path) -> None:
    texts = ["2024-01-01T10:00:00Z", "007", "1.50"]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text("\n".join(lines[:2]))
    (tmp_path / "hub" / "test.jsonl").write_text(lines[2])
    for split, held in {
        "train[1:]": [1],
        "train[:50%]+test": [0, 2],
        "test+train": [2, 0, 1],
        "all": [0, 1, 2],
    }.items():
        rows = read_rows(str(tmp_path / "hub"), split=split)
        assert sorted(row["text"] for row in rows) == sorted(texts[number] for number in held)
        with pytest.raises(DataError, match="cannot be streamed"):
            read_rows(str(tmp_path / "hub"), split=split, streaming=True)
    for streaming in (False, True):
        with pytest.raises(DataError, match="has no split 'trai'. Did you mean 'train'"):
            read_rows(str(tmp_path / "hub"), split="trai", streaming=streaming)
    (tmp_path / "packed").mkdir()
    for text in texts:
        with zipfile.ZipFile(tmp_path / "packed" / "train.zip", "w") as archive:
            archive.writestr("part/rows.jsonl", json.dumps({"text": text}))
            archive.writestr("more.csv", f"text\n{text}\n")
        for streaming in (False, True):
            assert list(read_rows(str(tmp_path / "packed"), streaming=streaming)) == [{"text": text}] * 2


@pytest.mark.parametrize("late", ["prompt", "completion", "note"])
def test_a_stream_has_the_columns_of_later_rows(late: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"source": "a", "q": "x", "a": str(number), "note": "!"} for number in range(3)]
    rows[0].pop({"prompt": "q", "completion": "a"}.get(late, late))
    path.write_bytes(as_json_lines(rows))
    tokenizer = train_tiny_tokenizer(["0123456789 the"])
    for change in (
        {"columns": {"prompt": "q", "completion": "a"}},
        {"template": {"prompt": "{q}{note}", "completion": "{a}"}},
    ):
        data = DataSettings(train=str(path), chat_template=False, **change)
        mixture = read_mixture(data, [], seed=0)
        whole = tokenize_rows(
            mixture.train, tokenizer, format_name="auto", rendering=Rendering(20), source_column="source"
        )
        streamed = prepare_stream(read_stream(data, []), tokenizer, data, seed=0).train
        assert sorted(row["input_ids"] for row in streamed) == sorted(whole["input_ids"])


@pytest.mark.parametrize("name", ["r.csv", "r.json", "r.jsonl"])
def test_a_stream_without_rows_is_rejected(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text({"r.csv": "prompt,completion\n", "r.json": "[]", "r.jsonl": "\n"}[name])
    for streaming in (False, True):
        with pytest.raises(DataError, match="has no row"):
            read_rows(str(tmp_path / name), streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_without_a_row_is_said_to_have_none(tmp_path: Path, streaming: bool) -> None:
    for name, text in (("header.csv", "prompt,completion\n"), ("none.json", "[]"), ("bare.jsonl", "{}\n{}\n")):
        (tmp_path / name).write_text(text)
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match=rf"{path.name}' has no rows; it needs at least one"):
            read_rows(str(path), streaming=streaming)
