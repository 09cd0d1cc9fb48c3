"""Divide data files into shards, and write the rows of one shard with their sources."""

from __future__ import annotations

import glob
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from colm.errors import ConfigError, DataError, one_line
from colm.lab.data.cells import rows_of_arrow
from colm.lab.data.files import read_json_lines, split_ending
from colm.lab.data.progress import advance, begin, one_bar
from colm.lab.sources.assign import AssignSources, add_column
from colm.lab.sources.wanted import WHOLE, Part
from colm.step.files import replace_file, replacing

logger = logging.getLogger(__name__)

BATCH = 10_000
"""Rows in memory at a time."""

BUFFER = 2**20
"""Bytes of a Parquet column read at a time; by default, all of a row group."""

TABLES, LINES = (".parquet",), (".jsonl", ".ndjson")
"""Endings of the files that are read; those of lines may also be compressed."""


class Piece(NamedTuple):
    """What is not divided further: a file, or a row group of a Parquet file."""

    file: Path
    group: int | None = None


class Shard(NamedTuple):
    """A written shard."""

    path: Path
    rows: int
    sources: dict[str, int]  # name -> rows, the largest first
    empty: int  # rows without text
    new: bool = True  # False if it was there


@one_bar()
def write_shard(assigner: AssignSources, data: str, out: Path, *, part: Part = WHOLE, overwrite: bool = False) -> Shard:
    """Write the rows of one part of the data with their sources, in the order of the data, whole or not at all.

    A shard that is there already is not made again. What a shard is made from is in a hidden file next to it.

    Args:
        assigner: what names the sources.
        data: a file, a folder, or a pattern, see `find_files`.
        out: the file to write, of the kind of the data; a part is written next to it, see `Part.path`.
        part: of the files, or of their row groups if there are fewer files than parts.
        overwrite: make the shard again, also from other rows or with other clusters.

    Raises:
        ConfigError: `out` has the wrong ending, is among the data, or is not such a shard; or there are too few files.
        DataError: a file cannot be read, or does not fit the others or a format.
    """
    files = find_files(data)
    path = out if part == WHOLE else part.path(out)
    lines = _is_of_lines(files[0])
    if out.suffix != (LINES if lines else TABLES)[0]:
        raise ConfigError(f"--out {str(out)!r} must end with {(LINES if lines else TABLES)[0]}, as the data does.")
    if _is_among(path, data):
        raise ConfigError(f"--out {str(out)!r} would be part of the data {data!r}; choose another folder.")
    pieces = divide(files, part)
    made_from = {
        "clusters": assigner.digest,
        "data": _digest([part, *((piece.file.name, piece.file.stat().st_size, piece.group) for piece in pieces)]),
        "columns": _digest([assigner.source_column, assigner.columns, assigner.format_name]),
    }
    held = _find_shard(path, made_from, overwrite)
    if held is not None:
        return held
    schema = None if lines else _common_schema([piece.file for piece in pieces])
    tally = _Tally(assigner)
    begin("Assigning", len(pieces), "files" if pieces[0].group is None else "row groups")
    hidden = path.with_name(f".{path.name}")  # whoever reads the folder as data skips what a killed process leaves
    with replacing(hidden) as partial:
        if schema is None:
            _write_lines(partial, pieces, tally)
        else:
            _write_tables(partial, pieces, tally, schema)
    shard = Shard(path, tally.sources.total(), dict(tally.sources.most_common()), tally.empty)
    about = {**made_from, "bytes": hidden.stat().st_size, **shard._asdict(), "path": path.name}
    # An old shard goes first: it must not have the new record. A shard without a record is somebody else's file.
    path.unlink(missing_ok=True)
    replace_file(_record_path(path), json.dumps(about))
    hidden.replace(path)
    if shard.empty:
        logger.warning(
            "%d of %d rows have no text; their source is that of the cluster nearest to an empty text.",
            shard.empty,
            shard.rows,
        )
    return shard


def find_files(data: str) -> list[Path]:
    """Return data files by name, sorted, so that all processes see the same order.

    Args:
        data: a file; a folder, whose files of a known ending are meant, except hidden ones; or a pattern with ``*``.

    Raises:
        DataError: there are none, one has an unknown ending, or there are Parquet files and files of lines.
    """
    path = Path(data)
    if path.is_dir():
        found = [file for file in path.iterdir() if file.name[0] not in "._" and _ending(file) in (*TABLES, *LINES)]
    else:
        found = [path] if path.is_file() else [Path(name) for name in glob.glob(data)]
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise DataError(
            f"There are no data files {data!r}. Give a .parquet or .jsonl file, a folder of them, or a pattern in "
            "quotes, such as 'rows/*.parquet'."
        )
    for file in files:
        if _ending(file) not in (*TABLES, *LINES):
            raise DataError(f"{str(file)!r} is not a .parquet or .jsonl file; convert it, or leave it out.")
        if _is_of_lines(file) != _is_of_lines(files[0]):
            raise DataError(f"{str(files[0])!r} and {str(file)!r} are of different kinds; give one kind at a time.")
    return files


def divide(files: Sequence[Path], part: Part) -> list[Piece]:
    """Return the pieces of one part: consecutive files, or row groups if there are fewer files than parts.

    Raises:
        ConfigError: there are more parts than pieces.
        DataError: a Parquet file cannot be read.
    """
    pieces = [Piece(file) for file in files]
    if part.parts > len(files) and not _is_of_lines(files[0]):
        pieces = [Piece(file, group) for file in files for group in range(_look(pq.read_metadata, file).num_row_groups)]
    if part.parts > len(pieces):
        what = "files, which are not divided" if _is_of_lines(files[0]) else f"row groups in {len(files):,} files"
        raise ConfigError(
            f"--shard {part.number}/{part.parts} asks for more parts than the data has: {len(pieces):,} {what}. Use at "
            f"most {len(pieces):,} parts, or split the files."
        )
    return [pieces[place] for place in part.rows(len(pieces))]


