"""How row cells are stored: texts and single-type columns unchanged, everything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Features, Value
from datasets.features import features as known_features
from datasets.features.features import generate_from_arrow_type

from colm.hints import LARGEST
from colm.step.values import text_of_value


@dataclass
class JsonCell:
    """A feature of `datasets` for lists and mappings that keeps each mapping's keys and their order.

    Arrow would give every mapping in a column the union of all keys, in one order. The Json feature of `datasets`
    parses texts that look like JSON, and older versions lack it.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    pa_type: ClassVar[Any] = pa.string()
    _type: str = field(default="ColmJsonCell", init=False, repr=False)

    def __call__(self) -> Any:
        """Return the Arrow type."""
        return self.pa_type

    def encode_example(self, value: Any) -> str:
        """Return a value in its stored form."""
        return json.dumps(value, ensure_ascii=False, default=text_of_value)

    def cast_storage(self, storage: Any) -> Any:
        """Return an Arrow array in stored form: strings unchanged, other values encoded."""
        if pa.types.is_string(storage.type):
            return storage
        return pa.array([None if value is None else self.encode_example(value) for value in storage.to_pylist()])

    def decode_example(self, value: str, token_per_repo_id: Any = None) -> Any:
        """Return a stored value."""
        return json.loads(value)


known_features._FEATURE_TYPES["ColmJsonCell"] = JsonCell  # register_feature does the same, but warns


class ColumnTypes:
    """Infers the type of each column from the rows: bool, int64, text, or JSON for lists and mappings.

    Columns that mix simple types become text, as written in the file.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, set[type]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        for name, value in row.items():
            kinds = self._kinds.setdefault(name, set())
            if value is not None:
                kinds.add(str if type(value) is int and abs(value) > LARGEST else type(value))

    def features(self) -> Features:
        """Return the features of a data set with these rows."""
        return Features({name: _feature(kinds) for name, kinds in self._kinds.items()})


def _feature(kinds: set[type]) -> Any:
    if kinds & {list, dict}:
        return JsonCell()
    return Value({frozenset({bool}): "bool", frozenset({int}): "int64"}.get(frozenset(kinds), "string"))


def encode_row(row: Mapping[str, Any], features: Features) -> dict[str, Any]:
    """Return a row with one cell per column, in the types of `features`."""
    cells = {}
    for name, feature in features.items():
        value = row.get(name)
        cells[name] = text_of_value(value) if value is not None and feature == Value("string") else value
    return cells


def features_of_arrow(schema: pa.Schema) -> Features:
    """Return the features of a data set with the cells of `rows_of_arrow`."""
    types = {}
    for field_ in schema:
        kind = field_.type
        if pa.types.is_nested(kind) and _holds(kind, _is_binary):
            types[field_.name] = generate_from_arrow_type(kind)
        elif pa.types.is_nested(kind):
            types[field_.name] = JsonCell()
        elif _is_binary(kind):
            types[field_.name] = Value("binary")
        else:
            whole = pa.types.is_integer(kind) and not pa.types.is_uint64(kind)
            other = "bool" if pa.types.is_boolean(kind) else "float64" if pa.types.is_floating(kind) else "string"
            types[field_.name] = Value("int64" if whole else other)
    return Features(types)


def rows_of_arrow(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch, without the keys that Arrow added to lists and mappings."""
    columns, nested = {}, nested_columns(batch.schema)
    for field_, column in zip(batch.schema, batch.columns, strict=True):
        columns[field_.name] = column.to_pylist()
        if _holds(field_.type, pa.types.is_map, _is_short):
            columns[field_.name] = [_restore(cell, field_.type) for cell in columns[field_.name]]
    for cells in zip(*columns.values(), strict=True):
        row = dict(zip(columns, cells, strict=True))
        yield {**row, **restore_cells(row, nested)}


def nested_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of lists and mappings, except those with bytes, such as images."""
    return [field_.name for field_ in schema if pa.types.is_nested(field_.type) and not _holds(field_.type, _is_binary)]


def _holds(kind: pa.DataType, *checks: Callable[[pa.DataType], bool]) -> bool:
    """Return whether a type, or a type nested in it, passes one of the checks."""
    inner = (kind.field(number).type for number in range(kind.num_fields))
    return any(check(kind) for check in checks) or any(_holds(each, *checks) for each in inner)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_short(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) and kind != pa.float64())


def _restore(cell: Any, kind: pa.DataType) -> Any:
    """Return a cell with maps as mappings, and short floats without the digits that float64 adds (0.1)."""
    if cell is None:
        return None
    if _is_short(kind):
        return float(str(np.asarray(cell, kind.to_pandas_dtype())))
    if pa.types.is_map(kind):
        return {key: _restore(value, kind.item_type) for key, value in cell}
    if pa.types.is_struct(kind):
        return {inner.name: _restore(cell[inner.name], inner.type) for inner in kind}
    return [_restore(item, kind.field(0).type) for item in cell] if isinstance(cell, list) else cell


def restore_cells(
    row: Mapping[str, Any], nested: Sequence[str], encode: Callable[[Any], Any] = lambda cell: cell
) -> dict[str, Any]:
    """Return a row's lists and mappings without the keys that Arrow added, encoded."""
    return {name: None if row[name] is None else encode(_without_missing(row[name])) for name in nested}


def _without_missing(value: Any) -> Any:
    # Arrow gives each mapping the keys of all the others, set to None.
    if isinstance(value, Mapping):
        return {key: _without_missing(inner) for key, inner in value.items() if inner is not None}
    return [_without_missing(inner) for inner in value] if isinstance(value, list) else value
