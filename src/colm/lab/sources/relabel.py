"""Reassign the sources of rows: cluster rows, rename sources, split large ones, merge small ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from colm.errors import DataError
from colm.lab.sources.config import ClusterConfig, SourceRules
from colm.lab.sources.embed import Tuned
from colm.lab.sources.labelling import Labelling, assign_rows, label_rows
from colm.lab.sources.rows import Rows
from colm.mixing import check_names
from colm.step.sources import name_sources

Parts = Sequence[Dataset]


class Relabelled(NamedTuple):
    """Rows with new sources."""

    train: list[Dataset]
    validation: list[Dataset]
    labelling: Labelling | None  # of all rows


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

    def cluster(train: Parts, validation: Parts, config: ClusterConfig, path: Path) -> tuple[Labelling, list[str]]:
        """Return the clusters of the training rows, and those of the validation rows."""
        found = label_rows(Rows(train, format_name), config, path, tuned=tuned, renew=renew)
        rows = Rows(validation, format_name)
        return found, assign_rows(rows, config, found.path, tuned=tuned) if len(rows) else []

    labelling = None
    if rules.cluster is not None:
        labelling, held = cluster(train, validation, rules.cluster, path)
        names = [labelling.names, held]  # each row's source, of the training rows and of the validation rows
    else:
        names = [_read_names(train, column, "training"), _read_names(validation, column, "validation")]
    if rules.map:
        check_names("sources.map", rules.map, sorted(set(names[0])))
        names = [[rules.map.get(name, name) for name in part] for part in names]
    check_names("sources.split", rules.split, sorted(set(names[0])))
    for source, config in rules.split.items():
        own, other = (_select(parts, held, source) for parts, held in zip((train, validation), names, strict=True))
        found, held = cluster(own, other, config, split_path(path, source))
        names = [_within(source, *pair) for pair in zip(names, (found.names, held), strict=True)]
    if rules.merge_below:
        small = _find_below(names[0], rules.merge_below)
        names = [[rules.merged if name in small else name for name in part] for part in names]
    return Relabelled(_write(train, names[0], column), _write(validation, names[1], column), labelling)


def split_path(path: Path, source: str) -> Path:
    """Return the file of a split source's clusters: next to `path`, with a portable name."""
    plain = re.sub(r"[^\w-]+", "-", source)[:40]
    digest = blake2b(source.encode(), digest_size=4).hexdigest()
    return path.with_name(f"{path.stem}.split-{plain}-{digest}{path.suffix}")


def _within(source: str, names: Sequence[str], clusters: Sequence[str]) -> list[str]:
    """Return the names with those of a source extended by its rows' clusters."""
    rest = iter(clusters)
    return [f"{source}/{next(rest)}" if name == source else name for name in names]


def _select(parts: Parts, names: Sequence[str], source: str) -> list[Dataset]:
    """Return the parts' rows of one source, without empty parts."""
    rest = iter(names)
    held = [[row for row in range(len(part)) if next(rest) == source] for part in parts]
    return [part.select(rows) for part, rows in zip(parts, held, strict=True) if rows]


def _find_below(names: Sequence[str], below: int) -> set[str]:
    sizes = Counter(names)
    small = {name for name, size in sizes.items() if size < below}
    if small == set(sizes):
        raise DataError(
            f"sources.merge_below={below} merges all {len(sizes)} sources, the largest of which has "
            f"{max(sizes.values()):,} rows; use at most that number."
        )
    return small


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
    rest = iter(names)
    bare = [part.remove_columns(column) if column in part.column_names else part for part in parts]
    return [part.add_column(column, list(islice(rest, len(part)))) for part in bare]
