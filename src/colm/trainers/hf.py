"""CoresetTrainer: the Hugging Face Trainer on coresets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.features.capture import base_model, logits_of
from colm.features.fused import require_fused
from colm.lean import LeanHead, lean_head
from colm.losses import example_losses, mean_over_examples
from colm.step.pool import ROWS
from colm.trainers.mixin import CoresetMixin
from colm.trainers.streams import WINDOW

logger = logging.getLogger(__name__)


class CoresetTrainer(CoresetMixin, Trainer):
    """A `transformers.Trainer` that trains on a coreset of every pool.

    A step's pool is ``per_device_train_batch_size x gradient_accumulation_steps`` rows on each rank.
    Everything else works as in the Trainer: evaluation, callbacks, checkpoints, ``report_to``.

    Args:
        model: as for the Trainer.
        args: as for the Trainer.
        selection: how to select; default `SelectionConfig()`.
        source_column: the column of ``train_dataset`` with each row's source.
        replay: the ``selection.jsonl`` of an earlier run, to train on the same choices again; requires the same data,
            seeds and batch sizes.
        source_sizes: for a stream (an iterable dataset, with ``max_steps``), rows of each source, exact or in
            proportion. By default, they are estimated from the first rows and updated from the pools' counts.
        window: number of first rows to count in a stream. With several processes, every source must appear in this
            window. With one process, sources that appear later are added.
        **kwargs: as for the Trainer.

    Raises:
        DataError, ConfigError, UnsupportedModelError: before training starts; the message gives the remedy.

    Example::

        trainer = CoresetTrainer(model=model, args=TrainingArguments("out", gradient_accumulation_steps=8),
            train_dataset=dataset, data_collator=collator, selection=SelectionConfig(keep=0.5))
        trainer.train()
    """

    compute_loss_func: Any
    _lean: tuple[Any, LeanHead | None] | None = None

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        selection: SelectionConfig | None = None,
        source_column: str = "source",
        replay: str | Path | None = None,
        source_sizes: Mapping[str, int] | None = None,
        window: int = WINDOW,
        **kwargs: Any,
    ) -> None:
        selection = selection or SelectionConfig()
        if selection.train_head == "fused":
            require_fused()
        self._prepare_data(kwargs, source_column, args, source_sizes, window)
        if selection.loss == "example":
            if kwargs.get("compute_loss_func") is not None:
                raise ConfigError(
                    "compute_loss_func would replace the example mean, and would receive the number of rows instead of "
                    "tokens. Set SelectionConfig(loss='token') to train with your own loss."
                )
            kwargs["compute_loss_func"] = self._example_mean
        super().__init__(model, args, **kwargs)
        self._prepare_selection(selection, replay)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the micro-batches of the coreset, see `CoresetMixin`."""
        self._lean_head()  # before a selection that adds hooks of its own
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Return the Trainer's loss, with the output head on labeled positions only if nobody reads the logits."""
        head = None if return_outputs or "labels" not in inputs or not model.training else self._lean_head()
        token_mean = self.selection.loss == "token"
        if head is None or (token_mean and (num_items_in_batch is None or not self._sums_tokens())):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return self._lean_loss(head, model, inputs, num_items_in_batch)[0]

    def _lean_loss(
        self, head: LeanHead, model: Any, inputs: Any, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the Trainer's loss, and the losses of rows or labeled tokens that it averages."""
        averaged: list[Tensor] = []

        def mean(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            if self.selection.loss == "token":
                averaged.append(head.token_losses(outputs))
                total: Tensor = averaged[0].sum() / num_items_in_batch
                return total
            averaged.append(head.row_losses(outputs))
            return self._mean_over_rows(averaged[0], labels, num_items_in_batch)

        given, self.compute_loss_func = self.compute_loss_func, mean
        try:
            with head.reading(inputs["labels"], inputs.get(ROWS)):
                loss: Tensor = super().compute_loss(model, inputs, False, num_items_in_batch)
        finally:
            self.compute_loss_func = given
        return loss, averaged[0]

    def _lean_head(self) -> LeanHead | None:
        """Return what runs the head on labeled positions only; None, with one line in the log, where that fails."""
        if self._lean is None or self._lean[0] is not self.model:
            self._lean = (self.model, self._make_lean_head())
        return self._lean[1]

    def _make_lean_head(self) -> LeanHead | None:
        several = "one process has several GPUs" if self.args.n_gpu > 1 else None
        why = "the model is compiled" if self.args.torch_compile else several
        if why is not None:
            logger.info("The output head runs on all positions in training: %s.", why)
            return None
        return lean_head(self.model, self.selection)

    def _sums_tokens(self) -> bool:
        """Return whether the model's own loss is the sum of token losses over the number of items, and nothing else."""
        inner = base_model(self.model)
        plain = getattr(inner, "loss_function", None) is ForCausalLMLoss
        routed = getattr(inner.config.get_text_config(), "output_router_logits", False)  # adds a loss of its own
        return self.model_accepts_loss_kwargs and plain and not routed and self.compute_loss_func is None

    def _example_mean(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the training loss from all logits: the mean over the step's rows, weighted if they have weights."""
        losses = example_losses(logits_of(outputs), labels, self._row_bounds)
        return self._mean_over_rows(losses, labels, num_items_in_batch)

    def _mean_over_rows(self, losses: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        self._note_losses(losses)
        return mean_over_examples(
            losses, labels, self._row_weights, num_examples=num_items_in_batch, cu_seq_lens=self._row_bounds
        )
