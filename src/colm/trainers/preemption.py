"""What a cluster's preemption (SIGTERM) does to a training: it saves at the end of the step, and stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from colm.step.ranks import sum_over_ranks


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends the training at the end of the step in which a rank gets SIGTERM.

    The Trainer's own ``enable_jit_checkpoint`` does so on one process. There each rank acts on its own clock, so that
    ranks that are told a step apart wait for each other for ever; here they agree at the end of every step.

    Attributes:
        stopped: whether the training was ended so.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._told = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen, where signals can be heard: in the main thread."""
        self.stopped = self._told = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end, if any rank was told to stop."""
        told = torch.tensor(int(self._told), device=args.device)
        if int(sum_over_ranks(told)):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the signal to whoever had it before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True
