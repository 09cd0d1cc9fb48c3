"""`colm features`: a vector for each training row of a run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from colm.errors import ConfigError
from colm.features.shorten import draw_sketch
from colm.lab.data.fingerprint import fingerprint_data
from colm.lab.data.progress import advance, begin, one_bar
from colm.lab.run.disk import saying
from colm.lab.run.folder import RunFolder
from colm.lab.run.named import load_named_tokenizer
from colm.lab.run.prepare import PreparedData, prepare_data, prepare_for_model
from colm.lab.run.settings import RunSettings
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.embed import Embedder, make_embedder
from colm.lab.sources.rows import Rows
from colm.lab.sources.vectors import FIRST, FIRST_NUMBERS, Header, describe_difference, read_header, write_vectors
from colm.lab.sources.wanted import WHOLE, Part, Wanted
from colm.step.files import probe

logger = logging.getLogger(__name__)

Vectors: TypeAlias = Callable[[range], Iterator[np.ndarray]]
"""Yields the vectors of consecutive rows, (n, d) float32 each."""

EMBEDDINGS: dict[str, Literal["tfidf", "sentence"]] = {"words": "tfidf", "sentence": "sentence"}


class Made(NamedTuple):
    """A file of vectors."""

    path: Path
    header: Header
    rows: int  # vectors in the file
    broken: int = 0  # those that were not finite, and are zero
    new: bool = True  # False if it was there


@one_bar()
def make_features(
    settings: RunSettings, wanted: Wanted, out: Path, *, part: Part = WHOLE, overwrite: bool = False
) -> Made:
    """Write a vector for each training row of a run, in the order of the rows, or for one part of them.

    A file that contains just these vectors is not computed again.

    Args:
        settings: the run's settings.
        wanted: which vectors.
        out: the Parquet file; a part is written next to it, see `Part.path`.
        part: of the rows.
        overwrite: compute the vectors even if colm has written the file.

    Raises:
        ConfigError: the data is a stream; the file has other vectors, is not colm's or cannot be written; or a model or
            a package is missing.
        DataError: there are no training rows, or another model cannot read them.
        UnsupportedModelError: the model has no value projection that can be found.
    """
    if settings.data.streaming:
        raise ConfigError("The rows of a stream have no numbers; set data.streaming to false.")
    path = out if part == WHOLE else part.path(out)
    held = check_output(path)
    config = _embedding(settings, wanted)
    # Before the data is read: a package or a model may be missing.
    embedder = None if config is None else make_embedder(config, None)
    if wanted.by == "gradients" and wanted.model is not None and wanted.model != "tiny":
        load_named_tokenizer(wanted.model)
    data = prepare_data(settings)
    fingerprint = fingerprint_data(data.train, None, settings.data.source_column)["train"]
    header = Header(_describe(settings, wanted, config), fingerprint, wanted.dimensions, [], part)
    rows = part.rows(len(data.train))
    if held is not None and not overwrite:
        why = describe_difference(header, held) or (None if held.part == part else "it has another part of the rows")
        if why is not None:
            raise ConfigError(
                f"{path} already exists, but {why}. Replace it with --overwrite, or choose another --out."
            )
        return Made(path, held, len(rows), new=False)
    if config is None or embedder is None:
        vectors = _gradient_vectors(settings, data, wanted)
    else:
        vectors = text_vectors(embedder, config, Rows(data.texts, settings.data.format))
    first = np.concatenate(list(vectors(range(min(FIRST, len(data.train))))))
    header = header._replace(dimensions=first.shape[1], first=np.nan_to_num(first[:, :FIRST_NUMBERS]).tolist())
    broken: list[int] = []
    with saying(path.parent, "Free some space there, or choose another --out."):
        write_vectors(path, _finite(vectors, rows, broken), header)
    if broken:
        logger.warning("%d of %d rows have no finite vector; theirs is zero.", len(broken), len(rows))
    return Made(path, header, len(rows), len(broken))


def check_output(path: Path) -> Header | None:
    """Check that vectors can be written to a file, and return what colm has written there, if anything.

    Raises:
        ConfigError: it is not a Parquet file's name, its folder cannot be written, or the file is not colm's.
    """
    if path.suffix != ".parquet":
        raise ConfigError(f"--out {str(path)!r} must end with .parquet.")
    held = read_header(path) if os.path.lexists(path) else None
    if held is None and os.path.lexists(path):
        raise ConfigError(f"{path} was not written by colm features. Move it away, or choose another --out.")
    RunFolder(path.parent).prepare()
    with saying(path.parent, "Choose another --out."):
        probe(path)
    return held


def _embedding(settings: RunSettings, wanted: Wanted) -> ClusterConfig | None:
    """Return the settings of a text's vector: those of the run's clusters, as far as they are not given."""
    if wanted.by == "gradients":
        return None
    base = settings.sources.cluster or ClusterConfig()
    return replace(
        base,
        embedding=EMBEDDINGS[wanted.by],
        dimensions=wanted.dimensions,
        encoder=wanted.model or base.encoder,
        seed=settings.data_seed,
    )


def _describe(settings: RunSettings, wanted: Wanted, config: ClusterConfig | None) -> dict[str, Any]:
    """Return what the vectors depend on, apart from the rows, as JSON would."""
    held: dict[str, Any] = {"by": wanted.by, "model": None, "dimensions": wanted.dimensions}
    if config is None:
        model = _model_settings(settings, wanted)
        held |= {name: getattr(model, name) for name in ("model", "dtype", "lora", "seed")}
        held |= {name: getattr(model.selection, name) for name in ("value_module", "pass_labels")}
    elif wanted.by == "sentence":
        held |= {"model": config.encoder}
    else:
        held |= {name: getattr(config, name) for name in ("terms", "sample", "seed")}
    described: dict[str, Any] = json.loads(json.dumps(held))
    return described


def text_vectors(embedder: Embedder, config: ClusterConfig, rows: Rows) -> Vectors:
    """Return what embeds rows; words are fitted to a sample of all rows, which the seed draws, whatever the part."""
    if config.embedding == "tfidf":
        count = min(len(rows), config.sample)
        begin("Fitting", count, "rows")
        sample = np.sort(np.random.default_rng(config.seed).choice(len(rows), count, replace=False))
        embedder.fit(rows.take(sample.tolist()))

    def vectors(numbers: range) -> Iterator[np.ndarray]:
        for start in range(numbers.start, numbers.stop, embedder.chunk):
            embedded = embedder.embed(rows.read(start, min(start + embedder.chunk, numbers.stop)))
            block = torch.from_numpy(embedded).float()
            sketch = draw_sketch(block.shape[1], config.dimensions, block.device)
            yield (block if sketch is None else sketch.apply(block)).numpy()

    return vectors


def _gradient_vectors(settings: RunSettings, data: PreparedData, wanted: Wanted) -> Vectors:
    # Imports the Trainer.
    from colm.lab.run.gradients import RowGradients
    from colm.lab.run.trainer import make_model

    other = _model_settings(settings, wanted)
    if wanted.model is not None:
        data = prepare_for_model(settings, data, wanted.model)
    model = make_model(other, data).to("cuda" if torch.cuda.is_available() else "cpu")
    return RowGradients(model, other, data, wanted.dimensions)


def _model_settings(settings: RunSettings, wanted: Wanted) -> RunSettings:
    """Return the settings with the model of the gradients, all of whose weights count if it is not the run's."""
    if wanted.model is None:
        return settings
    return settings._replace(
        model=wanted.model, lora=None, attention="auto", selection=replace(settings.selection, value_module=None)
    )


def _finite(vectors: Vectors, rows: range, broken: list[int]) -> Iterator[np.ndarray]:
    """Yield the vectors with zero in place of those that are not finite, whose numbers are added to `broken`."""
    begin("Vectors", len(rows), "rows")
    start = rows.start
    for block in vectors(rows):
        places = np.flatnonzero(~np.isfinite(block).all(1))
        block[places] = 0
        broken += (start + places).tolist()
        start += len(block)
        advance(len(block))
        yield block
