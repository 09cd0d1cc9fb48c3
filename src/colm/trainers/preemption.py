"""Handle preemption by a cluster (SIGTERM): save at the end of the step, and stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from colm.step.ranks import rank_and_world, sum_over_ranks


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training at the end of the step in which any rank receives SIGTERM.

    The Trainer's ``enable_jit_checkpoint`` does this for one process. With several, it can deadlock: ranks that receive
    SIGTERM in different steps wait for each other. Here the ranks agree at the end of every step.

    Attributes:
        stopped: whether the callback ended the training.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._told = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Install the signal handler, which is possible only in the main thread."""
        self.stopped = self._told = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint and stop training if any rank received the signal."""
        told = self._told
        if rank_and_world()[1] > 1:  # one process need not wait for its GPU
            told = bool(sum_over_ranks(torch.tensor(int(told), device=args.device)))
        if told:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the previous signal handler."""
        self.restore()

    def restore(self) -> None:
        """Restore the previous signal handler, also if an error ended the training; else SIGTERM would do nothing."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True
