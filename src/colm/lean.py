"""Train with the output head on labeled positions only.

Logits of positions without a target take time and memory, and affect neither the loss nor any gradient. With a
vocabulary of 128,000, and prompts that are not learned, the head is most of a small model's step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from colm.config import SelectionConfig
from colm.errors import ColmError, UnsupportedModelError, one_line
from colm.features.capture import changed_input, logits_of, model_inputs, undisturbed
from colm.features.fused import FusedHead, require_fused
from colm.features.head import OutputHead, output_module
from colm.features.one_token import find_head
from colm.features.precision import Precision
from colm.features.site import hides_from_hooks, unwrap
from colm.losses import Labelled, average_by_row, count_rows, find_labelled, token_losses
from colm.step.pool import IGNORE, ROWS
from colm.step.sharding import is_sharded, reads_output, whole_shape

logger = logging.getLogger(__name__)


class _Read(NamedTuple):
    """What the head was given in a forward."""

    hidden: Tensor  # (M, d), the states of the labeled positions, row by row
    precision: Precision


class _Wanted(NamedTuple):
    """The labeled tokens of the rows of a block, found once: the search makes a GPU wait."""

    rows: int
    labelled: Labelled


class LeanHead:
    """Computes rows' losses from a forward whose output head runs on labeled positions only.

    The losses, and the gradients of every weight, are those of `colm.losses.example_losses` on all logits, but for the
    order of sums. The model keeps its own head and everything it does to the logits after it.

    Args:
        model: a causal language model, also within PEFT or DistributedDataParallel.
        chunk_tokens: labeled tokens that go through the head at a time. Their logits are computed again in the
            backward, so that memory never holds more of them; 0: as many as make 256 MiB of float32 logits. None: all
            at once, which is faster.
        fused: compute the losses in one kernel that keeps no logits, on a GPU with the extra ``colm[fused]``.
            Experimental: `check` compares the kernel with the logits, too.
        check: compare with the model's own logits, on two made-up rows.

    Raises:
        UnsupportedModelError: the logits of labeled positions alone are not those among all positions, or, with
            `chunk_tokens`, the head cannot run on its own; or, with `fused`, is not a plain linear map; says why.
        ConfigError: `fused` on a machine without the kernel or a GPU.

    Example::

        head = LeanHead(model)
        losses = head(model, batch)  # (n,)
        mean_over_examples(losses, batch["labels"], weights).backward()
    """

    def __init__(
        self, model: nn.Module, *, chunk_tokens: int | None = None, fused: bool = False, check: bool = True
    ) -> None:
        caller: Any = unwrap(model)
        module = output_module(caller)
        if module is None:
            raise UnsupportedModelError("the model names no output head")
        if hides_from_hooks(model, module):
            raise UnsupportedModelError("the model is compiled")
        if reads_output(caller) or reads_output(module):
            raise UnsupportedModelError("a hook reads the model's logits")
        self._module = module
        self._chunk_tokens = chunk_tokens
        self._head: OutputHead | None = None
        self._fused: FusedHead | None = None
        self._read: _Read | None = None
        self._wanted: _Wanted | None = None
        if fused:
            require_fused()
        if fused or chunk_tokens is not None:
            with _unsupported():
                self._head = find_head(model)
            if self._head is None:
                if is_sharded(module):
                    raise UnsupportedModelError("the output head's weights are split over ranks")
                raise UnsupportedModelError("the output head alone does not give the model's logits")
        if fused and self._head is not None:
            self._fused = FusedHead.of(self._head)
        if check:
            with _unsupported():
                self._check(caller)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Run the model, and return each row's mean loss over its labeled tokens, (n,) float32; 0 without any.

        Args:
            model: the model of the constructor, as your loop calls it.
            batch: the model's arguments, with ``labels`` (n, T) int64, -100 for positions without a target; or n rows
                joined to one, with ``cu_seq_lens_q``, see `CoresetSelector.take`.
        """
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with self.reading(batch["labels"], batch.get(ROWS)):
            return self.row_losses(model(**inputs))

    @property
    def fused(self) -> bool:
        """Whether the losses come from the fused kernel."""
        return self._fused is not None

    @contextmanager
    def reading(self, labels: Tensor, cu_seq_lens: Tensor | None = None) -> Iterator[None]:
        """Within the block, a forward on rows with these labels (n, T) runs the head on labeled positions only.

        Args:
            labels: (n, T) int64; (1, T) if the rows are joined.
            cu_seq_lens: (n + 1,), where joined rows begin, and the end.
        """
        wanted = _Wanted(count_rows(labels, cu_seq_lens), find_labelled(labels, cu_seq_lens))

        def keep_labeled(hidden: Tensor) -> Tensor:
            if hidden.dim() != 3 or hidden.shape[:2] != labels.shape:  # a chunk (M, d) may be as large as (n, T)
                return hidden
            labeled = wanted.labelled.of(hidden)
            self._read = _Read(labeled, Precision.of(hidden.device.type))
            if self._head is None and len(labeled):
                return labeled[None]
            # Logits that nobody reads. They depend on every weight: without a label, each still gets a gradient, and
            # DistributedDataParallel looks in their graph for the weights that take part in the backward.
            return hidden[:1, :1]

        self._wanted = wanted
        try:
            with changed_input(self._module, keep_labeled):
                yield
        finally:
            self._wanted = self._read = None

    def row_losses(self, output: Any) -> Tensor:
        """Return each row's mean loss, (n,) float32; 0 without a labeled token. Call it in the block of the forward."""
        assert self._wanted is not None
        return average_by_row(self.token_losses(output), self._wanted.labelled.row, self._wanted.rows)

    def token_losses(self, output: Any) -> Tensor:
        """Return the loss of each labeled token, (M,) float32, row by row. Call it in the block of the forward."""
        assert self._wanted is not None
        labelled, logits = self._wanted.labelled, logits_of(output)
        targets = labelled.targets
        if self._read is None:  # the head saw other positions, such as those of a prompt that PEFT adds
            return token_losses(labelled.of(logits), targets)
        if not len(targets):
            return logits.float().flatten()[:0]
        if self._head is None:
            return token_losses(logits[0], targets)
        size, head = self._head.chunk_tokens(self._chunk_tokens), self._head
        with self._read.precision.context():
            if self._fused is not None:
                return self._fused.token_losses(self._read.hidden, targets)
            parts = zip(torch.split(self._read.hidden, size), torch.split(targets, size), strict=True)
            found = [checkpoint(_chunk_losses, head, *part, use_reentrant=False) for part in parts]
        return torch.cat(found)

    def _check(self, caller: Any) -> None:
        """Compare the logits of some positions with those among all positions, on two made-up rows."""
        embeddings = caller.get_input_embeddings().weight
        ids = (torch.arange(12, device=embeddings.device).reshape(2, 6) * 5 + 3) % whole_shape(embeddings)[0]
        labels = ids.clone()
        labels[0, :3], labels[1, ::2] = IGNORE, IGNORE
        inputs = model_inputs(caller, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with undisturbed(caller):
            whole = logits_of(caller(**inputs))
            if whole.shape[:2] != ids.shape:
                raise UnsupportedModelError("the model gives no logits for each token")
            with self.reading(labels):
                output = caller(**inputs)
                if self._read is None:
                    raise UnsupportedModelError("the output head does not read one state per token")
                hidden, precision = self._read
                # Rounding alone makes small differences, in TF32 too; other positions' logits are as different as their
                # size.
                tolerance = 2e-2 if hidden.dtype.itemsize < 4 or precision.enabled else 2e-3
                with precision.context():
                    if self._fused is not None and self._head is not None:
                        self._fused.check(self._head, hidden, find_labelled(labels).targets, tolerance)
                    found = logits_of(output)[0] if self._head is None else self._head.logits(hidden)
        expected = find_labelled(labels).of(whole)
        difference = (found.float() - expected.float()).abs().max()
        if not bool(difference <= tolerance * expected.float().abs().max().clamp_min(1e-6)):
            raise UnsupportedModelError("the logits of labeled positions alone differ from those among all positions")


@contextmanager
def _unsupported() -> Iterator[None]:
    """Within the block, report any error of the model on made-up rows: modeling code raises errors of any kind."""
    try:
        yield
    except ColmError:
        raise
    except Exception as error:
        raise UnsupportedModelError(f"the model does not run on made-up rows ({one_line(error)})") from error


def _chunk_losses(head: OutputHead, hidden: Tensor, targets: Tensor) -> Tensor:
    return token_losses(head.logits(hidden), targets)


_WAYS = {"fused": "in the fused kernel (experimental)", "chunked": "in chunks", "labeled": ""}
"""What `SelectionConfig.train_head` asks for; a model that does not allow one way may allow the next."""


def lean_head(model: nn.Module, selection: SelectionConfig, *, check: bool = True) -> LeanHead | None:
    """Return the head that a selection's ``train_head`` asks for; None for all positions.

    Also if the model does not allow another: then the log says why. `check` is as for `LeanHead`.
    """
    if selection.train_head == "all":
        return None
    ways = list(_WAYS)[list(_WAYS).index(selection.train_head) :]
    options: dict[str, dict[str, Any]] = {
        "fused": {"fused": True},
        "chunked": {"chunk_tokens": selection.head_chunk_tokens or 0},
    }
    why = ""
    for way in ways:
        try:
            head = LeanHead(model, check=check, **options.get(way, {}))
        except UnsupportedModelError as error:
            why = why or str(error)
            continue
        instead = f"not {_WAYS[ways[0]]}: {why}" if why else ""
        told = filter(None, ["The output head runs on labeled positions only", _WAYS[way], instead])
        logger.info("%s.", ", ".join(told))
        return head
    logger.info("The output head runs on all positions in training: %s.", why)
    return None
