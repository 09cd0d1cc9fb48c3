"""Features of rows by their sources, their tokens, or a file."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from colm import DataError
from colm import token_features as tokens
from colm.row_features import check_features, read_features, source_features
from colm.token_features import token_features


def tfidf_slowly(rows: list[list[int]]) -> np.ndarray:
    """Return sublinear TF-IDF vectors of length 1, with plain loops."""
    tokens = sorted({token for row in rows for token in row})
    found = np.zeros((len(rows), len(tokens)))
    for number, row in enumerate(rows):
        for token, count in Counter(row).items():
            idf = 1 + math.log((1 + len(rows)) / (1 + sum(token in other for other in rows)))
            found[number, tokens.index(token)] = (1 + math.log(count)) * idf
        if row:
            found[number] /= np.sqrt((found[number] ** 2).sum())
    return found


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=12))
def test_with_enough_directions_products_are_those_of_tfidf(rows: list[list[int]]) -> None:
    data = Dataset.from_dict({"input_ids": rows}) if any(rows) else [{"input_ids": row} for row in rows]
    found = token_features(data)
    assert found.dtype == np.float32
    assert len(found) == len(rows)
    assert 1 <= found.shape[1] <= 64
    expected = tfidf_slowly(rows)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-6)


def random_rows(count: int) -> list[list[int]]:
    draw = np.random.default_rng(0)
    topics = draw.integers(0, 5, count)
    return [[*(20 * topic + draw.integers(0, 20, 9)), *draw.integers(100, 140, 6)] for topic in topics]


def test_few_directions_hold_as_much_as_the_best_and_rows_have_length_1(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(120)
    monkeypatch.setattr(tokens, "CHUNK", 70)
    monkeypatch.setattr(tokens, "_normalize", lambda rows: rows)
    found = token_features(Dataset.from_dict({"input_ids": rows}), dimensions=8)
    best = np.linalg.svd(tfidf_slowly(rows), compute_uv=False)[:8]
    assert found.shape == (120, 8)
    assert np.square(found).sum() > 0.98 * np.square(best).sum()
    monkeypatch.undo()
    lengths = np.linalg.norm(token_features(Dataset.from_dict({"input_ids": rows}), dimensions=8), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_how_the_data_is_stored_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(50)
    plain = token_features(Dataset.from_dict({"input_ids": rows}))
    lists = pa.array(rows)
    stored = [
        [{"input_ids": np.array(row)} for row in rows],
        Dataset(pa.table({"input_ids": lists.cast(pa.large_list(pa.int32()))})),
        Dataset(pa.table({"input_ids": lists.cast(pa.list_(pa.int64(), 15))})),
        Dataset.from_dict({"input_ids": rows[::-1]}).select(range(49, -1, -1)),  # with a mapping of indices
        Dataset.from_dict({"input_ids": rows}).with_format("torch"),
    ]
    padded = {"input_ids": [[*row, 0, 0] for row in rows], "attention_mask": [[1] * 15 + [0, 0]] * 50}
    stored += [
        Dataset.from_dict(padded),
        [dict(zip(padded, pair, strict=True)) for pair in zip(*padded.values(), strict=True)],
    ]
    for data in stored:
        np.testing.assert_array_equal(token_features(data), plain)
    monkeypatch.setattr(tokens, "SAMPLE", 20)
    fewer = token_features(Dataset.from_dict({"input_ids": rows}))
    assert fewer.shape == (50, 20)  # no more directions than rows in the sample
    assert np.isfinite(fewer).all()


@pytest.mark.parametrize("rows", [[[]], [[], []], [[], [3]], [[-200, -200]], [[1, 1, 1]] * 4])
def test_rows_without_tokens_or_without_difference(rows: list[list[int]]) -> None:
    found = token_features([{"input_ids": row} for row in rows])
    assert np.linalg.norm(found, axis=1).round(6).tolist() == [float(any(token >= 0 for token in row)) for row in rows]


def test_sources_are_equally_far_apart() -> None:
    found = source_features(np.array([2, 0, 2]), 3)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]


def test_files_have_the_features_that_were_saved(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 3))
    np.save(tmp_path / "f.npy", values)
    pq.write_table(pa.table({"features": values.tolist(), "id": range(5)}), tmp_path / "lists.parquet")
    fixed = pa.array(values.tolist(), pa.list_(pa.float32(), 3))
    pq.write_table(pa.table({"features": fixed}), tmp_path / "fixed.parquet")
    for name in ("f.npy", "lists.parquet", "fixed.parquet"):
        found = read_features(tmp_path / name, 5)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values.astype(np.float32))


def tables() -> list[tuple[str, Any, str]]:
    return [
        ("a.parquet", {"feature": [[1.0]]}, "no column 'features'. Did you mean 'feature'.* Columns: feature"),
        ("b.parquet", {"features": [1.0]}, "has the type double; it must have lists of numbers"),
        ("c.parquet", {"features": [[1.0], [1.0, 2.0]]}, "differ in length"),
        ("d.parquet", {"features": [[1.0], None]}, "differ in length"),
        ("e.parquet", {"features": [["x"], ["y"]]}, "must be an array"),
        ("f.parquet", {"features": [[1.0], [None]]}, "not finite numbers in row 1"),
        ("a.npy", [[1.0]] * 3, "features of 3 rows, but the training data has 2; give one vector for each row"),
        ("b.npy", [1.0, 2.0], r"shape \(2,\) and type float64; they must be an array \(rows, d\)"),
        ("c.npy", [[1.0], [np.nan]], "not finite numbers in row 1; give finite ones"),
        ("d.npy", [[1e300], [1.0]], "not finite numbers in row 0"),
        ("e.npy", [["x"], ["y"]], "must be an array"),
        ("f.npy", [[None], [1]], "cannot be read"),
    ]


@pytest.mark.parametrize(("name", "content", "message"), tables())
def test_wrong_files(tmp_path: Path, name: str, content: Any, message: str) -> None:
    if name.endswith("npy"):
        np.save(tmp_path / name, np.array(content), allow_pickle=True)
    else:
        pq.write_table(pa.table(content), tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        read_features(tmp_path / name, 2)
    assert name in str(error.value)


def test_missing_and_damaged_files_and_columns(tmp_path: Path) -> None:
    for name in ("a.npy", "a.parquet"):
        with pytest.raises(DataError, match="cannot be read .*give an existing file"):
            read_features(tmp_path / name, 2)
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(DataError, match="cannot be read"):
            read_features(tmp_path / name, 2)
    for data in (Dataset.from_dict({"text": ["a"]}), [{"text": "a"}]):
        with pytest.raises(DataError, match="no column 'input_ids', only text, so its rows cannot be ordered"):
            token_features(data)
    with pytest.raises(DataError, match="has the type int32; it must have lists of token ids"):
        token_features(Dataset.from_dict({"input_ids": [1, 2]}))
    with pytest.raises(DataError, match="features has features of 1 rows"):
        check_features([[1]], 2, "features")
