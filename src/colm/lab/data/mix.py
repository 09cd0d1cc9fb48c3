"""The number of rows of each source that are trained on: caps, weights, and temperature."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from colm.lab.data.columns import read_column
from colm.mixing import check_names, fixed_shares, rows_by_share, temperature_shares
from colm.step.sources import name_keys, name_sources

Places: TypeAlias = "npt.NDArray[np.int64]"
"""Numbers of rows among those of all parts: arrays, for which a row is 8 bytes."""


def cap_rows(parts: Sequence[Dataset], column: str, cap: int | Mapping[str, int], seed: int) -> list[Dataset]:
    """Keep at most `cap` rows of each source, at random; parts keep their order, and empty parts are dropped.

    Args:
        parts: rows of text with their sources; a source may have rows in several parts.
        column: the source column.
        cap: maximum rows for all sources, or by source; other sources keep all their rows.
        seed: random seed.

    Raises:
        DataError: `cap` names a source that does not exist.
    """
    places = _find_places(parts, column)
    caps = name_keys("data.cap", cap) if isinstance(cap, Mapping) else dict.fromkeys(places, cap)
    check_names("data.cap", caps, list(places))
    draw = random.Random(seed)
    kept = {
        name: held[draw.sample(range(len(held)), caps[name])] if len(held) > caps.get(name, len(held)) else held
        for name, held in places.items()
    }
    return _take(parts, kept)


def weigh_rows(
    parts: Sequence[Dataset],
    column: str,
    weights: Mapping[str, float],
    seed: int,
    temperature: float | None = None,
) -> list[Dataset]:
    """Resample so that each source has its share of the rows; the total number of rows is unchanged, up to rounding.

    A source that needs more rows than it has is repeated: as many full copies as fit, and the rest at random. A source
    that needs fewer is sampled. So no row is repeated before all other rows of its source are used.

    Args:
        parts: rows of text with their sources.
        column: the source column.
        weights: source -> weight, at least 0, one for every source; 0 leaves a source out.
        seed: random seed.
        temperature: sets the shares instead of `weights`, see `temperature_shares`.

    Raises:
        DataError: a source does not exist or has no weight, or no weight is above 0.
    """
    places = _find_places(parts, column)
    sizes = {name: len(held) for name, held in places.items()}
    if temperature is None:
        shares = fixed_shares("data.weights", weights, list(places))
    else:
        shares = temperature_shares(sizes, temperature)
    draw = random.Random(seed)
    kept: dict[str, Places] = {}
    for name, wanted in rows_by_share(sum(sizes.values()), shares).items():
        whole, rest = divmod(wanted, sizes[name])
        kept[name] = np.append(np.tile(places[name], whole), places[name][draw.sample(range(sizes[name]), rest)])
    return _take(parts, kept)


def _find_places(parts: Sequence[Dataset], column: str) -> dict[str, Places]:
    """Return the places of each source, ascending; the sources sorted."""
    names = [name for part in parts for name in name_sources(read_column(part, column), column)]
    numbers: dict[str, int] = {}
    of_rows = np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), dtype=np.int32, count=len(names))
    ends = np.cumsum(np.bincount(of_rows, minlength=len(numbers)))
    held = np.split(np.argsort(of_rows, kind="stable"), ends[:-1])
    return dict(sorted(zip(numbers, held, strict=True)))


def _take(parts: Sequence[Dataset], kept: Mapping[str, Places]) -> list[Dataset]:
    chosen = np.sort(np.concatenate([*kept.values()]))
    ends = np.cumsum([len(part) for part in parts])
    rows = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    taken = [part.select(own - end + len(part)) for part, own, end in zip(parts, rows, ends, strict=True)]
    return [part for part in taken if len(part)]
