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

    The pool of a step is ``per_device_train_batch_size x gradient_accumulation_steps`` rows on each
    rank. Everything else is the Trainer's: evaluation, callbacks, checkpoints, ``report_to``.

    Args:
        model: as the Trainer's.
        args: as the Trainer's.
        selection: how to choose; default `SelectionConfig()`.
        source_column: the column of ``train_dataset`` that names each row's source.
        replay: the ``selection.jsonl`` of an earlier run, whose choices are trained on again; the run's data, seeds
            and batch sizes are needed for that.
        source_sizes: of a stream (an iterable dataset, with ``max_steps``): rows of each source, at least in
            proportion. By default they are those of its first rows, and then follow the pools' running counts.
        window: how many first rows of a stream are counted. With several processes every source must be among them;
            one that turns up later is known from then on otherwise.
        **kwargs: as the Trainer's.

    Raises:
        DataError, ConfigError, UnsupportedModelError: before any training; the message says what to do.

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
                    "compute_loss_func would replace the example mean, and gets the number of rows where it expects "
                    "that of tokens; set SelectionConfig(loss='token') to train with your own loss."
                )
            kwargs["compute_loss_func"] = self._example_mean
        super().__init__(model, args, **kwargs)
        self._prepare_selection(selection, replay)

    def _example_mean(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return the training loss: each row of the step counts the same, or its weight."""
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        losses = example_losses(logits, labels)
        self._note_losses(losses)
        return mean_over_examples(losses, labels, self._row_weights, num_examples=num_items_in_batch)
