"""Give rows the source of the nearest cluster, a batch at a time and independent of all other rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from colm.errors import ConfigError, DataError
from colm.lab.data.cells import rows_of_arrow
from colm.lab.data.load import check_rename
from colm.lab.data.schemas import COLUMNS, choose_format, recognize_columns
from colm.lab.sources.embed import make_embedder
from colm.lab.sources.rows import Row
from colm.lab.sources.store import load_clustering


class AssignSources:
    """Adds to a batch of rows the column of their sources, the names of the nearest clusters.

    It is called by ``Dataset.map(..., batched=True)`` of `datasets` and ``map_batches`` of Ray Data. With clusters of
    words, a row has the same source in every batch and every process; a sentence encoder rounds by the batch. Pickled,
    it is the path of the clusters and a digest of them, so every process must be able to read that file.

    Args:
        centroids: the clusters, which ``colm sources --cluster`` writes next to the labels: ``labels.centroids.npz``.
        source_column: the column to write; replaced if the rows have it.
        columns: colm's column name -> that of the rows, as ``data.columns``.
        format_name: a key of `schemas.COLUMNS`, or ``auto``.

    Raises:
        ConfigError: there is no such file; its clusters are of a model's hidden states; or a package is missing.
        DataError: the file is damaged, or of another version.
    """

    def __init__(
        self,
        centroids: str | Path,
        source_column: str = "source",
        columns: Mapping[str, str] | None = None,
        format_name: str = "auto",
    ) -> None:
        self.path = Path(centroids).absolute()
        self.source_column, self.columns, self.format_name = source_column, dict(columns or {}), format_name
        clustering = load_clustering(Path(centroids))
        if clustering.config.embedding == "model":
            raise ConfigError(
                f"{centroids} has clusters of a model's hidden states (embedding=model), which only sources.cluster "
                "of a run assigns. Cluster with embedding=tfidf or sentence."
            )
        self.names, self.digest = clustering.names, clustering.digest
        self._centroids = clustering.centroids
        self._embedder = make_embedder(clustering.config, None)
        self._embedder.load(clustering.state)

    def __call__(self, batch: Any) -> Any:
        """Return a batch with its sources.

        Args:
            batch: lists or arrays by column, a `pandas.DataFrame`, or a `pyarrow.Table`.

        Raises:
            DataError: no format fits the columns, or a cell does not fit its format.
        """
        known = batch.column_names if isinstance(batch, pa.Table) else list(batch)
        columns = self.match_columns(known, next(iter(_read(batch, known, slice(1))), {}))
        names = self.name_rows(self.make_rows(_read(batch, list(columns.values())), columns))
        if isinstance(batch, pa.Table):
            return add_column(batch, self.source_column, names)
        if isinstance(batch, pd.DataFrame):
            return batch.assign(**{self.source_column: names})
        return {**batch, self.source_column: names}

    def match_columns(self, known: Sequence[str], first: Mapping[str, Any]) -> dict[str, str]:
        """Return the columns that a row's text is read from, colm's name -> that of the rows.

        Args:
            known: all columns of the rows.
            first: a row.

        Raises:
            DataError: no format fits, or `columns` names a column that does not exist.
        """
        columns = {name: name for name in known}
        for wanted, present in self.columns.items():
            check_rename(wanted, present, list(columns))
            columns[wanted] = columns.pop(present)
        found = recognize_columns(list(columns), {name: first.get(column) for name, column in columns.items()})
        for wanted, present in found.items():
            columns[wanted] = columns.pop(present)
        kind = choose_format(self.format_name, list(columns))
        return {name: columns[name] for name in (*COLUMNS[kind], "input") if name in columns}

    def make_rows(self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> list[Row]:
        """Return rows with only the columns of their text; `columns` is from `match_columns`."""
        kind = choose_format(self.format_name, list(columns))
        return [Row(kind, {name: row.get(column) for name, column in columns.items()}) for row in rows]

    def name_rows(self, rows: Sequence[Row]) -> list[str]:
        """Return the source of each row."""
        names: list[str] = []
        for start in range(0, len(rows), self._embedder.chunk):
            embedded = self._embedder.embed(rows[start : start + self._embedder.chunk])
            names += [self.names[cluster] for cluster in self._centroids.assign(embedded)]
        return names

    def __getstate__(self) -> tuple[Any, ...]:
        return self.path, self.source_column, self.columns, self.format_name, self.digest

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state[:-1])  # type: ignore[misc]
        if self.digest != state[-1]:
            raise DataError(f"{self.path} has changed since its clusters were loaded; start again.")


def add_column(table: pa.Table, column: str, names: Sequence[str]) -> pa.Table:
    """Return a table with a column of text, in place of the one of this name if there is one, else at the end."""
    cells = pa.array(names, type=pa.string())
    place = table.schema.get_field_index(column)
    return table.append_column(column, cells) if place < 0 else table.set_column(place, column, cells)


def _read(batch: Any, columns: Sequence[str], rows: slice = slice(None)) -> list[dict[str, Any]]:
    """Return rows of a batch as Python objects."""
    if isinstance(batch, pa.Table):
        return [row for part in batch.select(columns)[rows].to_batches() for row in rows_of_arrow(part)]
    cells = zip(*([_plain(cell) for cell in batch[column][rows]] for column in columns), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in cells]


def _plain(cell: Any) -> Any:
    """Return a cell with lists in place of arrays, and mappings without the keys that Arrow added."""
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, Mapping):
        return {key: _plain(inner) for key, inner in cell.items() if inner is not None}
    return [_plain(inner) for inner in cell] if isinstance(cell, list | tuple) else cell
