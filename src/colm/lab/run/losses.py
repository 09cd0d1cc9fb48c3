"""The record of a run's training loss."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from colm.step.record import StepLog


class LossRecorder(TrainerCallback):
    """Writes one line per log of the Trainer: the step, and the mean training loss since the log before.

    Args:
        log: the file.
        resumed_at: optimizer steps in the checkpoint; lines of later steps are dropped.
    """

    def __init__(self, log: StepLog, *, resumed_at: int) -> None:
        self._log, self._resumed_at = log, resumed_at

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines that the resumed run writes again."""
        if args.should_save:
            self._log.truncate(self._resumed_at + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the line."""
        if args.should_save and logs and "loss" in logs:
            self._log.write({"step": state.global_step, "loss": logs["loss"]})
