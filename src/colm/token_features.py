"""Features of rows by their tokens: TF-IDF vectors on their leading directions, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.nn.functional import embedding_bag

from colm.errors import DataError

TOKENS, MASK = "input_ids", "attention_mask"
CHUNK = 2_000
"""Rows whose tokens are in memory at a time."""

SAMPLE, SAMPLE_TOKENS = 50_000, 10_000_000
"""About the most rows, and tokens, from which the frequencies of tokens and the directions are taken."""

ROUNDS = 3
"""Power iterations toward the leading directions."""


def token_features(dataset: Any, *, dimensions: int = 64, seed: int = 0) -> np.ndarray:
    """Return sublinear TF-IDF vectors of the rows' tokens, projected on their leading directions.

    A token that occurs c times in a row counts (1 + ln c)(1 + ln((1 + n) / (1 + rows with it))). Rows have length 1
    before and after the projection. Masked tokens do not count. Sums are in float64, so that the machine and the number
    of threads change only digits that float32 does not have.

    Args:
        dataset: rows with ``input_ids``, and ``attention_mask`` if they are padded: a `datasets.Dataset`, or another
            map-style data set of mappings.
        dimensions: the most directions; there are at most as many as rows or tokens.
        seed: of the sample of rows that the directions are taken from, and of the first directions.

    Returns:
        (n, d) float32, d at least 1; 0 for a row without tokens.

    Raises:
        DataError: the rows have no ``input_ids``.

    Source: Halko, Martinsson and Tropp, 2011, algorithm 4.4, without the last rotation: a deal depends on inner
    products alone, and the subspace is more certain than the directions in it.
    """
    _require_tokens(dataset)
    draws = np.random.default_rng(seed)
    terms = _Terms.of(_read_tokens(dataset, draws.permutation(len(dataset))[:SAMPLE]))
    if not terms.size:
        return np.zeros((len(dataset), 1), dtype=np.float32)
    basis = _leading_directions(terms, min(dimensions, terms.rows, terms.size), draws)
    parts = [_normalize(terms.weigh(chunk).times(basis)) for chunk in _read_tokens(dataset)]
    return np.concatenate(parts).astype(np.float32)


class _Sparse(NamedTuple):
    """A matrix with few entries, row by row."""

    columns: torch.Tensor  # (entries,) int64
    starts: torch.Tensor  # (rows,) int64, where each row begins
    values: torch.Tensor  # (entries,) float64

    def times(self, dense: np.ndarray) -> np.ndarray:
        """Return the product with a matrix (columns, d) float64; each row is summed in its own order."""
        table = torch.from_numpy(dense)
        summed = embedding_bag(self.columns, table, self.starts, mode="sum", per_sample_weights=self.values)
        return np.asarray(summed.numpy())

    def transposed(self, columns: int) -> _Sparse:
        """Return the transpose of a matrix with so many columns."""
        order = torch.argsort(self.columns, stable=True)
        row = torch.searchsorted(self.starts, order, right=True) - 1
        counts = torch.bincount(self.columns, minlength=columns)
        return _Sparse(row, counts.cumsum(0) - counts, self.values[order])


class _Tokens(NamedTuple):
    """The tokens of some rows, one after the other."""

    ids: np.ndarray  # (tokens,) int64
    rows: np.ndarray  # (tokens,) int64, ascending from 0
    length: int  # rows


class _Terms(NamedTuple):
    """The tokens that count, each with its number among them and how much it counts."""

    number: np.ndarray  # token id -> number, -1 for an unknown one
    rarity: np.ndarray  # (size,) float64
    sample: list[_Tokens]
    rows: int  # of the sample

    @classmethod
    def of(cls, chunks: Iterator[_Tokens]) -> _Terms:
        """Count in how many rows each token is."""
        sample, frequency, rows = [], np.zeros(0, dtype=np.int64), 0
        for chunk in chunks:
            width = max(len(frequency), int(chunk.ids.max(initial=-1)) + 1)
            pairs, _ = np.unique(chunk.rows * width + chunk.ids, return_counts=True)  # sorts; without counts it hashes
            frequency = np.pad(frequency, (0, width - len(frequency))) + np.bincount(pairs % width, minlength=width)
            rows += chunk.length
            sample.append(chunk)
            if sum(len(each.ids) for each in sample) > SAMPLE_TOKENS:
                break
        known = np.flatnonzero(frequency)
        number = np.full(len(frequency), -1, dtype=np.int64)
        number[known] = np.arange(len(known))
        return cls(number, 1 + np.log((1 + rows) / (1 + frequency[known])), sample, rows)

    @property
    def size(self) -> int:
        """How many tokens count."""
        return len(self.rarity)

    def weigh(self, chunk: _Tokens) -> _Sparse:
        """Return the rows' TF-IDF vectors, each of length 1."""
        inside = chunk.ids < len(self.number)
        number, row = self.number[chunk.ids[inside]], chunk.rows[inside]
        pairs, counts = np.unique((row * self.size + number)[number >= 0], return_counts=True)
        row, number = np.divmod(pairs, self.size)
        values = (1 + np.log(counts)) * self.rarity[number]
        norms = np.sqrt(np.bincount(row, values**2, minlength=chunk.length))
        held = np.bincount(row, minlength=chunk.length)
        starts = np.cumsum(held) - held
        return _Sparse(torch.from_numpy(number), torch.from_numpy(starts), torch.from_numpy(values / norms[row]))


