"""How long a run of the part "does it help" trains, and when it is evaluated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from helps_rows import Losses
from transformers import TrainerCallback

Tell = Callable[[Mapping[str, Any]], None]


class OutOfTimeError(Exception):
    """The run would not finish before the part must end."""


class Evaluates(Protocol):
    """What a clock needs from the bench."""

    device: torch.device

    def evaluate(self, model: Any) -> Losses:
        """Return each source's loss."""


class Clock(TrainerCallback):
    """Counts a run's training seconds without evaluations, and evaluates when due.

    It waits for the GPU after each step, so that the next step's selection is not charged for the rest of this step.

    Attributes:
        elapsed: training seconds so far.
        peak: peak GPU bytes of training, without evaluations.
        evaluations: step, seconds and losses of each evaluation.
    """

    def __init__(self, bench: Evaluates, steps: int, every: int, tell: Tell, left: Callable[[], float]) -> None:
        self._bench, self._steps, self._every, self._tell, self._left = bench, steps, every, tell, left
        self._since = 0.0
        self.elapsed = 0.0
        self.peak = 0
        self.evaluations: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start counting."""
        self._go_on()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time, and evaluate if due."""
        self._stop()
        step = state.global_step
        if self._left() <= 0:
            raise OutOfTimeError(f"step {step} of {self._steps}")
        if step % self._every == 0 or step == self._steps:
            losses = self._bench.evaluate(kwargs["model"])
            bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
            if bad:
                raise ValueError(f"after step {step} the loss of {', '.join(bad)} is not finite")
            line = {"step": step, "seconds": round(self.elapsed, 4), "losses": losses}
            self.evaluations.append(line)
            self._tell(line)
        self._go_on()

    def _stop(self) -> None:
        if self._bench.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        self.elapsed += time.perf_counter() - self._since

    def _go_on(self) -> None:
        if self._bench.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._since = time.perf_counter()
