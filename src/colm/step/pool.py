"""Pools of padded micro-batches: count labeled tokens, take rows, and pad them again.

A row's span runs from its first to its last column that is attended to or labeled. Only the span is copied, so
regrouped rows have no more padding than they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colm.errors import DataError
from colm.step.transfer import send
from colm.types import Batch

IGNORE = -100
"""The label of a token that is not a target, as in transformers."""

TOKENS = ("input_ids", "labels", "attention_mask")
"""The keys of a batch that determine the rows' spans and targets."""

ROWS = "cu_seq_lens_q"
"""The key of a batch of joined rows that tells where they begin, and the end: (n + 1,) int32, as in transformers."""


def is_learnable(labels: Sequence[int]) -> bool:
    """Return whether a row has a label after its first token, which nothing predicts.

    >>> is_learnable([-100, 7]), is_learnable([7, -100])
    (True, False)
    """
    return labels[1:].count(IGNORE) < len(labels) - 1


def count_labelled(labels: Tensor, cu_seq_lens: Tensor | None = None) -> Tensor:
    """Count each row's labeled tokens: (n, T) -> (n,) int64.

    A causal model never predicts position 0, so its label does not count.

    Args:
        labels: (n, T) int64; (1, T) if the rows are joined.
        cu_seq_lens: (n + 1,), where joined rows begin, and the end; see `Pool.join`.
    """
    if cu_seq_lens is None:
        return (labels[:, 1:] != IGNORE).sum(1)
    before = nn.functional.pad((labels[0] != IGNORE).cumsum(0), (1, 0))[cu_seq_lens]
    return before.diff()


def as_micro_batches(batches: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Batch]:
    """Check one or several micro-batches, and return them as a list.

    Raises:
        DataError: there is no batch, or a batch is packed or lacks ``input_ids`` or ``labels`` (n, T).
    """
    micro_batches = [dict(batches)] if isinstance(batches, Mapping) else [dict(batch) for batch in batches]
    if not micro_batches:
        raise DataError("The pool has no micro-batch; pass at least one.")
    for number, batch in enumerate(micro_batches):
        for key in ("input_ids", "labels"):
            if not isinstance(batch.get(key), Tensor) or batch[key].dim() != 2:
                raise DataError(
                    f"Micro-batch {number} has no two-dimensional tensor {key!r} (rows, tokens); its keys are "
                    f"{sorted(batch)}. Selection needs input_ids and labels, the latter -100 where there is no target."
                )
        if batch["input_ids"].shape != batch["labels"].shape:
            raise DataError(
                f"Micro-batch {number} has input_ids {tuple(batch['input_ids'].shape)} but labels "
                f"{tuple(batch['labels'].shape)}; they must have the same shape."
            )
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() != 2:
            raise DataError(
                f"Micro-batch {number} has an attention_mask of {mask.dim()} dimensions; only (rows, tokens) can be "
                "regrouped. Turn packing off."
            )
        packed = [key for key in ("cu_seq_lens_q", "seq_lengths", "shift_labels", "seq_idx") if key in batch]
        if packed:
            raise DataError(
                f"Micro-batch {number} is packed (it has {packed[0]!r}), so its rows are not examples. "
                "Turn packing and padding-free collation off."
            )
        if batch.keys() != micro_batches[0].keys():
            differing = sorted(batch.keys() ^ micro_batches[0].keys())
            raise DataError(
                f"Micro-batches 0 and {number} differ in {', '.join(map(repr, differing))}; all micro-batches of "
                "a pool need the same keys."
            )
        rows = batch["input_ids"].shape[0]
        for key, value in batch.items():
            if (isinstance(value, Tensor) and value.dim() == 0) or (hasattr(value, "__len__") and len(value) != rows):
                raise DataError(
                    f"Micro-batch {number} has {rows} rows, but {key!r} does not have one entry per row, so it cannot "
                    "be regrouped; drop it in the collator."
                )
    return micro_batches


class RowSpans(NamedTuple):
    """What a pool must know of a micro-batch's rows, as numbers of the host."""

    width: int  # T, the padded tokens of a row
    rows: list[list[int]]  # of each: its span's first column, the column after its last, its used and labeled tokens

    @classmethod
    def of(cls, batch: Batch) -> RowSpans:
        """Read the tensors of a micro-batch, with ``labels`` (n, T). On a GPU, the host waits for its queued work."""
        rows = torch.stack([*_spans(batch), count_labelled(batch["labels"])], 1).tolist()  # one transfer
        return cls(batch["labels"].shape[1], rows)

    def fits(self, batch: Batch) -> bool:
        """Return whether the numbers may be those of a micro-batch."""
        return bool((len(self.rows), self.width) == batch["labels"].shape)


