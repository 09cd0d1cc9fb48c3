"""CoresetSFTTrainer: TRL's SFTTrainer on coresets.

TRL's default loss path computes no logits: its fused head returns each token's log-probability, and the loss is the
negative sum over the number of items. We therefore obtain the per-example mean by scaling each row's log-probabilities,
as the model returns them, by the row's weight over its number of labeled tokens. `compute_loss` and the metrics remain
TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.features.capture import changed_output
from colm.losses import rows_of_tokens
from colm.step.pool import ROWS, count_labelled
from colm.trainers.engines import zero_stage
from colm.trainers.liger import check_liger
from colm.trainers.mixin import CoresetMixin
from colm.trainers.streams import WINDOW

try:
    from trl import SFTTrainer
except ImportError as error:
    raise ImportError("CoresetSFTTrainer needs TRL: pip install 'colm[trl]'") from error

JOINING = ("packing", "padding_free")
"""Settings of SFTConfig that join rows."""


class CoresetSFTTrainer(CoresetMixin, SFTTrainer):
    """A `trl.SFTTrainer` that trains on a coreset of every pool.

    Dataset formats, chat templates, completion-only and assistant-only loss, ``peft_config`` and the metrics are
    TRL's. A step's pool is ``per_device_train_batch_size x gradient_accumulation_steps`` rows on each rank. ``packing``
    and ``padding_free`` of an `SFTConfig` mean ``padding_free`` of the selection: rows are selected first, and those
    kept are joined. The trainer's ``args`` are then a copy with both off.

    Args:
        model: as for SFTTrainer.
        args: as for SFTTrainer, usually an `SFTConfig`.
        selection: how to select; default `SelectionConfig()`.
        source_column: the column of ``train_dataset`` with each row's source.
        replay: the ``selection.jsonl`` of an earlier run, to train on the same choices again; requires the same data,
            seeds and batch sizes.
        source_sizes: for a stream (an iterable dataset, with ``max_steps``), rows of each source, exact or in
            proportion. By default, they are estimated from the first rows and updated from the pools' counts.
        window: number of first rows to count in a stream. With several processes, every source must appear in this
            window. With one process, sources that appear later are added.
        **kwargs: as for SFTTrainer.

    Raises:
        DataError, ConfigError, UnsupportedModelError: before training starts; the message gives the remedy.

    Example::

        trainer = CoresetSFTTrainer("Qwen/Qwen3-0.6B", SFTConfig("out", gradient_accumulation_steps=8),
            train_dataset=dataset, peft_config=LoraConfig(), selection=SelectionConfig(keep=0.5))
        trainer.train()
    """

    def __init__(
        self,
        model: Any,
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
        _check_sft(args, kwargs)
        if any(getattr(args, name, False) for name in JOINING):
            # TRL would join rows before the selection. The user's own arguments stay as they are.
            selection, args = replace(selection, padding_free=True), copy(args)
            for name in JOINING:
                setattr(args, name, False)
        self._prepare_data(kwargs, source_column, args, source_sizes, window)
        super().__init__(model, args, **kwargs)
        if zero_stage(self) == 3 and selection.measured is not None:
            raise ConfigError(
                "TRL reads the output head's weight itself, which DeepSpeed's ZeRO-3 does not gather for it after a "
                "selection pass. Use features='none', ZeRO-2, FSDP2, or CoresetTrainer."
            )
        if selection.loss == "example":
            # The loss below is over the step's rows, even if the model's forward ignores the item count.
            self.loss_is_scaled_for_ga = True
            self.model_accepts_loss_kwargs = True
        self._prepare_selection(selection, replay)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Return TRL's loss, with log-probabilities scaled so that each row has the intended weight."""
        if self.selection.loss == "token":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels, bounds, weights = inputs["labels"], inputs.get(ROWS), self._row_weights
        tokens = count_labelled(labels, bounds)
        row = rows_of_tokens(labels, bounds)[:, 1:]

        def scale_rows(outputs: Any) -> Any:
            if getattr(outputs, "log_probs", None) is not None:  # else a forward that only computes logits
                scale = _row_scale(tokens, weights, num_items_in_batch)
                sums = torch.zeros_like(tokens, dtype=torch.float32)
                sums.index_add_(0, row.flatten(), outputs.log_probs.detach().float().flatten())
                self._note_losses(-sums / tokens.clamp(min=1))
                outputs.log_probs = outputs.log_probs * scale.to(outputs.log_probs)[row]
            return outputs

        with changed_output(model, scale_rows):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def _row_scale(tokens: Tensor, weights: Tensor | None, num_items: Tensor | int | None) -> Tensor:
    """Return the factor for each row's log-probabilities, (n,) float32.

    TRL divides their sum by `num_items`, or by the batch's labeled tokens if that is None, as in evaluation. The result
    must be the sum of weight times mean over the row's labeled tokens; default weights are 1 / rows.

    Args:
        tokens: (n,) int64, labeled tokens of each row.
        weights: (n,), or None for uniform weights.
        num_items: number of rows in the whole step.
    """
    divisor = torch.as_tensor(tokens.sum() if num_items is None else num_items, device=tokens.device).clamp(min=1)
    if weights is None:
        rows = (tokens > 0).sum() if num_items is None else divisor
        weights = torch.ones_like(tokens, dtype=torch.float32) / torch.as_tensor(rows).clamp(min=1)
    return divisor * weights.to(tokens.device) / tokens.clamp(min=1)


def _check_sft(args: Any, kwargs: dict[str, Any]) -> None:
    """Reject TRL settings and data that selection does not support, before TRL prepares the data.

    Raises:
        ConfigError: gives the setting and the remedy.
    """
    check_liger(args)
    if getattr(args, "eval_packing", None):
        raise ConfigError(
            "eval_packing=True joins several examples into one row, so an evaluation cannot count each example the "
            "same. Set it to False."
        )
    if kwargs.get("compute_loss_func") is not None:
        raise ConfigError(
            "compute_loss_func would replace the example mean, runs a second forward, and is deprecated in TRL. "
            "Remove it."
        )
    dataset = kwargs.get("train_dataset")
    if not isinstance(dataset, Dataset):
        return
    images = [name for name in ("image", "images") if name in dataset.column_names]
    if images:
        raise ConfigError(
            f"The training data has a column {images[0]!r}, but selection supports only text, since image tensors do "
            "not have one entry per row. Use text, or TRL without selection."
        )
    if dataset.format["type"] != "custom":  # TRL itself accepts or rejects transforms
        kwargs["train_dataset"] = dataset.with_format(None)  # TRL would drop the codes, as the format omits them
