"""Evaluation with a loss for each source, in one pass over all sources."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from colm.losses import example_losses
from colm.step.record import StepLog
from colm.step.sources import name_sources
from colm.step.stages import EVALUATE, stage
from colm.trainers.hf import CoresetTrainer

MACRO = "macro_loss"


class SourceTrainer(CoresetTrainer):
    """A `CoresetTrainer` whose evaluation also reports the loss of each source, and the mean over sources.

    The metrics are ``eval_loss/<source>``, the mean over the source's rows of their mean labeled-token loss, and
    ``eval_macro_loss``. Logits are not kept: each batch is reduced to its rows' losses.

    Args:
        validation: tokenized rows sorted by source; None for no evaluation.
        source_column: the column with each row's source.
        **kwargs: as for `CoresetTrainer`, without ``eval_dataset`` and metric functions.

    Attributes:
        validation: source -> number of its validation rows, in their order; empty without an evaluation.
        source_losses: losses of the last evaluation, by source name.
    """

    def __init__(self, *args: Any, validation: Dataset | None, source_column: str = "source", **kwargs: Any) -> None:
        names = [] if validation is None else name_sources(validation[source_column][:], source_column)
        assert names == sorted(names)
        self.validation = dict(Counter(names))
        self.source_losses: dict[str, float] = {}
        if validation:
            kwargs["eval_dataset"] = validation
            kwargs["compute_metrics"] = self._losses_by_source
            kwargs["preprocess_logits_for_metrics"] = _row_losses
        super().__init__(*args, source_column=source_column, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Return the loss, and in an evaluation its rows' losses in place of logits, from labeled positions only."""
        head = self._lean_head() if return_outputs and self.validation and self.selection.loss == "example" else None
        if head is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, losses = self._lean_loss(head, model, inputs, num_items_in_batch)
        return loss, {"logits": losses}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the Trainer does, as a stage of its own: a profiled step may include an evaluation."""
        with stage(EVALUATE):
            found: dict[str, float] = super().evaluate(*args, **kwargs)
        return found

    def _losses_by_source(self, prediction: Any) -> dict[str, float]:
        losses = np.asarray(prediction.predictions)
        found, start = {}, 0
        for name, rows in self.validation.items():
            found[name] = float(losses[start : start + rows].mean())
            start += rows
        assert start == len(losses)
        self.source_losses = found
        macro = float(np.mean(list(found.values())))
        return {name_metric(name): loss for name, loss in found.items()} | {MACRO: macro}

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Keep the row order, which identifies each row's source, even if training groups rows by length."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def name_metric(source: str) -> str:
    """Return the metric key of a source's loss; the Trainer adds the prefix ``eval_``.

    The slash groups the sources' charts in loggers, and keeps the key apart from every other one.

    >>> name_metric("code")
    'loss/code'
    """
    return f"loss/{source}"


def _row_losses(logits: Any, labels: Tensor) -> Tensor:
    """Return a batch's rows' losses, (n,), from them or from its logits, possibly the first of several outputs."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits if logits.dim() == 1 else example_losses(logits, labels)


class EvaluationRecorder(TrainerCallback):
    """Writes one line per evaluation: step, rows trained on, training seconds, losses by source.

    Args:
        trainer: the trainer to record.
        log: the file.
        resumed_at: optimizer steps in the checkpoint; lines of later steps are dropped.
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
                "losses": self._trainer.source_losses,
            }
        )


def peak_memory() -> dict[str, Any]:
    """Return the peak memory so far: device memory if a GPU was used, else the process's resident memory."""
    if held := torch.cuda.max_memory_allocated():
        return {"peak_memory_bytes": held, "memory_kind": "device"}
    return {"peak_memory_bytes": _peak_resident(), "memory_kind": "process"}


def _peak_resident() -> int | None:
    with suppress(OSError), open("/proc/self/status") as status:  # Linux, whose ru_maxrss includes the parent's memory
        held = {name: value for name, _, value in (line.partition(":") for line in status)}
        return int(held["VmHWM"].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
