"""CoresetTrainer: the Hugging Face Trainer on coresets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.losses import example_losses, mean_over_examples
from colm.trainers.mixin import CoresetMixin
from colm.trainers.streams import WINDOW


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

    def _example_mean(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the training loss: the mean over the step's rows, weighted if they have weights."""
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        losses = example_losses(logits, labels)
        self._note_losses(losses)
        return mean_over_examples(losses, labels, self._row_weights, num_examples=num_items_in_batch)
