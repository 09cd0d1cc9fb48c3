"""The tokenizer and the tokenized mixture, for `train` and `sources`."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import set_seed

from colm.errors import DataError
from colm.lab.answers.gym import COLUMN
from colm.lab.data.formats import rendering_of
from colm.lab.data.held_rows import Parts, read_held_out
from colm.lab.data.load import Mixture, read_mixture, read_validation
from colm.lab.data.progress import one_bar
from colm.lab.data.stream import prepare_stream, read_stream
from colm.lab.data.tokenize import Tokenized, tokenize_counted
from colm.lab.data.validation import tokenize_held_out
from colm.lab.run.adapters import load_adapted
from colm.lab.run.clustering import LABELS_NAME
from colm.lab.run.left import check_left
from colm.lab.run.named import find_model, load_base, load_named_tokenizer
from colm.lab.run.settings import RunSettings
from colm.models import build_tiny_model, load_tokenizer, train_tiny_tokenizer
from colm.step.ranks import first_on_machine
from colm.step.record import HELD_OUT_NAME
from colm.step.sources import RowsLeft
from colm.trainers.checkpoints import last_complete_checkpoint

if TYPE_CHECKING:
    from colm.lab.sources.labelling import Labelling

logger = logging.getLogger(__name__)


class PreparedData(NamedTuple):
    """Tokenised rows, each with its source."""

    tokenizer: Any
    train: Any  # a Dataset, or an IterableDataset with data.streaming
    validation: Dataset | None  # sorted by source; None without validation data
    window: Dataset | None = None  # first rows of a stream
    labelling: Labelling | None = None  # if rows were clustered
    held_out: Parts = ()  # the text of the validation rows, including those too long to measure
    counts: RowsLeft | None = None  # training rows by source, or a stream's first rows, and those with a label
    texts: Sequence[Dataset] = ()  # the rows of `train`, in the same order, as text; empty for a stream


@one_bar()
def prepare_data(settings: RunSettings, *, resume: bool = False, kept: Path | None = None) -> PreparedData:
    """Read the mixture and tokenize it.

    Args:
        settings: the run's settings.
        resume: True when resuming: existing clusters must still match. Otherwise, mismatching clusters are recomputed.
        kept: folder of the resumed or replayed run, whose held-out rows are used; None to draw new ones.

    Raises:
        DataError: the data cannot be read, or is incomplete.
        ConfigError: the tokenizer cannot be loaded, or the clusters were made with other settings.
    """
    data = settings.data
    if data.streaming:
        return _prepare_stream(settings, kept)
    mixture, labelling = read_rows_of(settings, resume=resume, by_prompt=kept is None or not is_older(kept))
    tokenizer, (train, counts, texts) = _tokenize(settings, mixture.train)
    check_left(settings, counts)
    validation = _sort_by_source(tokenize_held_out(mixture.validation, tokenizer, data), data.source_column)
    return PreparedData(
        tokenizer, train, validation, labelling=labelling, held_out=mixture.validation, counts=counts, texts=texts
    )


@one_bar()
def prepare_for_model(settings: RunSettings, data: PreparedData, name: str) -> PreparedData:
    """Return the run's training rows, all of them in the same order, as the tokens of another model.

    Args:
        settings: the run's settings.
        data: its data, not a stream's.
        name: the other model.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
        DataError: a row has no label to learn in these tokens.
    """
    tokenizer, (train, _, texts) = _tokenize(settings._replace(model=name), data.texts)
    if len(train) < len(data.train):
        need = rendering_of(settings.data, tokenizer).need
        raise DataError(
            f"{len(data.train) - len(train):,} of the {len(data.train):,} training rows lack {need} with the tokenizer "
            f"of {name!r}. Use a model with the tokenizer of {settings.model!r}, or raise data.max_length."
        )
    return PreparedData(tokenizer, train, None, texts=texts)


def _tokenize(settings: RunSettings, parts: Sequence[Dataset]) -> tuple[Any, Tokenized]:
    """Return the model's tokenizer, and the parts' rows with a label as its tokens."""
    data, tokenizer = settings.data, _load_tokenizer(settings, parts)
    rendering = rendering_of(data, tokenizer)
    options: dict[str, Any] = {"rendering": rendering, "source_column": data.source_column, "num_proc": data.num_proc}
    with first_on_machine("tokens"):  # the others find them in the cache of `datasets`
        return tokenizer, tokenize_counted(parts, tokenizer, format_name=data.format, **options)


def _load_tokenizer(settings: RunSettings, parts: Iterable[Dataset]) -> Any:
    """Return the model's tokenizer, that of a tiny one trained on the parts' text."""
    if settings.model == "tiny":
        return train_tiny_tokenizer(_texts(parts, settings))
    return load_named_tokenizer(settings.model)


def is_older(folder: Path) -> bool:
    """Return whether a run lacks its held-out rows. They were then drawn without regard to prompts."""
    return not (folder / HELD_OUT_NAME).exists()


def longest_row(data: PreparedData, settings: RunSettings) -> int:
    """Return the length of the longest row in tokens; for a stream, the limit."""
    if data.window is not None:
        return settings.data.max_length
    return _largest(data, pc.list_value_length)


def largest_token(data: PreparedData) -> int:
    """Return the largest token id in the data; for a stream, the tokenizer's largest."""
    if data.window is not None:
        known: int = max(data.tokenizer.get_vocab().values())
        return known
    return _largest(data, pc.list_flatten)


