"""`colm sources`: the mixture before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from colm.cli.prepare import prepare_data
from colm.cli.settings import load_settings
from colm.config import SelectionConfig
from colm.sources import count_sources, find_small_sources


class SourceOutlook(NamedTuple):
    """What to expect of one source."""

    rows: int
    tokens: int
    small: bool
    in_pool: float  # expected rows in a pool
    in_coreset: float  # expected rows in its coreset


def expect_sources(
    sizes: dict[str, int], tokens: dict[str, int], selection: SelectionConfig, pool_rows: int, slots: int
) -> dict[str, SourceOutlook]:
    """Return, for each source, its expected part of a pool and of the coreset.

    By the expected counts of a pool drawn at random: small sources whole, or cut in proportion where
    they exceed the budget; the rest of the budget goes to big sources in proportion.

    Args:
        sizes: rows of each source.
        tokens: tokens of each source.
        selection: the settings.
        pool_rows: N.
        slots: micro-batches over all ranks.
    """
    total = sum(sizes.values())
    small = find_small_sources(sizes, selection.small_sources)
    pool = {name: pool_rows * size / total for name, size in sizes.items()}
    budget = selection.kept_rows(pool_rows, slots)
    small_rows = sum(pool[name] for name in small)
    big_rows = pool_rows - small_rows
    small_share = min(1.0, budget / small_rows) if small_rows else 0.0
    big_share = max(0.0, budget - small_rows) / big_rows if big_rows else 0.0
    return {
        name: SourceOutlook(
            rows=size,
            tokens=tokens[name],
            small=name in small,
            in_pool=pool[name],
            in_coreset=pool[name] * (small_share if name in small else big_share),
        )
        for name, size in sizes.items()
    }


def sources_command(config: str, overrides: Sequence[str]) -> None:
    """Print one line for each source of the mixture."""
    settings = load_settings(config, overrides)
    train = prepare_data(settings).train
    names = [str(name) for name in train[settings.data["source_column"]]]
    sizes = count_sources(names, settings.data["source_column"])
    tokens = dict.fromkeys(sizes, 0)
    for name, ids in zip(names, train["input_ids"], strict=True):
        tokens[name] += len(ids)
    slots = int(settings.training.get("gradient_accumulation_steps", 1))  # of one process
    pool_rows = int(settings.training.get("per_device_train_batch_size", 8)) * slots
    settings.selection.check_pool(pool_rows, slots)
    outlook = expect_sources(sizes, tokens, settings.selection, pool_rows, slots)
    Console().print(_table(outlook, pool_rows))


def _table(outlook: dict[str, SourceOutlook], pool_rows: int) -> Table:
    total = sum(source.rows for source in outlook.values())
    kept = sum(source.in_coreset for source in outlook.values())
    table = Table(title=f"{total:,} rows, pool {pool_rows}, keep {kept:.0f}; uniform share {total / len(outlook):,.0f}")
    table.add_column("source", overflow="fold")
    columns: list[tuple[str, Any]] = [
        ("rows", "right"),
        ("tokens", "right"),
        ("share", "right"),
        ("size", "left"),
        ("in a pool", "right"),
        ("in its coreset", "right"),
    ]
    for name, justify in columns:
        table.add_column(name, justify=justify)
    for name, source in sorted(outlook.items(), key=lambda item: -item[1].rows):
        table.add_row(
            name,
            f"{source.rows:,}",
            f"{source.tokens:,}",
            f"{source.rows / total:.1%}",
            "small" if source.small else "big",
            f"{source.in_pool:.1f}",
            f"{source.in_coreset:.1f}",
        )
    return table