def _leading_directions(terms: _Terms, dimensions: int, draws: np.random.Generator) -> np.ndarray:
    """Return an orthonormal basis (terms, dimensions) float64 of about the space of the leading singular vectors."""
    parts = [terms.weigh(chunk) for chunk in terms.sample]
    flipped = [part.transposed(terms.size) for part in parts]
    basis = draws.standard_normal((terms.size, dimensions))
    for _ in range(ROUNDS):
        pairs = zip(parts, flipped, strict=True)
        basis = np.linalg.qr(sum(back.times(part.times(basis)) for part, back in pairs))[0]
    return basis


def _normalize(rows: np.ndarray) -> np.ndarray:
    """Return rows (n, d) of length 1; a row that is 0 up to rounding becomes 0."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-9)
    return scaled


def _require_tokens(dataset: Any) -> None:
    if isinstance(dataset, Dataset):
        columns = dataset.column_names
    else:
        columns = list(dataset[0]) if len(dataset) else [TOKENS]
    if TOKENS not in columns:
        raise DataError(
            f"The data has no column {TOKENS!r}, only {', '.join(columns)}, so its rows cannot be ordered by their "
            "tokens. Tokenize it first, or order by 'sources' or by a file of features."
        )


def _read_tokens(dataset: Any, rows: np.ndarray | None = None) -> Iterator[_Tokens]:
    """Yield the tokens of the data, or of these rows of it, some rows at a time."""
    if not isinstance(dataset, Dataset):
        yield from _read_mappings(dataset, range(len(dataset)) if rows is None else rows.tolist())
        return
    names = [name for name in (TOKENS, MASK) if name in dataset.column_names]
    plain = dataset.with_format("arrow").select_columns(names)
    if rows is not None:
        plain = plain.select(rows)
    for table in plain.iter(batch_size=CHUNK):
        lists = [table[name].combine_chunks() for name in names]
        if not is_list(lists[0].type):
            raise DataError(f"The column {TOKENS!r} has the type {lists[0].type}; it must have lists of token ids.")
        lengths, *others = (pc.fill_null(pc.list_value_length(each), 0).to_numpy() for each in lists)
        ids, *masks = (each.flatten().to_numpy(zero_copy_only=False) for each in lists)
        same = bool(masks) and np.array_equal(lengths, others[0])
        yield _tokens(ids, lengths, masks[0] if same else None)


def _read_mappings(dataset: Any, rows: Sequence[int]) -> Iterator[_Tokens]:
    for start in range(0, len(rows), CHUNK):
        held = [dataset[row] for row in rows[start : start + CHUNK]]
        ids = [np.asarray(row[TOKENS]).reshape(-1) for row in held]
        masks = [np.asarray(row.get(MASK, np.ones(len(each)))).reshape(-1) for row, each in zip(held, ids, strict=True)]
        lengths = np.array([len(each) for each in ids], dtype=np.int64)
        yield _tokens(np.concatenate(ids), lengths, np.concatenate(masks))


def _tokens(ids: np.ndarray, lengths: np.ndarray, mask: np.ndarray | None) -> _Tokens:
    rows = np.repeat(np.arange(len(lengths)), lengths)
    seen = ids >= 0 if mask is None else (ids >= 0) & (mask != 0)
    return _Tokens(ids[seen].astype(np.int64), rows[seen], len(lengths))


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column of this type has lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
