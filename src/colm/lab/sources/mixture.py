"""The facts about each source of a tokenised mixture, and warnings about the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from colm.config import SelectionConfig
from colm.errors import DataError, suggest
from colm.lab.sources.duplicates import find_near_duplicates
from colm.lab.sources.outlook import Outlook, SourceOutlook, even_share, expect_pool
from colm.lab.sources.words import count_words, distinguishing_words
from colm.step.sources import RowsLeft, count_sources, name_keys, name_sources

SAMPLE = 2000
"""Rows of a source that are read for words and near-duplicates: all, or so many at random."""
EXAMPLES = 3
SHOWN = 400
"""Characters of an example."""
NOTICED = 0.01
"""Chance of an overflow from which it is worth a word."""


class SourceFacts(NamedTuple):
    """What is known of one source."""

    name: str
    tokens: int
    mean_length: float  # tokens a row
    long_length: float  # 95th percentile, tokens
    duplicates: float  # share of the rows looked at
    looked_at: int  # rows read for words and near-duplicates
    words: list[str]
    examples: list[tuple[int, str]]  # row of the data, text
    why: str  # small or big, with the numbers
    outlook: SourceOutlook


class Caution(NamedTuple):
    """A reason to expect little, or trouble, with what to do."""

    title: str
    reason: str
    advice: str


class Survey(NamedTuple):
    """A mixture before training, sources with most rows first."""

    sources: list[SourceFacts]
    outlook: Outlook
    warnings: list[Caution]
    dropped: Mapping[str, str] = MappingProxyType({})  # source -> how many of its rows are not trained on, and why


def survey_mixture(
    rows: Any,
    tokenizer: Any,
    selection: SelectionConfig,
    *,
    source_column: str,
    pool_rows: int,
    slots: int,
    sizes: Mapping[str, int] | None = None,
    counts: RowsLeft | None = None,
    seed: int = 0,
) -> Survey:
    """Read a tokenised mixture once and describe each source.

    Args:
        rows: a data set with ``input_ids`` and the source's column.
        tokenizer: that made the tokens, to show them as text.
        selection: the settings.
        source_column: its name.
        pool_rows: N.
        slots: micro-batches over all ranks.
        sizes: rows of each source where `rows` is only a part of the data, in the same proportions.
        counts: rows of each source before they were tokenised, and those that are left.
        seed: of the rows that are sampled.

    Raises:
        DataError: a row without a source, or a source without a size.
        ConfigError: see `expect_pool`.
    """
    labels = name_sources(rows[source_column][:], source_column)
    counted = count_sources(labels, source_column)
    sizes = name_keys("source_sizes", sizes) if sizes is not None else counted
    for name in counted:
        if name not in sizes:
            raise DataError(
                f"The source {name!r} is in the data, but sizes are given for others only.{suggest(name, sizes)} "
                f"They are given for: {', '.join(sizes)}."
            )
    outlook = expect_pool(sizes, selection, pool_rows, slots, seed=seed)
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    by_source: dict[str, list[int]] = {name: [] for name in counted}
    for row, name in enumerate(labels):
        by_source[name].append(row)
    draw = np.random.default_rng(seed)
    looked_at = {
        name: held if len(held) <= SAMPLE else sorted(draw.choice(held, SAMPLE, replace=False).tolist())
        for name, held in by_source.items()
    }
    tokens = {name: rows.select(held)["input_ids"] for name, held in looked_at.items()}
    words = distinguishing_words(
        {name: count_words(tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens[name]) for name in tokens}
    )
    facts = []
    for name in sorted(by_source, key=lambda name: (-sizes.get(name, 0), name)):
        held = by_source[name]
        facts.append(
            SourceFacts(
                name,
                tokens=int(lengths[held].sum()),
                mean_length=float(lengths[held].mean()),
                long_length=float(np.percentile(lengths[held], 95)),
                duplicates=float(np.mean(find_near_duplicates(tokens[name]))),
                looked_at=len(looked_at[name]),
                words=words[name],
                examples=_examples(rows, held, lengths, tokenizer),
                why=_why(name, sizes, selection, outlook),
                outlook=outlook.sources[name],
            )
        )
    warnings = find_warnings(sizes, selection, outlook, facts)
    if counts is None:
        return Survey(facts, outlook, warnings)
    return Survey(facts, outlook, [*_warn_of_gone(counts), *warnings], counts.describe())


def _warn_of_gone(counts: RowsLeft) -> list[Caution]:
    gone = [f"{name!r} {fate}" for name, fate in counts.gone.items()]
    if not gone:
        return []
    reason = f"{'; '.join(gone)}: nothing of {'it' if len(gone) == 1 else 'them'} is trained on."
    return [Caution("Sources without a row left", reason, "Raise data.max_length, mend the rows, or leave them out.")]


def _examples(rows: Any, held: Sequence[int], lengths: np.ndarray, tokenizer: Any) -> list[tuple[int, str]]:
    """Return rows at the quartiles of length: a short one, a middling and a long one."""
    ranked = sorted(held, key=lambda row: (lengths[row], row))
    wanted = [ranked[round(share * (len(ranked) - 1))] for share in (0.25, 0.5, 0.75)]
    found = []
    for row in dict.fromkeys(wanted):
        text = tokenizer.decode(rows[int(row)]["input_ids"], skip_special_tokens=True)
        found.append((int(row), text if len(text) <= SHOWN else text[:SHOWN] + " \N{HORIZONTAL ELLIPSIS}"))
    return found[:EXAMPLES]


def _why(name: str, sizes: Mapping[str, int], selection: SelectionConfig, outlook: Outlook) -> str:
    if selection.small_sources == "none":
        return "small_sources is none"
    if selection.small_sources != "auto":
        return "named in small_sources" if name in selection.small_sources else "not named in small_sources"
    share = sum(sizes.values()) / len(sizes)
    small = outlook.sources[name].small
    return f"{sizes[name]:,} rows are {'fewer than' if small else 'at least'} the uniform share of {share:,.0f}"


def find_warnings(
    sizes: Mapping[str, int], selection: SelectionConfig, outlook: Outlook, facts: Sequence[SourceFacts] = ()
) -> list[Caution]:
    """Return why the method would help little on a mixture, or what would go wrong, the worst first.

    Args:
        sizes: rows of each source.
        selection: the settings.
        outlook: of the mixture.
        facts: of its sources, for their near-duplicates.
    """
    found = []
    small = [name for name, source in outlook.sources.items() if source.small]
    if outlook.overflow >= NOTICED:
        found.append(
            Caution(
                "Small sources fill the budget",
                f"In {outlook.overflow:.0%} of the pools the small sources alone have more than the {outlook.keep} "
                f"rows that are kept ({outlook.small_rows:.1f} on average); then no row of a big source is trained on.",
                "Raise keep, list fewer small_sources, or use balance with small_sources: none.",
            )
        )
    if outlook.keep >= outlook.pool:
        found.append(
            Caution(
                "Nothing is left out",
                f"A pool of {outlook.pool} rows keeps {outlook.keep}, so the selection only costs time.",
                "Lower keep, or enlarge the pool.",
            )
        )
    if len(sizes) == 1:
        found.append(
            Caution(
                "One source",
                f"There is one source only, {next(iter(sizes))!r}, so none is small: much of what the method gains "
                "comes from keeping small sources whole.",
                "Label the rows' sources with data.source_column, or find sources by clustering (sources.cluster).",
            )
        )
    elif not small:
        largest, least = max(sizes.values()), min(sizes.values())
        how = (
            "small_sources is none"
            if selection.small_sources == "none"
            else f"the {len(sizes)} sources have from {least:,} to {largest:,} rows, none below {even_share(sizes):,}"
        )
        found.append(
            Caution(
                "No small source",
                f"{how[0].upper()}{how[1:]}: no source is kept whole, and rows at random already have the mixture's "
                "shares.",
                "Expect no more than what the gradients bring; compare with the control (colm compare).",
            )
        )
    elif max(sizes.values()) < 2 * min(sizes.values()):
        found.append(
            Caution(
                "Balanced sources",
                f"The largest source has {max(sizes.values()):,} rows, the smallest {min(sizes.values()):,}: sources "
                "that differ by less than a factor of 2 are hardly ever missed by rows at random.",
                "Expect little; compare with random and with the control (colm compare).",
            )
        )
    elif outlook.small_rows < 1:
        found.append(
            Caution(
                "Small sources are rarely in a pool",
                f"A pool of {outlook.pool} rows has {outlook.small_rows:.2f} rows of small sources on average, so "
                "there is next to nothing to keep whole.",
                "Enlarge the pool (gradient_accumulation_steps), or give small sources more weight (data.weights).",
            )
        )
    repeated = [f"{source.name} ({source.duplicates:.0%})" for source in facts if source.duplicates > 0.1]
    if repeated:
        found.append(
            Caution(
                "Near-duplicates",
                f"More than a tenth of the rows are near-duplicates of others in {', '.join(repeated)}.",
                "Medoids pass them by, small sources and random rows do not: remove them, unless repetition is meant.",
            )
        )
    return found
