"""`colm train --dry-run`: everything that precedes the first step, and what the steps would train on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset

from colm.lab.cli.arguments import require_one_process
from colm.lab.cli.console import make_console
from colm.lab.cli.source_tables import pool_table
from colm.lab.run.cadence import settle_evaluation
from colm.lab.run.clustering import LABELS_NAME
from colm.lab.run.prepare import prepare_data
from colm.lab.run.resume import check_order
from colm.lab.run.settings import RunSettings
from colm.lab.run.trainer import make_trainer
from colm.lab.run.training import UNSHARDED
from colm.lab.sources.pools import expect_pool
from colm.lab.sources.store import centroids_path
from colm.step.pool import IGNORE

SHOWN_ROWS = 3
SHOWN_TEXT = 600
"""Maximum characters of a part of a row that is only read, or learned."""


def rehearse(settings: RunSettings, kept: Path | None = None) -> None:
    """Read and tokenize the data, load the model, make the trainer, and print what training would do.

    Args:
        settings: the run's settings, whose own checks have passed.
        kept: folder of the run to resume, whose held-out rows are used; None for a new run.

    Raises:
        ColmError: what `train` would raise before its first step.
        ConfigError: a launcher has started several processes.
    """
    require_one_process("--dry-run", "run it without a launcher")
    with TemporaryDirectory() as scratch:
        elsewhere = _move(settings, Path(scratch))
        data = prepare_data(elsewhere, resume=kept is not None, kept=kept)
        check_order(settings, data)
        if data.validation:
            times = settle_evaluation(settings, resumed=kept is not None).training
            elsewhere = elsewhere._replace(training={**times, **elsewhere.training})
        trainer = make_trainer(elsewhere, data)
        steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    slots = trainer.args.gradient_accumulation_steps
    outlook = expect_pool(
        trainer.source_sizes,
        settings.selection,
        trainer.args.per_device_train_batch_size * slots,
        slots,
        seed=settings.seed,
    )
    console = make_console()
    column = settings.data.source_column
    for number, row in _first_rows(data.train if data.window is None else data.window, column):
        print(f"Row {number:,}, source {row[column]}, {len(row['input_ids']):,} tokens:")
        for learned, text in split_row(row, data.tokenizer):
            for line in text.split("\n"):
                print(f"  {'learn' if learned else 'read '} | {line}")
    console.print(pool_table(outlook))
    for name, told in ({} if data.counts is None else data.counts.describe()).items():
        console.print(f"{name}: {told}")
    held = _describe_validation(data.validation, settings.data.source_column)
    print(f"{held} {steps:,} steps. Nothing was trained or written to {settings.output_dir}.")


def split_row(row: Mapping[str, Sequence[int]], tokenizer: Any) -> list[tuple[bool, str]]:
    """Return a row's parts in order, each with whether it is learned, as text that includes special tokens."""
    parts = []
    for learned, held in groupby(zip(row["input_ids"], row["labels"], strict=True), lambda pair: pair[1] != IGNORE):
        text = tokenizer.decode([token for token, _ in held], skip_special_tokens=False)
        cut = len(text) - SHOWN_TEXT
        parts.append((learned, text if cut <= 0 else f"{text[:SHOWN_TEXT]} ... {cut:,} more characters"))
    return parts


def _first_rows(rows: Any, column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the first row of each of the first sources, with its number."""
    first: dict[str, int] = {}
    for number, name in enumerate(rows[column][:]):
        first.setdefault(name, number)
    for number in list(first.values())[:SHOWN_ROWS]:
        yield number, rows[number]


def _describe_validation(rows: Dataset | None, column: str) -> str:
    if not rows:
        return "No rows to evaluate on."
    return f"{len(rows):,} rows of {len(set(rows[column][:]))} sources to evaluate on."


def _move(settings: RunSettings, scratch: Path) -> RunSettings:
    """Return the settings with `scratch` for everything that a run writes before it starts, and without uploads."""
    training = {**settings.training, **UNSHARDED, "push_to_hub": False}
    rules = settings.sources
    labels = Path(rules.labels or settings.output_dir / LABELS_NAME)
    copy = scratch / labels.name
    for file, place in ((labels, copy), (centroids_path(labels), centroids_path(copy))):
        if file.is_file():
            shutil.copyfile(file, place)
    if rules.labels is not None:
        rules = replace(rules, labels=str(copy))
    return settings._replace(output_dir=scratch, sources=rules, training=training)