class Pool:
    """The micro-batches of one step on this rank, addressed by row position.

    Args:
        batches: a dict of tensors (n, T), or a list of them, whose widths T may differ.
        pad_token_id: fills ``input_ids`` when a row is padded again.
        spans: what is known of each micro-batch's rows, so that the tensors are not read; None where it is not known.

    Attributes:
        batches: the micro-batches, unchanged.
        lengths: list[int], tokens in each row's span.
        labelled: list[int], labeled tokens of each row, see `count_labelled`.

    Raises:
        DataError: see `as_micro_batches`.
    """

    def __init__(
        self,
        batches: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        pad_token_id: int = 0,
        spans: Sequence[RowSpans | None] | None = None,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.side = "right"
        self.labelled: list[int] = []
        self.lengths: list[int] = []
        self._solid: list[bool] = []
        self._where: list[tuple[int, int]] = []  # row position -> (micro-batch, row in it)
        self._spans: list[tuple[int, int]] = []
        self._hold(as_micro_batches(batches))
        self._read(self.batches, spans or [None] * len(self.batches))

    def _hold(self, batches: list[Batch]) -> None:
        self.batches = batches
        self._by_token = [key for key in batches[0] if all(_is_by_token(batch, key) for batch in batches)]

    def _read(self, batches: Sequence[Batch], spans: Sequence[RowSpans | None]) -> None:
        """Append the span and the number of labeled tokens of each row."""
        first = self._where[-1][0] + 1 if self._where else 0
        for number, (batch, known) in enumerate(zip(batches, spans, strict=True), first):
            width, rows = known if known is not None and known.fits(batch) else RowSpans.of(batch)
            for row, (start, end, used, labelled) in enumerate(rows):
                self._where.append((number, row))
                self._spans.append((start, end))
                self.lengths.append(end - start)
                self.labelled.append(labelled)
                self._solid.append(used == end - start)
                if start > 0 and end == width:
                    self.side = "left"

    def __len__(self) -> int:
        return len(self._where)

    @property
    def device(self) -> torch.device:
        """The device of the first micro-batch."""
        device: torch.device = self.batches[0]["input_ids"].device
        return device

    def holds_tokens_of(self, batches: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> bool:
        """Return whether `batches` share this pool's tensors of tokens, masks and labels."""
        given = [batches] if isinstance(batches, Mapping) else batches
        return len(given) == len(self.batches) and all(
            ours.get(key) is theirs.get(key) for ours, theirs in zip(self.batches, given, strict=True) for key in TOKENS
        )

    def with_batches(self, batches: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Pool:
        """Return the pool with the same tokens and other keys; the tokens are not read again.

        Raises:
            DataError: see `as_micro_batches`.
        """
        pool = copy(self)
        pool._hold(as_micro_batches(batches))
        return pool

    def followed_by(self, batch: Batch) -> Pool:
        """Return the pool with one more micro-batch; only its tokens are read."""
        pool = self.with_batches([*self.batches, batch])
        pool.labelled, pool.lengths, pool._solid = [*self.labelled], [*self.lengths], [*self._solid]
        pool._where, pool._spans = [*self._where], [*self._spans]
        pool._read([batch], [None])
        return pool

    def by_length(self, positions: Sequence[int]) -> list[int]:
        """Return `positions` with the longest rows first; rows of equal length keep their order."""
        return sorted(positions, key=lambda p: -self.lengths[p])

    def largest_batch_tokens(self) -> int:
        """Return the number of padded tokens in the largest micro-batch."""
        return max(int(batch["input_ids"].numel()) for batch in self.batches)

    def collate(self, positions: Sequence[int], *, side: str | None = None, width: int | None = None) -> Batch:
        """Return the rows at `positions` as one micro-batch, padded to the longest of them.

        Args:
            positions: row positions in the desired order, at least one.
            side: ``left`` or ``right`` padding; default: the pool's own.
            width: tokens to pad to, at least the longest row's; default: the longest row's.
        """
        width = width or max(self.lengths[p] for p in positions)
        first = self.batches[self._where[positions[0]][0]]
        return {key: self._gather(key, positions, width, side or self.side) for key in first}

    def is_solid(self, positions: Sequence[int]) -> bool:
        """Return whether these rows have no masked token between others, which only an attention mask can express."""
        return all(self._solid[p] for p in positions)

    def join(self, positions: Sequence[int]) -> Batch:
        """Return the rows at `positions` one after the other, as a single row without padding.

        Tensors with an entry per token have the shape (1, T), where T is the sum of the rows' lengths; other keys keep
        an entry per row. There is no ``attention_mask``: transformers keeps joined rows apart by ``position_ids``, (1,
        T) int64, which begin at 0 in each row, provided that no cache is in use. Kernels for sequences of any length
        read the rows' bounds from ``cu_seq_lens_q`` and ``cu_seq_lens_k``, (n + 1,) int32, ``max_length_q`` and
        ``max_length_k``; state space and convolution layers read ``seq_idx``, (1, T) int32. The label of each row's
        first token is -100: the token before it belongs to another row.

        Args:
            positions: row positions in the desired order, at least one; see `is_solid`.
        """
        sizes = [self.lengths[p] for p in positions]
        bounds = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
        number = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32), bounds.diff())
        first = self.batches[self._where[positions[0]][0]]
        batch = {key: self._join(key, positions) for key in first if key != "attention_mask"}
        batch["labels"][:, send(bounds[:-1].long(), self.device)] = IGNORE
        if "position_ids" not in batch:
            within = torch.arange(len(number)) - bounds[number]
            batch["position_ids"] = send(within[None], self.device)
        batch["seq_idx"] = send(number[None], self.device)
        batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = send(bounds, self.device)
        batch["max_length_q"] = batch["max_length_k"] = max(sizes)
        batch["use_cache"] = False
        return batch

    def group(self, positions: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        """Yield `positions` in groups of at most `max_tokens` padded tokens, with rows of similar length together.

        A row longer than `max_tokens` forms its own group.
        """
        group: list[int] = []
        for position in self.by_length(positions):  # the first row of a group is its longest
            if group and self.lengths[group[0]] * (len(group) + 1) > max_tokens:
                yield group
                group = []
            group.append(position)
        if group:
            yield group

    def cut_behind(self, targets: int) -> Pool:
        """Return the pool with each row cut after its first `targets` labeled tokens, at least 1.

        Rows with fewer labeled tokens are unchanged, as is the padding side.
        """
        batches = []
        for batch in self.batches:
            labelled = batch["labels"] != IGNORE
            labelled[:, 0] = False  # never predicted
            before = labelled.cumsum(1)
            stays = (before < targets) | ((before == targets) & labelled)
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            cut = {"attention_mask": mask * stays, "labels": batch["labels"].masked_fill(~stays, IGNORE)}
            batches.append({**batch, **cut})
        pool = Pool(batches, self.pad_token_id)
        pool.side = self.side
        return pool

    def _gather(self, key: str, positions: Sequence[int], width: int, side: str) -> Any:
        rows = self._rows(key, positions)
        if key not in self._by_token:
            return torch.stack(rows) if isinstance(rows[0], Tensor) else rows
        out = rows[0].new_full((len(rows), width, *rows[0].shape[1:]), self._fill(key))
        for index, row in enumerate(rows):
            at = width - len(row) if side == "left" else 0
            out[index, at : at + len(row)] = row
        return out

    def _join(self, key: str, positions: Sequence[int]) -> Any:
        rows = self._rows(key, positions)
        if key not in self._by_token:
            return torch.stack(rows) if isinstance(rows[0], Tensor) else rows
        return torch.cat(rows)[None]

    def _rows(self, key: str, positions: Sequence[int]) -> list[Any]:
        """Return each row's value, with an entry per token of the row's span if it has one per token."""
        rows = []
        for position in positions:
            number, row = self._where[position]
            value = self.batches[number][key][row]
            rows.append(value[slice(*self._spans[position])] if key in self._by_token else value)
        return rows

    def _fill(self, key: str) -> int:
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE}
        return fill.get(key, 0)


def _is_by_token(batch: Batch, key: str) -> bool:
    """Return whether a value is a tensor with one entry per row and token.

    Another tensor might have this shape in one batch by coincidence, but not in all batches of a pool.
    """
    value = batch[key]
    return isinstance(value, Tensor) and value.shape[:2] == batch["input_ids"].shape


def _spans(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's first used column, the column after its last one, and its attended tokens, (n,) int64 each."""
    labels = batch["labels"]
    mask = batch.get("attention_mask")
    width = labels.shape[1]
    if mask is None:
        whole = labels.new_full((labels.shape[0],), width)
        return torch.zeros_like(whole), whole, whole
    used = (mask != 0) | (labels != IGNORE)
    column = torch.arange(width, device=labels.device)
    start = torch.where(used, column, width).amin(1)
    end = torch.where(used, column + 1, 0).amax(1)
    empty = end == 0  # a row without used columns keeps its full width
    return start.masked_fill(empty, 0), end.masked_fill(empty, width), (mask != 0).sum(1)