def _largest(data: PreparedData, measure: Callable[[Any], Any]) -> int:
    parts = (part for part in (data.train, data.validation) if part is not None)
    batches = (batch for part in parts for batch in part.with_format("arrow").iter(batch_size=10_000))
    return max((pc.max(measure(batch["input_ids"])).as_py() or 0 for batch in batches), default=0)


@one_bar()
def read_rows_of(
    settings: RunSettings, *, resume: bool = True, by_prompt: bool = True
) -> tuple[Mixture, Labelling | None]:
    """Read the rows of a run, each with the source that the run assigns; not for streams.

    Raises as `prepare_data`.
    """
    data, rules = settings.data, settings.sources
    if not rules.any:
        return read_mixture(data, settings.mixture, settings.data_seed, by_prompt=by_prompt), None
    # Imports scikit-learn.
    from colm.lab.sources.embed import Tuned
    from colm.lab.sources.relabel import Relabelled, relabel_parts
    from colm.lab.sources.store import saved_clustering

    path = Path(rules.labels or settings.output_dir / LABELS_NAME)
    if rules.labels is not None and rules.cluster is None and (path.exists() or not rules.split):
        rules = replace(rules, cluster=saved_clustering(path))
    done: list[Relabelled] = []

    def relabel(train: list[Dataset], validation: list[Dataset]) -> tuple[list[Dataset], list[Dataset]]:
        embeds = any(config.embedding != "tfidf" for config in [rules.cluster, *rules.split.values()] if config)
        with _rank_gpu() if embeds else nullcontext():
            done.append(
                relabel_parts(
                    train,
                    validation,
                    rules,
                    path,
                    column=data.source_column,
                    format_name=data.format,
                    tuned=Tuned(settings.model, data.max_length, lambda: _load_tuned(settings, train)),
                    renew=rules.labels is None and not resume,
                )
            )
        return done[0].train, done[0].validation

    mixture = read_mixture(data, settings.mixture, settings.data_seed, relabel, by_prompt=by_prompt)
    return mixture, done[0].labelling if done else None


@contextmanager
def _rank_gpu() -> Iterator[None]:
    """Within the block, ``cuda`` is this rank's GPU; after it, the memory that models used there is free for training.

    The ranks have not connected yet, so nothing else has set the device. If each rank sees only one GPU, it is its own.
    """
    if not torch.cuda.is_available():
        yield
        return
    with torch.cuda.device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()):
        try:
            yield
        finally:
            gc.collect()
            torch.cuda.empty_cache()


def _load_tuned(settings: RunSettings, parts: Iterable[Dataset]) -> tuple[Any, Any]:
    """Return the model before training, and its tokenizer."""
    tokenizer = _load_tokenizer(settings, parts)
    if settings.model == "tiny":
        set_seed(settings.seed)
        return build_tiny_model(tokenizer), tokenizer
    named = find_model(settings.model)
    model = load_base(named, settings.dtype, tokenizer)
    if named.adapter is not None:
        model = load_adapted(model, named.adapter).get_base_model()
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _texts(parts: Iterable[Dataset], settings: RunSettings) -> Iterator[str]:
    other = (settings.data.source_column, COLUMN)  # columns that only scorers read
    for part in parts:
        for row in part:
            yield from (str(text) for name, text in row.items() if name not in other)


def _prepare_stream(settings: RunSettings, kept: Path | None) -> PreparedData:
    data, column = settings.data, settings.data.source_column
    stream = read_stream(data, settings.mixture)
    saved = None if kept is None else last_complete_checkpoint(kept) or kept
    if settings.model == "tiny" and saved is not None and (saved / "tokenizer.json").exists():
        tokenizer = load_tokenizer(str(saved))  # the first rows may have changed since
    elif settings.model == "tiny":
        rows = [row for part in stream.parts for row in part.take(data.window)]
        tokenizer = train_tiny_tokenizer(str(text) for row in rows for name, text in row.items() if name != column)
    else:
        tokenizer = load_named_tokenizer(settings.model)
    older = kept is not None and is_older(kept)
    held_out: Parts | None
    if kept is not None and not older:
        held_out = read_held_out(kept / HELD_OUT_NAME)
    else:
        held_out = read_validation(data) or None
    if older and held_out is None and data.validation_rows:
        logger.warning(
            "The run in %s was made by an older version, which did not store held-out rows. They are drawn again from "
            "the stream's first rows, which must not have changed.",
            kept,
        )
    mixture = prepare_stream(stream, tokenizer, data, settings.data_seed, held_out=held_out, by_prompt=not older)
    check_left(settings, mixture.counts)
    validation = _sort_by_source(mixture.validation, column)
    return PreparedData(
        tokenizer, mixture.train, validation, mixture.window, held_out=mixture.held_out, counts=mixture.counts
    )


def _sort_by_source(rows: Dataset | None, column: str) -> Dataset | None:
    """Return the rows source by source, each source's in their order: one table, however many sources there are."""
    if rows is None:
        return None
    names = rows[column][:]
    return rows.select(sorted(range(len(names)), key=names.__getitem__))