class _Tally:
    """Names the sources of rows and counts them."""

    def __init__(self, assigner: AssignSources) -> None:
        self.assigner = assigner
        self.sources: Counter[str] = Counter()
        self.empty = 0

    def name(self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], piece: Piece) -> list[str]:
        """Return the sources of rows, whose columns are those of `AssignSources.match_columns`."""
        made = self.assigner.make_rows(rows, columns)
        try:
            self.empty += sum(not row.text.strip() for row in made)
            names = self.assigner.name_rows(made)
        except DataError as error:
            raise DataError(f"{piece.file}: {error}") from error
        self.sources.update(names)
        return names

    def match(self, known: Sequence[str], first: Mapping[str, Any], piece: Piece) -> dict[str, str]:
        """Return the columns of a file, see `AssignSources.match_columns`."""
        try:
            return self.assigner.match_columns(known, first)
        except DataError as error:
            raise DataError(f"{piece.file}: {error}") from error


def _write_tables(path: Path, pieces: Sequence[Piece], tally: _Tally, schema: pa.Schema) -> None:
    column = tally.assigner.source_column
    with pq.ParquetWriter(path, add_column(schema.empty_table(), column, []).schema) as writer:
        for piece in pieces:
            columns: dict[str, str] = {}
            for table in _read_tables(piece, schema):
                if not columns:
                    first = next(rows_of_arrow(table.slice(0, 1).to_batches()[0]))
                    columns = tally.match(schema.names, first, piece)
                parts = table.select(list(columns.values())).to_batches()
                names = tally.name((row for part in parts for row in rows_of_arrow(part)), columns, piece)
                writer.write_table(add_column(table, column, names))
            advance()


def _read_tables(piece: Piece, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of a piece, some at a time; none of them is empty."""
    try:
        with pq.ParquetFile(piece.file, buffer_size=BUFFER, pre_buffer=False) as file:
            for group in range(file.num_row_groups) if piece.group is None else [piece.group]:
                for batch in file.iter_batches(BATCH, row_groups=[group]):
                    if batch.num_rows:
                        yield pa.Table.from_batches([batch]).cast(schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{piece.file} is damaged ({one_line(error)}).") from error


def _write_lines(path: Path, pieces: Sequence[Piece], tally: _Tally) -> None:
    column = tally.assigner.source_column
    with path.open("w", encoding="utf-8") as file:
        for piece in pieces:
            lines = read_json_lines(str(piece.file))
            columns: dict[str, str] = {}
            while batch := list(islice(lines, BATCH)):
                texts, rows = zip(*batch, strict=True)
                columns = columns or tally.match(
                    list(dict.fromkeys(key for row in rows for key in row)), rows[0], piece
                )
                for text, name in zip(texts, tally.name(rows, columns, piece), strict=True):
                    file.write(json.dumps({**json.loads(text), column: name}, ensure_ascii=False) + "\n")
            advance()


def _common_schema(files: Sequence[Path]) -> pa.Schema:
    """Return the columns of Parquet files. Raises DataError if a file has others, or one twice."""
    schema: pa.Schema = _look(pq.read_schema, files[0]).remove_metadata()
    doubled = [name for name in schema.names if schema.names.count(name) > 1]
    if doubled:
        raise DataError(f"{str(files[0])!r} has the column {doubled[0]!r} twice; rename one of them.")
    for file in dict.fromkeys(files):
        other = _look(pq.read_schema, file)
        differing = [field.name for field in {*schema} ^ {*other}]
        if not schema.equals(other):
            raise DataError(
                f"{file} and {files[0]} differ in their columns ({', '.join(sorted(set(differing))) or 'the order'}). "
                "Write them with the same columns and types."
            )
    return schema


def _look(read: Callable[[Path], Any], file: Path) -> Any:
    try:
        return read(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet ({one_line(error)}).") from error


def _find_shard(path: Path, made_from: Mapping[str, str], overwrite: bool) -> Shard | None:
    """Return the shard at `path` if it is there; None if it is to be made."""
    if not os.path.lexists(path):
        return None
    try:
        held = json.loads(_record_path(path).read_text(encoding="utf-8"))
        if held["bytes"] != path.stat().st_size:
            raise ValueError
        shard = Shard(path, held["rows"], held["sources"], held["empty"], new=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} was not written by colm sources --assign, or has changed since. Move it away, or choose another "
            "--out."
        ) from error
    other = [name for name, value in made_from.items() if held.get(name) != value]
    if other and not overwrite:
        raise ConfigError(
            f"{path} already exists, made with other {' and '.join(other)}. Replace it with --overwrite, or choose "
            "another --out."
        )
    return None if overwrite else shard


def _is_among(path: Path, data: str) -> bool:
    """Return whether a new file would be found as data, by shards that are written later."""
    if os.path.isdir(data):
        return path.parent.resolve() == Path(data).resolve()
    return not os.path.isfile(data) and Path(os.path.abspath(path)).match(os.path.abspath(data))


def _record_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _digest(value: Any) -> str:
    return blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _ending(file: Path) -> str:
    return split_ending(file.name)[1]


def _is_of_lines(file: Path) -> bool:
    return _ending(file) in LINES
