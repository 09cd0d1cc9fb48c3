"""Hold rows out of training, drawn by prompt."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from colm.lab.data.held_rows import Parts, part_keys, part_sources
from colm.lab.data.prompts import HeldPrompts, Keys, PromptRows
from colm.mixing import check_names
from colm.step.sources import count_sources, shorten_names

logger = logging.getLogger(__name__)

TRAINED, HELD, LEFT_OUT = 0, 1, 2


def hold_out(
    parts: Sequence[Dataset],
    column: str,
    per_source: int | Mapping[str, int],
    seed: int,
    *,
    format_name: str = "auto",
    by_prompt: bool = True,
) -> tuple[list[Dataset], list[Dataset]]:
    """Split off `per_source` rows of every source at random, at most half of the source, see `draw_rows`.

    A source may have rows in several parts; they are counted together. No rows are held out of sources that a mapping
    does not name. The number of rows left out of both sides is logged.

    Args:
        parts: rows of text with their sources.
        column: the source column.
        per_source: rows per source, for all sources or by source.
        seed: random seed.
        format_name: a key of `schemas.COLUMNS`, or ``auto``.
        by_prompt: False to draw rows whatever their prompts, as in older versions.

    Returns:
        The remaining rows and the held-out rows, each in the original order, without empty parts.

    Raises:
        DataError: a mapping names a source that does not exist, a row has none, or no format fits a part.
    """
    labels = [name for part in parts for name in part_sources(part, column)]
    keys = (keys for part in parts for keys in part_keys(part, format_name)) if by_prompt else None
    sides = draw_rows(labels, column, per_source, seed, keys)
    split = np.split(sides, np.cumsum([len(part) for part in parts])[:-1])
    rest, out = (
        [part.select(np.flatnonzero(own == side)) for part, own in zip(parts, split, strict=True)]
        for side in (TRAINED, HELD)
    )
    return [part for part in rest if len(part)], [part for part in out if len(part)]


def draw_rows(
    labels: Sequence[Any],
    column: str,
    per_source: int | Mapping[str, int],
    seed: int,
    keys: Iterable[Keys] | None = None,
) -> npt.NDArray[np.int8]:
    """Draw the rows to hold out, and those to leave out: at random, together with all rows that have the same prompt.

    Rows with a drawn prompt are held out until their source has enough. The remaining ones, and conversations that
    learn a held-out prompt in an earlier turn, are still left out of training. At least half of each source's rows stay
    in training: a prompt that would take more is not drawn.

    Args:
        labels: each row's source.
        column: the source column, for messages.
        per_source: rows to hold out of every source, or by source.
        seed: random seed.
        keys: digests of each row's prompts, see `prompt_keys`; None if every prompt is unique.

    Returns:
        `TRAINED`, `HELD` or `LEFT_OUT` for each row, (n,).

    Raises:
        DataError: a mapping names a source that does not exist, or a row has none.
    """
    sizes = count_sources(labels, column)
    if isinstance(per_source, Mapping):
        check_names("data.validation_rows", per_source, list(sizes))
    wanted = per_source if isinstance(per_source, Mapping) else dict.fromkeys(sizes, per_source)
    sources = [str(label) for label in labels]
    free = {name: size // 2 for name, size in sizes.items()}
    missing = {name: min(wanted.get(name, 0), size // 2) for name, size in sizes.items()}
    sides = np.full(len(sources), TRAINED, dtype=np.int8)
    prompts = None if keys is None else PromptRows(keys)
    tried: set[bytes] = set()
    for row in map(int, np.random.default_rng(seed).permutation(len(sources))):
        if not missing[sources[row]]:
            continue
        same, others = [row], []
        if prompts is not None:
            prompt = prompts.of_row(row)
            if prompt in tried:
                continue
            tried.add(prompt)
            same, others = prompts.asked(prompt), prompts.taught(prompt)
            others += [near for held in same for key in prompts.taught_by(held) for near in prompts.asked(key)]
        going = Counter(sources[near] for near in {*same, *others} if sides[near] == TRAINED)
        if any(count > free[name] for name, count in going.items()):
            continue
        for name, count in going.items():
            free[name] -= count
        for near in same:
            held = missing[sources[near]] > 0
            missing[sources[near]] -= held
            sides[near] = HELD if held else LEFT_OUT
        for near in others:
            if sides[near] == TRAINED:
                sides[near] = LEFT_OUT
    _say_drawn(sources, wanted, sides)
    return sides


def leave_out(train: Sequence[Dataset], validation: Parts, format_name: str, column: str) -> list[Dataset]:
    """Return the training parts without the rows that share a prompt with the validation rows, and log how many."""
    held = HeldPrompts(keys for part in validation for keys in part_keys(part, format_name))
    kept, gone = [], Counter[str]()
    for part in train:
        met = np.array([held.meet(keys) for keys in part_keys(part, format_name)], dtype=bool)
        gone.update(part_sources(part.select(np.flatnonzero(met)), column))
        kept.append(part.select(np.flatnonzero(~met)))
    _say_left_out(gone)
    return [part for part in kept if len(part)]


def warn_shared(
    train: Iterable[Keys],
    validation: Parts,
    format_name: str,
    column: str,
    among: str = "",
    what: str = "data.validation",
) -> None:
    """Log by source how many validation rows have a prompt that the training rows teach, if any.

    Args:
        train: the prompts of each training row.
        validation: rows of text with their sources.
        format_name: a key of `schemas.COLUMNS`, or ``auto``.
        column: the source column.
        among: names the training rows, if they are only a part.
        what: name of the validation data.
    """
    own = [keys[0] for part in validation for keys in part_keys(part, format_name)]
    wanted = set(own)
    shared = {key for keys in train for key in keys if key in wanted}
    if not shared:
        return
    names = [name for part in validation for name in part_sources(part, column)]
    sizes, rows = Counter(names), Counter(name for key, name in zip(own, names, strict=True) if key in shared)
    logger.warning(
        "%s shares %d prompts with the training data%s, rows by source: %s. Results on these rows do not measure "
        "generalization; remove them from one of the two.",
        what,
        len(shared),
        among,
        shorten_names([f"{name} {count} of {sizes[name]}" for name, count in sorted(rows.items())]),
    )


def _say_drawn(sources: Sequence[str], wanted: Mapping[str, int], sides: npt.NDArray[np.int8]) -> None:
    held = {sources[row] for row in np.flatnonzero(sides == HELD).tolist()}
    none = sorted(name for name in set(sources) - held if wanted.get(name, 0))
    if none:
        logger.warning(
            "No row of %s can be held out: rows with one prompt stay together and half of a source stays for training.",
            shorten_names(none),
        )
    _say_left_out(Counter(sources[row] for row in np.flatnonzero(sides == LEFT_OUT).tolist()))


def _say_left_out(gone: Mapping[str, int]) -> None:
    if gone:
        logger.warning(
            "%d rows are left out of training, because their prompt is held out: %s.",
            sum(gone.values()),
            shorten_names([f"{name} {count}" for name, count in sorted(gone.items())]),
        )
