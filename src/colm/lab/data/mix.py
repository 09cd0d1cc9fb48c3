"""How many rows of each source are trained on: caps and weights."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from datasets import Dataset

from colm.errors import DataError, suggest
from colm.step.sources import name_keys, name_sources

Place = tuple[int, int]
"""Number of a part, and of a row in it."""


def check_names(
    what: str, names: Mapping[str, object], sources: Sequence[str], gone: Mapping[str, str] | None = None
) -> None:
    """Check that a setting by source names only sources that there are.

    Args:
        what: the setting.
        names: what it names.
        sources: those that there are.
        gone: those of which no row is left, as `RowsLeft.gone`.

    Raises:
        DataError: one does not exist, with the nearest one; or no row of it is left, and why.
    """
    known = set(sources)
    for name in names:
        if name not in known and gone and name in gone:
            raise DataError(f"{what} names {name!r}, which {gone[name]}. The other sources are: {', '.join(sources)}.")
        if name not in known:
            raise DataError(
                f"{what} names {name!r}, which is no source of the data.{suggest(name, sources)} "
                f"The sources are: {', '.join(sources)}."
            )


def cap_rows(parts: Sequence[Dataset], column: str, cap: int | Mapping[str, int], seed: int) -> list[Dataset]:
    """Keep at most `cap` rows of each source, at random; parts keep their order, and those left empty go.

    Args:
        parts: rows of text with their source; a source may have rows in several parts.
        column: of the source.
        cap: for all sources, or by source; others keep all their rows.
        seed: of the draws.

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
    """Make each source's share of the rows that of its weight, with as many rows in all as before.

    A source that gets more rows than it has is repeated, whole as often as it goes and the rest at random; one that
    gets fewer is sampled. So a row is drawn again only when all others of its source have been.

    Args:
        parts: rows of text with their source.
        column: of the source.
        weights: source -> weight, at least 0, one for every source; 0 leaves a source out.
        seed: of the draws.

    Raises:
        DataError: a source that does not exist, one without a weight, or no weight above 0.
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
    """Return each source's weight as a share of all. Raises as `weigh_rows`.

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
        raise DataError("All data.weights are 0, so no row is left; give at least one source a weight above 0.")
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
