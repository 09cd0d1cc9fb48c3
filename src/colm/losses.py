"""The training loss: every example has the same weight."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from colm.step.pool import IGNORE, count_labelled


def example_losses(logits: Tensor, labels: Tensor, cu_seq_lens: Tensor | None = None) -> Tensor:
    """Return each row's mean loss over its labeled tokens, (n,) float32; 0 for a row without any.

    Args:
        logits: (n, T, V), any float dtype; only labeled positions are converted to float32.
        labels: (n, T) int64, -100 for positions without a target; shifted here, as in transformers.
        cu_seq_lens: (n + 1,), if the n rows are joined to one, (1, T): where they begin, and the end. It is
            ``cu_seq_lens_q`` of a batch of joined rows, see `CoresetSelector.take`.
    """
    labelled = find_labelled(labels, cu_seq_lens)
    return mean_by_row(labelled.of(logits), labelled.targets, labelled.row, count_rows(labels, cu_seq_lens))


def count_rows(labels: Tensor, cu_seq_lens: Tensor | None = None) -> int:
    """Return n, the number of rows with these labels, (n, T), or (1, T) if joined; see `example_losses`."""
    return len(labels) if cu_seq_lens is None else len(cu_seq_lens) - 1


def rows_of_tokens(labels: Tensor, cu_seq_lens: Tensor | None = None) -> Tensor:
    """Return each token's row, int64 in the shape of the labels: (n, T), or (1, T) if joined; see `example_losses`."""
    rows = torch.arange(count_rows(labels, cu_seq_lens), device=labels.device)
    if cu_seq_lens is None:
        return rows[:, None].expand_as(labels)
    return torch.repeat_interleave(rows, cu_seq_lens.diff(), output_size=labels.shape[1])[None]


class Labelled(NamedTuple):
    """The labeled tokens of some rows, row by row."""

    places: tuple[Tensor, Tensor]  # line and column of the token before each, which predicts it, (M,) int64 each
    targets: Tensor  # (M,) int64 token ids
    row: Tensor  # (M,) int64

    def of(self, values: Tensor) -> Tensor:
        """Return what predicts the tokens, (M, d), of states or logits (n, T, d)."""
        return values[self.places]


def find_labelled(labels: Tensor, cu_seq_lens: Tensor | None = None) -> Labelled:
    """Find the labeled tokens of rows, see `example_losses`. The host waits for a GPU once, for their number."""
    line, column = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    row = line if cu_seq_lens is None else rows_of_tokens(labels, cu_seq_lens)[0, column + 1]
    return Labelled((line, column), labels[line, column + 1], row)


def mean_by_row(logits: Tensor, targets: Tensor, row: Tensor, rows: int) -> Tensor:
    """Average token losses over each row's labeled tokens, (rows,); 0 for a row without any.

    Args:
        logits: (M, V), any float dtype.
        targets: (M,) int64 token ids.
        row: (M,) int64, the row of each token.
        rows: n.
    """
    return average_by_row(token_losses(logits, targets), row, rows)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each token, (M,), in float32, or in float64 if the logits (M, V) are."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(precise, targets, reduction="none")


def average_by_row(losses: Tensor, row: Tensor, rows: int) -> Tensor:
    """Average token losses (M,) over the tokens of each row (M,) int64; (rows,), 0 for a row without any."""
    sums = losses.new_zeros(rows).index_add(0, row, losses)
    return sums / count_by_row(row, rows)


def count_by_row(row: Tensor, rows: int) -> Tensor:
    """Return how many tokens have each row, (rows,) int64, at least 1. `bincount` would wait for a GPU."""
    return row.new_zeros(rows).index_add(0, row, torch.ones_like(row)).clamp_min(1)


def example_mean(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    num_examples: Tensor | int | None = None,
    cu_seq_lens: Tensor | None = None,
) -> Tensor:
    """Return the sum over rows of weight times the row's mean labeled-token loss, a scalar.

    Args:
        logits: (n, T, V).
        labels: (n, T) int64, -100 for positions without a target.
        weights: (n,); default uniform, 1 / `num_examples`.
        num_examples: number of rows in the uniform mean, if the batch is only a part of them
            (accumulation, ranks); default: the rows of the batch that have a labeled token.
        cu_seq_lens: (n + 1,), if the n rows are joined to one, (1, T); see `example_losses`.

    Source: CoLM, section 4.1: uniform weights. The Trainer's own mean weights examples by length.

    >>> example_mean(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]])).item()  # log 2
    0.6931...
    """
    losses = example_losses(logits, labels, cu_seq_lens)
    return mean_over_examples(losses, labels, weights, num_examples=num_examples, cu_seq_lens=cu_seq_lens)


def mean_over_examples(
    losses: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    num_examples: Tensor | int | None = None,
    cu_seq_lens: Tensor | None = None,
) -> Tensor:
    """Return what `example_mean` does, given the rows' losses (n,)."""
    if weights is not None:
        return (weights.to(losses) * losses).sum()
    if num_examples is None:
        num_examples = (count_labelled(labels, cu_seq_lens) > 0).sum()
    return losses.sum() / (num_examples.clamp_min(1) if isinstance(num_examples, Tensor) else max(num_examples, 1))
