"""The identity of tokenized rows and of a local model: a digest of what training reads of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from datasets import Dataset

from colm.step.sources import name_sources

BATCH = 10_000
"""Rows hashed at a time; the digest depends on this value."""

Fingerprint = dict[str, dict[str, Any]]
"""``train`` and ``validation``, or ``held_out`` for a stream, each with its ``rows`` and their ``digest``; and the
``digest`` and number of ``files`` of a local ``model``."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin", "*.gguf")
"""Names of the files of a model's folder that hold weights."""

LARGEST_HEADER = 10**8
"""Bytes, as the format allows."""

SAMPLE, PLACES = 2**12, 2**10
"""Bytes that are read of each tensor, since one that was trained differs everywhere; without a list of tensors, at so
many places of a file."""


def fingerprint_data(train: Dataset, validation: Dataset | None, source_column: str) -> Fingerprint:
    """Return the fingerprint of a run's tokenized rows.

    `datasets`' fingerprint is unsuitable: it depends on how rows were made, and changes when the cache is cleared.

    Args:
        train: rows with ``input_ids``, ``labels`` and their source.
        validation: rows of the same columns, sorted by source; None if there are none.
        source_column: the column with each row's source.

    >>> rows = Dataset.from_list([{"source": "a", "input_ids": [1, 2], "labels": [-100, 2]}])
    >>> fingerprint_data(rows, None, "source")["train"]["rows"]
    1
    """
    held = validation if validation is not None else train.select([])
    ends = np.cumsum([len(list(rows)) for _, rows in groupby(held[source_column][:])]).tolist()
    return {
        "train": {"rows": len(train), "digest": _digest(train, source_column, [len(train)])},
        "validation": {"rows": len(held), "digest": _digest(held, source_column, ends)},
    }


def fingerprint_stream(held_out: Iterable[str]) -> Fingerprint:
    """Return the fingerprint of a stream, from the lines of its held-out rows; its other rows are unknown."""
    hasher, rows = hashlib.blake2b(digest_size=16), 0
    for line in held_out:
        hasher.update(line.encode())
        rows += 1
    return {"held_out": {"rows": rows, "digest": hasher.hexdigest()}}


def fingerprint_model(name: str) -> Fingerprint:
    """Return the fingerprint of the weights in a model's folder or ``.gguf`` file; nothing for a hub name."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    if not files:
        return {}
    hasher = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        hasher.update(f"{file.name}:{size}".encode())
        with file.open("rb") as weights:
            for place in _tensors(weights) or np.linspace(0, max(0, size - SAMPLE), PLACES, dtype=np.int64).tolist():
                weights.seek(place)
                hasher.update(weights.read(SAMPLE))
    return {"model": {"files": len(files), "digest": hasher.hexdigest()}}


def describe_difference(held: Fingerprint | None, found: Fingerprint | None) -> str | None:
    """Describe how two fingerprints differ; None if they are equal or one is unknown."""
    if held is None or found is None:
        return None
    names = {"train": "training rows", "validation": "held-out rows", "held_out": "held-out rows"}
    told = [
        f"{held[key]['rows']:,} {name} ({held[key]['digest'][:8]}) before, {found[key]['rows']:,} "
        f"({found[key]['digest'][:8]}) now"
        for key, name in names.items()
        if key in held and key in found and held[key] != found[key]
    ]
    before, now = held.get("model"), found.get("model")
    if before and now and before != now:
        told.append(f"the model's files had other weights ({before['digest'][:8]} before, {now['digest'][:8]} now)")
    return "; ".join(told) or None


def _tensors(weights: IO[bytes]) -> list[int]:
    """Return where the header and each tensor of a safetensors file begin; nothing for another or a damaged file."""
    if not weights.name.endswith(".safetensors"):
        return []
    length = int.from_bytes(weights.read(8), "little")
    try:
        header = json.loads(weights.read(min(length, LARGEST_HEADER)))
        return [8, *(8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__")]
    except (ValueError, LookupError, AttributeError, TypeError):  # loading the model will say what is wrong
        return []


def _digest(rows: Dataset, source_column: str, ends: list[int]) -> str:
    """Return the digest of parts of the rows, which end at `ends`; each part begins a batch of its own."""
    hasher, tables = hashlib.blake2b(digest_size=16), rows.with_format("arrow")
    for begin, end in pairwise([0, *ends]):
        for start in range(begin, end, BATCH):
            table = tables[start : min(start + BATCH, end)]
            names = name_sources(table[source_column].to_pylist(), source_column)
            hasher.update("".join(f"{len(name)}:{name}" for name in names).encode())
            for column in ("input_ids", "labels"):
                lists = table[column].combine_chunks()
                # Use one width: the stored integer type depends on library versions. Token ids fit 32 bits.
                for values in (lists.value_lengths(), lists.flatten()):
                    hasher.update(values.to_numpy(zero_copy_only=False).astype(np.int32).tobytes())
    return hasher.hexdigest()
