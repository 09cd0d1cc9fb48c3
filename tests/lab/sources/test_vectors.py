"""Files of vectors: what is written is read, parts make the whole, and vectors of other rows are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colm import __version__
from colm.errors import ConfigError, DataError
from colm.lab.sources import vectors
from colm.lab.sources.vectors import COLUMN, Header, check_features, join_parts, read_header, write_vectors
from colm.lab.sources.wanted import WHOLE, Part, Wanted

FINGERPRINT = {"rows": 7, "digest": "0123456789abcdef"}
VALUES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def header_of(part: Part = WHOLE, **changes: Any) -> Header:
    made = Header({"by": "words", "dimensions": 3}, FINGERPRINT, 3, VALUES[:2].tolist(), part)
    return made._replace(**changes)


def write_parts(whole: Path, parts: int) -> None:
    for number in range(parts):
        part = Part(number, parts)
        rows = part.rows(len(VALUES))
        write_vectors(part.path(whole), [VALUES[rows.start : rows.stop]], header_of(part))


def read(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path)[COLUMN].to_pylist(), dtype=np.float32)


@given(st.integers(0, 300), st.integers(1, 40))
def test_parts_are_all_rows_in_order_and_of_nearly_equal_size(total: int, parts: int) -> None:
    ranges = [Part(number, parts).rows(total) for number in range(parts)]
    assert [row for rows in ranges for row in rows] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(st.lists(st.integers(0, 4), max_size=5), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=30)
def test_a_file_has_the_vectors_in_order_whatever_the_blocks(sizes: list[int], width: int, rows: int) -> None:
    values = np.arange(sum(sizes) * width, dtype=np.float32).reshape(-1, width)
    blocks = np.split(values, np.cumsum(sizes))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(vectors, "GROUP_BYTES", rows * width * 4)
        path = Path(folder) / "features.parquet"
        write_vectors(path, iter(blocks), header_of(dimensions=width))
        table = pq.read_table(path)
        groups = pq.ParquetFile(path).num_row_groups
    assert table[COLUMN].to_pylist() == values.tolist()
    assert table.schema.field(COLUMN).type == pa.list_(pa.float32(), width)
    assert groups <= -(-len(values) // rows)


@pytest.mark.parametrize("parts", [2, 7, 9])
def test_parts_are_joined(tmp_path: Path, parts: int) -> None:
    whole = tmp_path / "odd [1].name.parquet"
    write_parts(whole, parts)
    (tmp_path / "other-0-of-2.parquet").touch()
    assert join_parts(whole) == read_header(whole) == header_of()
    assert read(whole).tolist() == VALUES.tolist()
    held = read_header(whole)
    assert held is not None
    assert held.version == __version__


def test_parts_that_make_no_whole_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "f.parquet"
    with pytest.raises(ConfigError, match=r"There is no part of .*f.parquet, such as f-0-of-4.parquet, next to it"):
        join_parts(whole)
    write_parts(whole, 3)
    Part(1, 3).path(whole).unlink()
    with pytest.raises(ConfigError, match=r"1 of the 3 parts of .* are missing, such as f-1-of-3.parquet.*--shard i/3"):
        join_parts(whole)
    write_parts(whole, 2)
    with pytest.raises(ConfigError, match=r"are of several divisions \(2, 3\)"):
        join_parts(whole)
    assert not whole.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"by": "words", "dimensions": 3, "seed": 1}}, "seed is 1, not None"),
        ({"fingerprint": {**FINGERPRINT, "digest": "f"}}, "it has the vectors of other rows"),
        ({"first": (-VALUES[:2]).tolist()}, "the vectors of the first rows, which both contain, are others"),
        ({"part": Part(0, 2)}, "was not written by colm features --shard 1/2"),
    ],
)
def test_parts_that_differ_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    whole = tmp_path / "f.parquet"
    write_parts(whole, 2)
    rounded = (VALUES[:2] * (1 + 1e-3)).tolist()  # by another machine
    write_vectors(Part(1, 2).path(whole), [VALUES[3:]], header_of(Part(1, 2), first=rounded))
    join_parts(whole)
    write_vectors(Part(1, 2).path(whole), [VALUES[3:]], header_of(Part(1, 2))._replace(**change))
    with pytest.raises(DataError, match=rf"f-1-of-2.parquet .*{message}"):
        join_parts(whole)


def test_an_interruption_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"

    def stop() -> Iterator[np.ndarray]:
        yield VALUES
        raise KeyboardInterrupt

    for expected in ([], [path]):
        with pytest.raises(KeyboardInterrupt):
            write_vectors(path, stop(), header_of())
        assert list(tmp_path.iterdir()) == expected
        write_vectors(path, [VALUES], header_of())
    assert read(path).tolist() == VALUES.tolist()


def test_a_run_refuses_vectors_of_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    write_vectors(path, [VALUES], header_of())
    check_features(path, FINGERPRINT)
    message = r"has the vectors of other rows: 7 \(01234567\), and the run trains on 8 \(01234567\).*colm features"
    with pytest.raises(DataError, match=message):
        check_features(path, {**FINGERPRINT, "rows": 8})
    with pytest.raises(DataError, match=r"trains on 7 \(ffff\)"):
        check_features(path, {**FINGERPRINT, "digest": "ffff"})
    write_vectors(path, [VALUES[:3]], header_of(Part(0, 2)))
    with pytest.raises(DataError, match=r"part 0 of 2. Join all parts with colm features --join"):
        check_features(path, FINGERPRINT)
    pq.write_table(pa.table({COLUMN: [[1.0]]}), path)
    check_features(path, FINGERPRINT)  # somebody else's vectors
    assert read_header(path) is None


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"settings": 5}', b'{"part": [0]}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "f.parquet"
    if content is None:
        path.write_bytes(b"PAR1")
    else:
        schema = pa.schema([(COLUMN, pa.int64())], metadata={b"colm_features": content})
        pq.write_table(pa.table({COLUMN: [1]}, schema=schema), path)
    with pytest.raises(DataError, match="f.parquet is not a file of vectors that this version of colm can read"):
        read_header(path)


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "1/0", "0/0", "1/2/3", "a/b", "1.0/2", "0/" + "9" * 30])
def test_a_part_that_does_not_exist(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--shard '.*' must be i/n with 0 <= i < n, such as 0/4"):
        Part.read(text)


def test_wishes_out_of_range() -> None:
    for dimensions in (0, -1, 2**40):
        with pytest.raises(ConfigError, match=rf"--dimensions {dimensions} must be from 1 to"):
            Wanted("words", dimensions)
    with pytest.raises(ConfigError, match="--by words needs no model; leave out --model x"):
        Wanted("words", model="x")
