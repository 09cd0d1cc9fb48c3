"""CoresetSFTTrainer: TRL's SFTTrainer on coresets.

TRL's default loss path makes no logits: its fused head returns each token's log-probability, and the loss is their sum
over the number of items. So the mean over examples is had by scaling each row's log-probabilities by its weight over
its number of labeled tokens, as they leave the model, and `compute_loss`, with TRL's metrics, stays TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.features.capture import changed_output
from colm.trainers.mixin import CoresetMixin
from colm.trainers.streams import WINDOW

try:
    from trl import SFTTrainer
except ImportError as error:
    raise ImportError("CoresetSFTTrainer needs TRL: pip install 'colm[trl]'") from error


class CoresetSFTTrainer(CoresetMixin, SFTTrainer):
    """A `trl.SFTTrainer` that trains on a coreset of every pool.

    Dataset formats, chat templates, completion-only and assistant-only loss, ``peft_config`` and the metrics are
    TRL's. The pool of a step is ``per_device_train_batch_size x gradient_accumulation_steps`` rows on each rank.

    Args:
        model: as SFTTrainer's.
        args: as SFTTrainer's, an `SFTConfig` as a rule.
        selection: how to choose; default `SelectionConfig()`.
        source_column: the column of ``train_dataset`` that names each row's source.
        replay: the ``selection.jsonl`` of an earlier run, whose choices are trained on again; the run's data, seeds
            and batch sizes are needed for that.
        source_sizes: of a stream (an iterable dataset, with ``max_steps``): rows of each source, at least in
            proportion. By default they are those of its first rows, and then follow the pools' running counts.
        window: how many first rows of a stream are counted. With several processes every source must be among them;
            one that turns up later is known from then on otherwise.
        **kwargs: as SFTTrainer's.

    Raises:
        DataError, ConfigError, UnsupportedModelError: before any training; the message says what to do.

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
        self._prepare_data(kwargs, source_column, args, source_sizes, window)
        super().__init__(model, args, **kwargs)
        if selection.loss == "example":
            # The loss below is over the step's rows, whatever the model's own forward does with a count.
            self.loss_is_scaled_for_ga = True
            self.model_accepts_loss_kwargs = True
        self._prepare_selection(selection, replay)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Return TRL's loss of log-probabilities that are scaled so that rows count as they should."""
        if self.selection.loss == "token":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights = self._row_weights

        def scale_rows(outputs: Any) -> Any:
            if getattr(outputs, "log_probs", None) is not None:  # else a forward for the logits alone
                scale = _row_scale(outputs.label_mask, weights, num_items_in_batch)
                tokens = outputs.label_mask.sum(1).clamp(min=1)
                self._note_losses(-outputs.log_probs.detach().float().sum(1) / tokens)
                outputs.log_probs = outputs.log_probs * scale.to(outputs.log_probs)[:, None]
            return outputs

        with changed_output(model, scale_rows):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def _row_scale(mask: Tensor, weights: Tensor | None, num_items: Tensor | int | None) -> Tensor:
    """Return what each row's log-probabilities are multiplied by, (n,) float32.

    TRL divides their sum by `num_items`, or by the labeled tokens at hand where that is None, as in evaluation. What
    should be left is the sum of weight times mean over the row's labeled tokens; weights are 1 / rows by default.

    Args:
        mask: (n, T - 1) bool, the labeled tokens.
        weights: (n,), or None for uniform ones.
        num_items: rows of the whole step.
    """
    tokens = mask.sum(1)
    divisor = torch.as_tensor(tokens.sum() if num_items is None else num_items, device=mask.device).clamp(min=1)
    if weights is None:
        rows = (tokens > 0).sum() if num_items is None else divisor
        weights = torch.ones_like(tokens, dtype=torch.float32) / torch.as_tensor(rows).clamp(min=1)
    return divisor * weights.to(mask.device) / tokens.clamp(min=1)


def _check_sft(args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse what TRL would do to examples that selection could not follow, before it prepares the data.

    Raises:
        ConfigError: a setting, and what to do instead.
    """
    for name in ("packing", "padding_free", "eval_packing"):
        if getattr(args, name, None):
            raise ConfigError(
                f"{name}=True joins several examples into one row, so that rows can be neither kept nor weighed as "
                f"examples; set it to False. Rows of like length are trained together anyway."
            )
    if kwargs.get("compute_loss_func") is not None:
        raise ConfigError(
            "compute_loss_func would replace the example mean, runs a second forward, and is deprecated in TRL; "
            "leave it out."
        )
    dataset = kwargs.get("train_dataset")
    if not isinstance(dataset, Dataset):
        return
    images = [name for name in ("image", "images") if name in dataset.column_names]
    if images:
        raise ConfigError(
            f"The training data has a column {images[0]!r}: selection takes rows of text only, since image tensors "
            "have no entry for each row. Use text, or TRL without selection."
        )
    if dataset.format["type"] != "custom":  # a transform is TRL's to take or to refuse
        kwargs["train_dataset"] = dataset.with_format(None)  # TRL would drop the codes with what a format leaves out
