"""Evaluation that gives each source's loss, in one pass over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from colm.integrations.hf import CoresetTrainer
from colm.losses import example_losses
from colm.record import StepLog

MACRO = "macro_loss"


class SourceTrainer(CoresetTrainer):
    """A `CoresetTrainer` whose evaluation also gives the loss of each source, and the mean over sources.

    The metrics are ``eval_<source>_loss``, the mean over its rows of their mean labelled-token loss, and
    ``eval_macro_loss``. No logits are kept: each batch is reduced to its rows' losses.

    Args:
        validation: source -> its tokenised rows; may be empty.
        **kwargs: as `CoresetTrainer`'s, without ``eval_dataset`` and what computes metrics.
    """

    def __init__(self, *args: Any, validation: Mapping[str, Dataset], **kwargs: Any) -> None:
        self.validation = dict(validation)
        if validation:
            kwargs["eval_dataset"] = concatenate_datasets(list(validation.values()))
            kwargs["compute_metrics"] = self._losses_by_source
            kwargs["preprocess_logits_for_metrics"] = _row_losses
        super().__init__(*args, **kwargs)

    def _losses_by_source(self, prediction: Any) -> dict[str, float]:
        losses = np.asarray(prediction.predictions)
        found, start = {}, 0
        for name, rows in self.validation.items():
            found[name] = float(losses[start : start + len(rows)].mean())
            start += len(rows)
        assert start == len(losses)
        return {f"{name}_loss": loss for name, loss in found.items()} | {MACRO: float(np.mean(list(found.values())))}

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Keep the order of the rows, by which their source is known, also where training groups by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def _row_losses(logits: Any, labels: Tensor) -> Tensor:
    """Reduce a batch's logits, perhaps among other outputs, to its rows' losses, (n,)."""
    return example_losses(logits[0] if isinstance(logits, tuple) else logits, labels)


class EvaluationRecorder(TrainerCallback):
    """Writes one line for each evaluation: step, rows trained on, training seconds, losses by source.

    Args:
        trainer: whose evaluations.
        log: the file.
        resumed_at: optimiser steps that the checkpoint holds; lines of later ones are forgotten.
    """

    def __init__(self, trainer: SourceTrainer, log: StepLog, *, resumed_at: int) -> None:
        self._trainer = trainer
        self._log = log
        held = [line["step"] for line in log.read() if line["step"] <= resumed_at]
        self.last_step: int | None = held[-1] if held else None
        trainer.accelerator.wait_for_everyone()  # all ranks have read
        if trainer.args.should_save:
            log.truncate(resumed_at + 1)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Write the line."""
        if f"eval_{MACRO}" not in metrics or self.last_step == state.global_step:
            return
        self.last_step = state.global_step
        if not args.should_save:
            return
        self._log.write(
            {
                "step": state.global_step,
                "rows": sum(self._trainer.figures.kept.values()),
                "seconds": round(self._trainer.figures.seconds, 3),
                "losses": {name: metrics[f"eval_{name}_loss"] for name in self._trainer.validation},
            }
        )


def peak_memory() -> dict[str, Any]:
    """Return the most memory held so far: the device's on a GPU, else the process's resident memory."""
    if torch.cuda.is_available():
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "memory_kind": "device"}
    try:
        import resource
    except ImportError:  # not on Windows
        return {"peak_memory_bytes": None, "memory_kind": "process"}
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "memory_kind": "process"}
