"""Reassign the sources of rows: cluster rows, rename sources, split large ones, merge small ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from colm.errors import DataError
from colm.lab.data.mix import check_names
from colm.lab.sources.config import ClusterConfig, SourceRules
from colm.lab.sources.embed import Tuned
from colm.lab.sources.labelling import Labelling, assign_rows, label_rows
from colm.lab.sources.rows import Rows
from colm.step.sources import name_sources

Parts = Sequence[Dataset]


class Relabelled(NamedTuple):
    """Rows with new sources."""

    train: list[Dataset]
    validation: list[Dataset]
    labelling: Labelling | None  # of all rows


class _Names(NamedTuple):
    """Each row's source, for training and validation rows."""

    train: list[str]
    validation: list[str]


def relabel_parts(
    train: Parts,
    validation: Parts,
    rules: SourceRules,
    path: Path,
    *,
    column: str,
    format_name: str = "auto",
    tuned: Tuned | None = None,
    renew: bool = False,
) -> Relabelled:
    """Reassign the sources of rows by the rules.

    Validation rows follow the training rows: to the nearest cluster, and through the same renames and merges.

    Args:
        train: rows of text, with a source unless all rows are clustered.
        validation: the same, or empty.
        rules: the rules.
        path: of the clusters' file.
        column: the source column.
        format_name: format of the rows, or ``auto``.
        tuned: the model to fine-tune, for embeddings.
        renew: see `label_rows`.

    Raises:
        DataError: a rule names a source that does not exist, or merges all of them; see also `label_rows`.
        ConfigError: see `label_rows`.
    """
    labelling = None
    if rules.cluster is not None:
        labelling = label_rows(Rows(train, format_name), rules.cluster, path, tuned=tuned, renew=renew)
        path_used = labelling.path
        held = assign_rows(Rows(validation, format_name), rules.cluster, path_used, tuned=tuned) if validation else []
        names = _Names(labelling.names, held)
    else:
        names = _Names(_read_names(train, column, "training"), _read_names(validation, column, "validation"))
    if rules.map:
        check_names("sources.map", rules.map, sorted(set(names.train)))
        names = _Names(*([rules.map.get(name, name) for name in part] for part in names))
    check_names("sources.split", rules.split, sorted(set(names.train)))
    for name, config in rules.split.items():
        names = _split(train, validation, names, name, config, path, format_name, tuned, renew)
    if rules.merge_below:
        names = _merge(names, rules.merge_below, rules.merged)
    return Relabelled(_write(train, names.train, column), _write(validation, names.validation, column), labelling)


def split_path(path: Path, source: str) -> Path:
    """Return the file of a split source's clusters: next to `path`, with a portable name."""
    plain = re.sub(r"[^\w-]+", "-", source)[:40]
    digest = blake2b(source.encode(), digest_size=4).hexdigest()
    return path.with_name(f"{path.stem}.split-{plain}-{digest}{path.suffix}")


def _split(
    train: Parts,
    validation: Parts,
    names: _Names,
    source: str,
    config: ClusterConfig,
    path: Path,
    format_name: str,
    tuned: Tuned | None,
    renew: bool,
) -> _Names:
    own = split_path(path, source)
    labelling = label_rows(_rows_of(train, names.train, source, format_name), config, own, tuned=tuned, renew=renew)
    of_validation = _rows_of(validation, names.validation, source, format_name)
    held = assign_rows(of_validation, config, labelling.path, tuned=tuned) if len(of_validation) else []
    found = []
    for outer, part in zip(names, (labelling.names, held), strict=True):
        rest = iter(part)
        found.append([f"{source}/{next(rest)}" if name == source else name for name in outer])
    return _Names(*found)


def _rows_of(parts: Parts, names: Sequence[str], source: str, format_name: str) -> Rows:
    found, start = [], 0
    for part in parts:
        held = [row for row in range(len(part)) if names[start + row] == source]
        start += len(part)
        if held:
            found.append(part.select(held))
    return Rows(found, format_name)


def _merge(names: _Names, below: int, merged: str) -> _Names:
    sizes = Counter(names.train)
    small = {name for name, size in sizes.items() if size < below}
    if small == set(sizes):
        raise DataError(
            f"sources.merge_below={below} merges all {len(sizes)} sources, the largest of which has "
            f"{max(sizes.values()):,} rows; use at most that number."
        )
    return _Names(*([merged if name in small else name for name in part] for part in names))


def _read_names(parts: Parts, column: str, what: str) -> list[str]:
    names: list[str] = []
    for part in parts:
        if column not in part.column_names:
            raise DataError(
                f"The {what} data has no column {column!r} for the source. It has: {', '.join(part.column_names)}. "
                "Name the right one with data.source_column, or find sources by clustering: sources.cluster."
            )
        names += name_sources(part.with_format(None)[column][:], column, of=f" of the {what} data")
    return names


def _write(parts: Parts, names: Sequence[str], column: str) -> list[Dataset]:
    found, start = [], 0
    for part in parts:
        own = list(names[start : start + len(part)])
        start += len(part)
        part = part.remove_columns(column) if column in part.column_names else part
        found.append(part.add_column(column, own))
    return found
