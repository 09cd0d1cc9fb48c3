"""The number of rows of each source that are trained on: caps and weights."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from datasets import Dataset

from colm.errors import DataError, suggest
from colm.step.sources import name_keys, name_sources

Place = tuple[int, int]
"""Index of a part, and of a row in that part."""


def check_names(
    what: str, names: Mapping[str, object], sources: Sequence[str], gone: Mapping[str, str] | None = None
) -> None:
    """Check that a setting by source names only existing sources.

    Args:
        what: the setting's name.
        names: the source names in the setting.
        sources: the existing sources.
        gone: sources without a row left, as `RowsLeft.gone`.

    Raises:
        DataError: a source does not exist (the message suggests the nearest one), or has no row left (and why).
    """
    known = set(sources)
    for name in names:
        if name not in known and gone and name in gone:
            raise DataError(f"{what} names {name!r}, which {gone[name]}. The other sources are: {', '.join(sources)}.")
        if name not in known:
            raise DataError(
                f"{what} names {name!r}, which is not a source of the data.{suggest(name, sources)} "
                f"The sources are: {', '.join(sources)}."
            )


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
        name: draw.sample(held, caps[name]) if len(held) > caps.get(name, len(held)) else held
        for name, held in places.items()
    }
    return _take(parts, kept)


def weigh_rows(parts: Sequence[Dataset], column: str, weights: Mapping[str, float], seed: int) -> list[Dataset]:
    """Resample so that each source's share of the rows equals its weight; the total number of rows is unchanged.

    A source that needs more rows than it has is repeated: as many full copies as fit, and the rest at random. A source
    that needs fewer is sampled. So no row is repeated before all other rows of its source are used.

    Args:
        parts: rows of text with their sources.
        column: the source column.
        weights: source -> weight, at least 0, one for every source; 0 leaves a source out.
        seed: random seed.

    Raises:
        DataError: a source does not exist or has no weight, or no weight is above 0.
    """
    places = _find_places(parts, column)
    shares = share_of_weights(weights, list(places))
    total = sum(map(len, places.values()))
    draw = random.Random(seed)
    kept: dict[str, list[Place]] = {}
    for name, held in places.items():
        wanted = max(1, round(total * shares[name])) if shares[name] else 0
        whole, rest = divmod(wanted, len(held))
        kept[name] = held * whole + draw.sample(held, rest)
    return _take(parts, kept)


def share_of_weights(weights: Mapping[str, float], sources: Sequence[str]) -> dict[str, float]:
    """Return each source's weight as a fraction of the total. Raises the same errors as `weigh_rows`.

    >>> share_of_weights({"a": 3, "b": 1}, ["a", "b"])
    {'a': 0.75, 'b': 0.25}
    """
    weights = name_keys("data.weights", weights)
    check_names("data.weights", weights, sources)
    missing = [name for name in sources if name not in weights]
    if missing:
        raise DataError(
            f"data.weights has no weight for the source {missing[0]!r}; give every source one, 0 to leave it out. "
            f"The sources are: {', '.join(sources)}."
        )
    total = sum(weights.values())
    if total <= 0:
        raise DataError("All data.weights are 0, so no rows remain; give at least one source a weight above 0.")
    return {name: weights[name] / total for name in sources}


def _find_places(parts: Sequence[Dataset], column: str) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {}
    for number, part in enumerate(parts):
        for row, name in enumerate(name_sources(part[column][:], column)):
            places.setdefault(name, []).append((number, row))
    return dict(sorted(places.items()))


def _take(parts: Sequence[Dataset], kept: Mapping[str, Sequence[Place]]) -> list[Dataset]:
    rows: list[list[int]] = [[] for _ in parts]
    for places in kept.values():
        for number, row in places:
            rows[number].append(row)
    taken = [part.select(sorted(chosen)) for part, chosen in zip(parts, rows, strict=True)]
    return [part for part in taken if len(part)]
