"""Facts about each source of a tokenized mixture, and warnings about the mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from colm.config import SelectionConfig
from colm.errors import DataError, suggest
from colm.lab.sources.duplicates import find_near_duplicates
from colm.lab.sources.pools import Outlook, SourceOutlook, even_share, expect_pool
from colm.lab.sources.words import count_words, distinguishing_words
from colm.step.sources import RowsLeft, are_balanced, count_sources, name_keys, name_sources

SAMPLE = 2000
"""Maximum rows of a source to read for words and near-duplicates; larger sources are sampled."""
SHOWN = 400
"""Maximum characters of an example."""
NOTICED = 0.01
"""Probability of an overflow above which to warn."""


class SourceFacts(NamedTuple):
    """Facts about one source."""

    name: str
    tokens: int
    mean_length: float  # tokens per row
    long_length: float  # 95th percentile, tokens
    duplicates: float  # fraction of the rows read
    looked_at: int  # rows read for words and near-duplicates
    words: list[str]
    examples: list[tuple[int, str]]  # row index in the data, text
    why: str  # why the source is small or big, with the numbers
    outlook: SourceOutlook


class Caution(NamedTuple):
    """A reason to expect little gain, or a problem, with a remedy."""

    title: str
    reason: str
    advice: str


class Survey(NamedTuple):
    """A mixture before training, largest sources first."""

    sources: list[SourceFacts]
    outlook: Outlook
    warnings: list[Caution]
    dropped: Mapping[str, str] = MappingProxyType({})  # source -> how many rows are not trained on, and why


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
    """Read a tokenized mixture once and describe each source.

    Args:
        rows: a data set with ``input_ids`` and the source column.
        tokenizer: the tokenizer of the rows, to decode examples.
        selection: the selection settings.
        source_column: name of the source column.
        pool_rows: rows per pool, N.
        slots: micro-batches over all ranks.
        sizes: rows of each source, if `rows` is only a sample of the data with the same proportions.
        counts: rows of each source before tokenization, and those that are left.
        seed: random seed of the sampled rows.

    Raises:
        DataError: a row has no source, or a source has no size.
        ConfigError: see `expect_pool`.
    """
    labels = name_sources(rows[source_column][:], source_column)
    counted = count_sources(labels, source_column)
    sizes = name_keys("source_sizes", sizes) if sizes is not None else counted
    for name in counted:
        if name not in sizes:
            raise DataError(
                f"The source {name!r} is in the data, but has no size.{suggest(name, sizes)} "
                f"Sizes are given for: {', '.join(sizes)}."
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
    warnings = list(find_warnings(sizes, selection, outlook, facts))
    if counts is None:
        return Survey(facts, outlook, warnings)
    return Survey(facts, outlook, [*_warn_of_gone(counts), *warnings], counts.describe())


def _warn_of_gone(counts: RowsLeft) -> list[Caution]:
    gone = [f"{name!r} {fate}" for name, fate in counts.gone.items()]
    if not gone:
        return []
    reason = f"{'; '.join(gone)}: no row of {'it' if len(gone) == 1 else 'them'} is trained on."
    return [Caution("Sources without a row left", reason, "Raise data.max_length, fix the rows, or remove them.")]


def _examples(rows: Any, held: Sequence[int], lengths: np.ndarray, tokenizer: Any) -> list[tuple[int, str]]:
    """Return rows at the quartiles of length: a short, a medium and a long one."""
    ranked = sorted(held, key=lambda row: (lengths[row], row))
    found = []
    for row in dict.fromkeys(ranked[round(share * (len(ranked) - 1))] for share in (0.25, 0.5, 0.75)):
        text = tokenizer.decode(rows[int(row)]["input_ids"], skip_special_tokens=True)
        found.append((int(row), text if len(text) <= SHOWN else text[:SHOWN] + " \N{HORIZONTAL ELLIPSIS}"))
    return found


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
) -> Iterator[Caution]:
    """Yield the reasons why the method would help little on a mixture or go wrong, the worst first.

    Args:
        sizes: rows of each source.
        selection: the selection settings.
        outlook: outlook of the mixture.
        facts: facts about its sources, for near-duplicates.
    """
    small = [name for name, source in outlook.sources.items() if source.small]
    if outlook.overflow >= NOTICED:
        yield Caution(
            "Small sources fill the budget",
            f"In {outlook.overflow:.0%} of the pools, the small sources alone have more than the {outlook.keep} "
            f"kept rows ({outlook.small_rows:.1f} on average); then no row of a large source is trained on.",
            "Raise keep, list fewer small_sources, or use balance with small_sources: none.",
        )
    if outlook.keep >= outlook.pool:
        yield Caution(
            "Every row is kept",
            f"A pool of {outlook.pool} rows keeps {outlook.keep}, so selection only costs time.",
            "Lower keep, or enlarge the pool.",
        )
    if len(sizes) == 1:
        yield Caution(
            "One source",
            f"There is one source only, {next(iter(sizes))!r}, so none is small: much of the method's benefit "
            "comes from keeping small sources whole.",
            "Label the rows' sources with data.source_column, or find sources by clustering (sources.cluster).",
        )
    elif not small:
        largest, least = max(sizes.values()), min(sizes.values())
        how = (
            "small_sources is none"
            if selection.small_sources == "none"
            else f"the {len(sizes)} sources have from {least:,} to {largest:,} rows, none below "
            f"{even_share(sizes) + 1:,}"
        )
        yield Caution(
            "No small source",
            f"{how[0].upper()}{how[1:]}: no source is kept whole, and random rows already have the mixture's shares.",
            "Any gain can come from the gradients only; compare with the control (colm compare).",
        )
    elif are_balanced(sizes):
        yield Caution(
            "Balanced sources",
            f"The largest source has {max(sizes.values()):,} rows, the smallest {min(sizes.values()):,}: random "
            "rows rarely miss sources that differ by less than a factor of 2.",
            "Set selection.small_sources to none, or compare with random and with the control (colm compare).",
        )
    elif outlook.small_rows < 1:
        yield Caution(
            "Small sources are rarely in a pool",
            f"A pool of {outlook.pool} rows has {outlook.small_rows:.2f} rows of small sources on average: "
            "almost nothing to keep whole.",
            "Enlarge the pool (gradient_accumulation_steps), or give small sources more weight (data.weights).",
        )
    repeated = [f"{source.name} ({source.duplicates:.0%})" for source in facts if source.duplicates > 0.1]
    if repeated:
        yield Caution(
            "Near-duplicates",
            f"More than a tenth of the rows are near-duplicates of others in {', '.join(repeated)}.",
            "Medoids skip them, but small sources and random rows keep them: remove them unless intended.",
        )
