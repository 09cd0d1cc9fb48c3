from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.support.files import write_lines

from colm.errors import DataError
from colm.lab.data.demo import SHARES, demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.load import read_mixture
from colm.lab.data.read import read_rows
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.data.tokenize import tokenize_rows
from colm.models import train_tiny_tokenizer

ROWS = [{"source": "ab"[i % 5 == 0], "prompt": f"{i}?", "completion": f"{i}!"} for i in range(20)]


def data(**changes: Any) -> DataSettings:
    return DataSettings(**changes)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        write_lines(path, rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(str(path))
    else:
        Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"rows.{ending}", ROWS)
    assert list(read_rows(path)) == ROWS
    mixture = read_mixture(data(train=path), [], seed=0)
    assert mixture.validation == []
    assert [len(part) for part in mixture.train] == [20]


def test_a_mixture_of_files_makes_each_a_source(tmp_path: Path) -> None:
    first = write(tmp_path / "maths.jsonl", [{"prompt": "1", "completion": "2", "id": 7}] * 3)
    second = write(tmp_path / "other.jsonl", [{"instruction": "a", "output": "b", "source": "old"}] * 2)
    mixture = read_mixture(data(), [MixtureEntry(first), MixtureEntry(second, source="letters")], seed=0)
    assert [list(part["source"]) for part in mixture.train] == [["maths"] * 3, ["letters"] * 2]
    tokenizer = train_tiny_tokenizer(["0123456789ab"])
    tokens = tokenize_rows(mixture.train, tokenizer, format_name="auto", rendering=Rendering(9), source_column="source")
    assert list(tokens["source"]) == ["maths"] * 3 + ["letters"] * 2
    own = read_mixture(data(), [MixtureEntry(first), MixtureEntry(second)], seed=0)
    assert list(own.train[1]["source"]) == ["old"] * 2  # its own labels, since the entry names no source
    (tmp_path / "again").mkdir()
    same = write(tmp_path / "again" / "maths.jsonl", [{"prompt": "1", "completion": "2"}])
    with pytest.raises(DataError, match="would both be named 'maths'; give each a source"):
        read_mixture(data(), [MixtureEntry(first), MixtureEntry(same)], seed=0)


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", [{"kind": "a", "question": "1?", "reply": "2"}])
    settings = data(train=path, columns={"prompt": "question", "completion": "reply"}, source_column="kind")
    assert read_mixture(settings, [], seed=0).train[0][0] == {"kind": "a", "prompt": "1?", "completion": "2"}
    with pytest.raises(DataError, match="'prompt' to 'qestion', which the data does not have. Did you mean 'question'"):
        read_mixture(data(train=path, columns={"prompt": "qestion"}), [], seed=0)


def test_a_mapped_name_that_already_exists(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", [{"source": "a", "prompt": "x", "question": "1?", "completion": "2"}])
    with pytest.raises(DataError, match="the data already has a column 'prompt'"):
        read_mixture(data(train=path, columns={"prompt": "question"}), [], seed=0)


def test_rows_without_a_label_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_list([{"source": "a", "prompt": "1", "completion": ""}, *ROWS])
    tokenizer = train_tiny_tokenizer(["0123456789?!"])
    options: dict[str, Any] = {"format_name": "auto", "rendering": Rendering(20), "source_column": "source"}
    tokens = tokenize_rows([rows], tokenizer, **options)
    assert len(tokens) == 20
    assert "1 of 21 rows have no labeled token" in caplog.text
    with pytest.raises(DataError, match="None of the 1 rows has a labeled token within max_length=20"):
        tokenize_rows([rows.select([0])], tokenizer, **options)


def test_bad_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no file '.*trian.jsonl'. Did you mean '.*train.jsonl'"):
        read_rows(str(tmp_path / "trian.jsonl"))
    (tmp_path / "linked.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"linked.jsonl' is a link to 'gone.jsonl', which does not exist"):
        read_rows(str(tmp_path / "linked.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty.jsonl' is empty"):
        read_rows(str(tmp_path / "empty.jsonl"))
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DataError):
        read_rows(str(tmp_path / "none.json"))
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    with pytest.raises(DataError, match="broken.jsonl, line 1, is not valid JSON"):
        read_rows(str(tmp_path / "broken.jsonl"))
    with pytest.raises(DataError, match="data set could not be loaded: 'no-such/data-set'"):
        read_rows("no-such/data-set")
    with pytest.raises(DataError, match="No training data"):
        read_mixture(data(), [], seed=0)


def test_missing_source_columns_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match="no column 'sorce' for the source. Did you mean 'source'"):
        read_mixture(data(train=path, source_column="sorce"), [], seed=0)
    holes = write(tmp_path / "holes.jsonl", [*ROWS, {"source": None, "prompt": "1", "completion": "2"}])
    with pytest.raises(DataError, match="Row 20 has no source"):
        read_mixture(data(train=holes), [], seed=0)


def test_the_demo_mixture_is_imbalanced_and_its_held_out_rows_are_new() -> None:
    train, held = demo_rows(400, 0), demo_rows(400, 0, held_out=4)
    counts = {name: list(train["source"]).count(name) for name in SHARES}
    assert len(counts) >= 8
    assert max(counts.values()) == counts["gsm_symbolic"] == 180
    assert sum(count * len(counts) < len(train) for count in counts.values()) >= 4
    assert sum(SHARES.values()) == pytest.approx(1)
    gsm = next(row for row in train if row["source"] == "gsm_symbolic")
    assert "The answer is" in gsm["completion"]
    assert "####" not in gsm["completion"]
    assert list(held["source"]).count("syllogism") == 4
    gsm_train = {row["prompt"] for row in train if row["source"] == "gsm_symbolic"}
    assert not gsm_train & {row["prompt"] for row in held}
    with pytest.raises(DataError, match="at least 100 rows"):
        demo_rows(10, 0)
