"""Pools of padded micro-batches: count labeled tokens, take rows, pad them again.

Rows are handled by their span, the columns from the first to the last that is attended to or
labelled, so regrouped rows carry no more padding than they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from colm.errors import DataError
from colm.types import Batch

IGNORE = -100
"""The label of a token that is not a target, as everywhere in transformers."""

TOKENS = ("input_ids", "labels", "attention_mask")
"""The keys of a batch that tell where its rows begin and end, and what of them is learned."""


def is_learnable(labels: Sequence[int]) -> bool:
    """Return whether a row has a label to learn; nothing predicts its first token.

    >>> is_learnable([-100, 7]), is_learnable([7, -100])
    (True, False)
    """
    return any(label != IGNORE for label in labels[1:])


def count_labelled(labels: Tensor) -> Tensor:
    """Count each row's labeled tokens after the shift: (n, T) -> (n,) int64.

    Position 0 is never a target of a causal model, so its label does not count.
    """
    return (labels[:, 1:] != IGNORE).sum(1)


def as_micro_batches(batches: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Batch]:
    """Return a list of micro-batches, given one or several, after checking what selection needs.

    Raises:
        DataError: no batch, a batch without ``input_ids`` or ``labels`` (n, T), or a packed one.
    """
    micro_batches = [dict(batches)] if isinstance(batches, Mapping) else [dict(batch) for batch in batches]
    if not micro_batches:
        raise DataError("The pool has no micro-batch; hand over at least one.")
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
                f"Micro-batches 0 and {number} differ in {', '.join(map(repr, differing))}; all of a pool need the "
                "same keys."
            )
        rows = batch["input_ids"].shape[0]
        for key, value in batch.items():
            if (isinstance(value, Tensor) and value.dim() == 0) or (hasattr(value, "__len__") and len(value) != rows):
                raise DataError(
                    f"Micro-batch {number} has {rows} rows, but {key!r} does not have one entry for each of them, so "
                    "it cannot be regrouped; drop it in the collator."
                )
    return micro_batches


class Pool:
    """The micro-batches of one step on this rank, addressed by row position.

    Args:
        batches: a dict of tensors (n, T), or a list of them, differently padded if need be.
        pad_token_id: written into ``input_ids`` where a row is padded again.

    Attributes:
        batches: the micro-batches as handed over.
        lengths: list[int], tokens in each row's span.
        labelled: list[int], labeled tokens of each row after the shift.

    Raises:
        DataError: see `as_micro_batches`.
    """

    def __init__(self, batches: Mapping[str, Any] | Sequence[Mapping[str, Any]], pad_token_id: int = 0) -> None:
        self.pad_token_id = pad_token_id
        self.side = "right"
        self.labelled: list[int] = []
        self.lengths: list[int] = []
        self._where: list[tuple[int, int]] = []  # row position -> (micro-batch, row in it)
        self._spans: list[tuple[int, int]] = []
        self._hold(as_micro_batches(batches))
        self._read(self.batches)

    def _hold(self, batches: list[Batch]) -> None:
        self.batches = batches
        self._by_token = [key for key in batches[0] if all(_is_by_token(batch, key) for batch in batches)]

    def _read(self, batches: Sequence[Batch]) -> None:
        """Look at the tokens of further rows: where each begins and ends, and how many have a label."""
        first = self._where[-1][0] + 1 if self._where else 0
        for number, batch in enumerate(batches, first):
            # One host transfer a micro-batch: start, end and labeled count of each row.
            facts = torch.stack([*_spans(batch), count_labelled(batch["labels"])], 1).tolist()
            width = batch["input_ids"].shape[1]
            for row, (start, end, labelled) in enumerate(facts):
                self._where.append((number, row))
                self._spans.append((start, end))
                self.lengths.append(end - start)
                self.labelled.append(labelled)
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
        """Return whether `batches` have this pool's very tensors of tokens, masks and labels."""
        given = [batches] if isinstance(batches, Mapping) else batches
        return len(given) == len(self.batches) and all(
            ours.get(key) is theirs.get(key) for ours, theirs in zip(self.batches, given, strict=True) for key in TOKENS
        )

    def with_batches(self, batches: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Pool:
        """Return the pool of the same tokens with other keys, without a look at the tokens.

        Raises:
            DataError: see `as_micro_batches`.
        """
        pool = copy(self)
        pool._hold(as_micro_batches(batches))
        return pool

    def followed_by(self, batch: Batch) -> Pool:
        """Return the pool with one more micro-batch, whose tokens alone are looked at."""
        pool = self.with_batches([*self.batches, batch])
        pool.labelled, pool.lengths = [*self.labelled], [*self.lengths]
        pool._where, pool._spans = [*self._where], [*self._spans]
        pool._read([batch])
        return pool

    def by_length(self, positions: Sequence[int]) -> list[int]:
        """Return `positions` with the longest rows first; of equals in the order given."""
        return sorted(positions, key=lambda p: -self.lengths[p])

    def largest_batch_tokens(self) -> int:
        """Padded tokens in the largest micro-batch handed over."""
        return max(int(batch["input_ids"].numel()) for batch in self.batches)

    def collate(self, positions: Sequence[int], *, side: str | None = None, width: int | None = None) -> Batch:
        """Return the rows at `positions` as one micro-batch, padded to the longest of them.

        Args:
            positions: row positions, at least one, in the order wanted.
            side: ``left`` or ``right`` padding; default as the pool came.
            width: tokens to pad to instead, at least as many as the longest row has.
        """
        width = width or max(self.lengths[p] for p in positions)
        first = self.batches[self._where[positions[0]][0]]
        return {key: self._gather(key, positions, width, side or self.side) for key in first}

    def group(self, positions: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        """Yield groups of `positions`, rows of like length together, of at most `max_tokens` padded tokens.

        A row longer than `max_tokens` makes a group of its own.
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
        """Return the pool with each row cut behind its labeled token of this number, at least 1.

        A row with fewer stays as it is, and the side of the padding is kept.
        """
        batches = []
        for batch in self.batches:
            labelled = batch["labels"] != IGNORE
            labelled[:, 0] = False  # never a target
            before = labelled.cumsum(1)
            stays = (before < targets) | ((before == targets) & labelled)
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            cut = {"attention_mask": mask * stays, "labels": batch["labels"].masked_fill(~stays, IGNORE)}
            batches.append({**batch, **cut})
        pool = Pool(batches, self.pad_token_id)
        pool.side = self.side
        return pool

    def _gather(self, key: str, positions: Sequence[int], width: int, side: str) -> Any:
        rows = []
        for position in positions:
            number, row = self._where[position]
            rows.append((self.batches[number][key][row], position))
        sample = rows[0][0]
        if not isinstance(sample, Tensor):
            return [value for value, _ in rows]
        if key not in self._by_token:
            return torch.stack([value for value, _ in rows])
        out = sample.new_full((len(rows), width, *sample.shape[1:]), self._fill(key))
        for index, (value, position) in enumerate(rows):
            start, end = self._spans[position]
            at = width - (end - start) if side == "left" else 0
            out[index, at : at + end - start] = value[start:end]
        return out

    def _fill(self, key: str) -> int:
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE}
        return fill.get(key, 0)


def _is_by_token(batch: Batch, key: str) -> bool:
    """True for a tensor with an entry for each row and token; in all batches of a pool, this is not a coincidence."""
    value = batch[key]
    return isinstance(value, Tensor) and value.shape[:2] == batch["input_ids"].shape


def _spans(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return each row's first used column and one past its last, (n,) int64 each."""
    labels = batch["labels"]
    mask = batch.get("attention_mask")
    width = labels.shape[1]
    if mask is None:
        return labels.new_zeros(labels.shape[0]), labels.new_full((labels.shape[0],), width)
    used = (mask != 0) | (labels != IGNORE)
    column = torch.arange(width, device=labels.device)
    start = torch.where(used, column, width).amin(1)
    end = torch.where(used, column + 1, 0).amax(1)
    empty = end == 0  # keep a row that attends to nothing whole, so that it still has a shape
    return start.masked_fill(empty, 0), end.masked_fill(empty, width)


def split_evenly(positions: Sequence[int], slots: int) -> list[list[int]]:
    """Cut `positions` into `slots` runs whose lengths differ by at most one, longer ones first.

    >>> split_evenly([0, 1, 2, 3, 4], 2)
    [[0, 1, 2], [3, 4]]
    """
    short, longer = divmod(len(positions), slots)
    runs, start = [], 0
    for slot in range(slots):
        end = start + short + (slot < longer)
        runs.append(list(positions[start:end]))
        start = end
    return runs
