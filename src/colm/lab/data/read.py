"""Rows of a file, a folder or a hub data set, as written there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import (
    BuilderConfig,
    Dataset,
    DatasetDict,
    DownloadConfig,
    DownloadManager,
    Features,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json

from colm.errors import ColmError, DataError, one_line, suggest
from colm.lab.data.cells import JsonCell, nested_columns, restore_cells
from colm.lab.data.chat import SEEN
from colm.lab.data.file_sets import files_as_rows, parquet_as_rows
from colm.lab.data.files import COMPRESSIONS, CSV_ENDINGS, JSON_ENDINGS, read_file_rows, split_ending
from colm.lab.data.schemas import SYSTEM
from colm.step.values import text_of_value

PARQUET = ".parquet"
ENDINGS = (*JSON_ENDINGS, *CSV_ENDINGS, PARQUET)
"""Endings of supported files; all but Parquet files may be compressed."""

OWN_READERS = {Json: ".jsonl", Csv: ".csv"}
"""Builders of `datasets` that guess types, so that their files are read here."""

READ = ("prompt", "completion", "messages", "instruction", "input", "output", "text", SYSTEM, *SEEN)
"""Columns that are tokenized."""


def read_rows(
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None, streaming: bool = False
) -> Any:
    """Read one file, or a hub data set.

    Rows are returned as written: texts stay texts whatever they look like, and lists and mappings keep their own keys
    in their own order.

    Args:
        name: a path with one of `ENDINGS`, a folder that `datasets` wrote, a hub name, or a folder of files.
        split: of a hub data set or a folder.
        config: of a hub data set.
        revision: of a hub data set: a branch, a tag or a commit.
        streaming: return an `IterableDataset`, whose rows are read on demand.

    Returns:
        A `Dataset` or an `IterableDataset`; ``info.description`` is `name`.

    Raises:
        DataError: the file is missing, empty or not readable; the hub has no such data set; or a row is damaged (the
            message names the line).
    """
    try:
        rows = _read(name, split, config, revision, streaming)
    except ColmError:
        raise
    except Exception as error:  # builders and the hub client raise errors of many types
        cause = error.__cause__ if isinstance(error.__cause__, DataError) else None
        if cause is not None:
            raise cause from error
        if isinstance(error, OSError) and _is_in_cache(error.filename):
            raise DataError(
                f"The cache {datasets_config.HF_DATASETS_CACHE}, through which data is read, is not writable "
                f"({error.strerror}: {error.filename}). Set HF_HOME, or HF_DATASETS_CACHE, to a writable folder."
            ) from error
        what = "file could not be read" if Path(name).is_file() else "data set could not be loaded"
        raised = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise DataError(
            f"The {what}: {name!r} ({one_line(raised)}). Give a {', '.join(ENDINGS)} file or a hub name."
        ) from error
    if not streaming and len(rows) == 0:
        raise DataError(f"{name!r} has no rows; it needs at least one.")
    rows.info.description = name  # used in messages about a row
    return rows


def _is_in_cache(name: object) -> bool:
    """Return whether a path is in the data set cache, or is a parent folder of the cache."""
    if not isinstance(name, str):
        return False
    path, cache = Path(name).absolute(), Path(datasets_config.HF_DATASETS_CACHE).absolute()
    return path.is_relative_to(cache) or cache.is_relative_to(path)


def name_row(rows: Dataset, number: int) -> str:
    """Return how a message refers to a row: by its place in the file, or by its beginning.

    Args:
        rows: the result of `read_rows`, or a part of it.
        number: index of a row in `rows`.
    """
    row, name = rows[number], rows.info.description
    cells = {_as_text(row[column]) for column in READ if row.get(column) not in (None, "", [], {})}
    ending = split_ending(name)[1]
    if os.path.isfile(name) and ending in (*JSON_ENDINGS, *CSV_ENDINGS):
        for place, candidate in read_file_rows(name):
            if cells <= {_as_text(cell) for cell in candidate.values()}:
                return str(place)
    begins = _as_text({column: row[column] for column in READ if column in row})[:80]
    return f"{name or 'The data'}, the row that begins {begins}"


def _as_text(cell: Any) -> str:
    return json.dumps(cell, default=str) if isinstance(cell, list | dict) else text_of_value(cell) or ""


def _read(name: str, split: str, config: str | None, revision: str | None, streaming: bool) -> Any:
    path = Path(name)
    _, ending, compression = split_ending(name)
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _as_written(_from_disk(name, split), streaming)
    elif path.exists() or ending in ENDINGS or compression:
        _require_file(path, ending, compression)
        if ending == PARQUET:
            return parquet_as_rows(name, streaming)
        return files_as_rows([name], ending, streaming=streaming)
    builder = load_dataset_builder(name, config, revision=revision)
    files = {str(own): list(paths) for own, paths in (builder.config.data_files or {}).items()}
    names = [part.partition("[")[0].strip() for part in split.split("+")]
    names = list(files) if names == ["all"] else names
    missing = [each for each in names if each not in files]
    if files and missing:
        hint = suggest(missing[0], files)
        raise DataError(f"The data set {name!r} has no split {missing[0]!r}.{hint} It has: {', '.join(files)}.")
    if not files or not _is_read_here(builder, [file for each in names for file in files[each]]):
        return _as_written(load_dataset(name, config, split=split, revision=revision, streaming=streaming), streaming)
    if streaming:
        if names != [split]:
            raise DataError(f"The split {split!r} cannot be streamed; name one of {', '.join(files)}.")
        return _read_split(builder, files[split], streaming=True)
    splits = {each: _read_split(builder, files[each]) for each in dict.fromkeys(names)}
    if names == [split]:
        return splits[split]
    spec = ReadInstruction.from_spec("+".join(names) if split == "all" else split)
    parts = spec.to_absolute({each: len(rows) for each, rows in splits.items()})
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _is_read_here(builder: Any, files: Sequence[str]) -> bool:
    """Return whether files of the hub are JSON or CSV, without an archive and in the usual encoding."""
    said: Any = builder.config
    if not isinstance(builder, tuple(OWN_READERS)) or any(split_ending(file)[1] in ("", ".tar") for file in files):
        return False
    same = {field.name: getattr(said, field.name) for field in fields(BuilderConfig)}
    return isinstance(builder, Csv) or said == type(said)(**same, features=said.features)


def _read_split(builder: Any, files: Sequence[str], *, streaming: bool = False) -> Any:
    """Read the JSON or CSV files of one split of a hub data set."""
    ending = next(own for kind, own in OWN_READERS.items() if isinstance(builder, kind))
    settings: Any = builder.config
    loader = DownloadManager(download_config=DownloadConfig(force_extract=True))
    files = [inner for file in files for inner in (_unzip(loader, file) if file.endswith(".zip") else [file])]
    options: dict[str, Any] = {}
    if ending in CSV_ENDINGS:
        separator = settings.sep or ","
        options["separator"] = "" if separator == "," else separator
        said = settings.pd_read_csv_kwargs
        if len(separator) != 1 or said != type(settings)(sep=settings.sep).pd_read_csv_kwargs:
            options["pandas"] = {**said, "dtype": str, "keep_default_na": False}
    if streaming:
        return files_as_rows(files, ending, streaming=True, **options)
    # Downloaded files lose their names, which tell whether they are compressed.
    return files_as_rows(files, ending, copies=loader.download(files), **options)


def _unzip(loader: Any, file: str) -> list[str]:
    """Return the readable files of an archive."""
    return [
        inner for inner in loader.iter_files(loader.download_and_extract(file)) if split_ending(inner)[1] in ENDINGS
    ]


def _require_file(path: Path, ending: str, compression: str) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{str(path)!r} is a link to {str(path.readlink())!r}, which does not exist.")
    if not path.exists():
        siblings = [str(sibling) for sibling in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"There is no file {str(path)!r}.{suggest(str(path), siblings)}")
    if ending not in ENDINGS or (compression and ending == PARQUET):
        raise DataError(
            f"The file {str(path)!r} has an unknown ending ({''.join(path.suffixes[-2:]) or 'none'}). "
            f"Name it after its format: {', '.join(ENDINGS)}; all but {PARQUET} also with "
            f"{', '.join(COMPRESSIONS)} appended."
        )
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not a regular file; give one that can be read more than once.")
    if path.stat().st_size == 0:
        raise DataError(f"The file {str(path)!r} is empty; it needs at least one row.")


def _from_disk(name: str, split: str) -> Dataset:
    held = load_from_disk(name)
    if not isinstance(held, DatasetDict):
        return held
    if split not in held:
        raise DataError(f"The folder {name!r} has no split {split!r}.{suggest(split, held)} It has: {', '.join(held)}.")
    return held[split]


def _as_written(rows: Any, streaming: bool) -> Any:
    """Restore the original keys of lists and mappings that Arrow stores."""
    if streaming and isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset()
    features = rows.features or {}
    nested = nested_columns(Features(features).arrow_schema)
    if not nested:
        return rows
    if streaming:
        return rows.map(restore_cells, fn_kwargs={"nested": nested})
    features = Features({**features, **{name: JsonCell() for name in nested}})
    return rows.map(restore_cells, fn_kwargs={"nested": nested, "encode": JsonCell().encode_example}, features=features)
