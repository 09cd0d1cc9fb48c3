"""What a selection remembers from step to step, and when it may change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colm.errors import ConfigError
from colm.types import AdamHistory, StepRecord


class _Pending(NamedTuple):
    history: AdamHistory | None
    carried: Tensor | None
    record: StepRecord


class SelectionState:
    """A step counter, the Adam history, and the residual that is carried over to the next goal.

    They change only in `commit`, after the optimizer's step. A step that is prepared and then lost in a crash leaves no
    trace.

    Attributes:
        step: optimizer steps committed.
        history: of the kept rows of big sources; None before the first step.
        carried: (h,) residual of earlier picks, or None.
    """

    def __init__(self) -> None:
        self.step = 0
        self.history: AdamHistory | None = None
        self.carried: Tensor | None = None
        self._pending: _Pending | None = None

    def reset(self) -> None:
        """Forget all steps, for a training that starts anew."""
        self.step = 0
        self.forget_features()

    def forget_features(self) -> None:
        """Forget what belongs to the features of one model, and any step that was not committed."""
        self.history = None
        self.carried = None
        self._pending = None

    def prepare(self, history: AdamHistory | None, carried: Tensor | None, record: StepRecord) -> None:
        """Note what `commit` will store; None leaves the history or the residual as it is."""
        self._pending = _Pending(history, carried, record)

    def commit(self, *, stepped: bool) -> StepRecord:
        """Make the prepared step count, and return its record.

        Args:
            stepped: False if the optimizer skipped its step, which leaves history and residual as they were.

        Raises:
            ConfigError: no step was prepared since the last commit.
        """
        if self._pending is None:
            raise ConfigError("commit() without a select() before it; call select, train, then commit.")
        history, carried, record = self._pending
        if history is not None and stepped:
            self.history = history
        if carried is not None and stepped:
            self.carried = carried
        self._pending = None
        self.step += 1
        return record

    def to_dict(self) -> dict[str, Any]:
        """Return the committed state: step counter, Adam history (D,) and residual (h,), on the CPU."""
        history, carried = self.history, self.carried
        return {
            "step": self.step,
            "m": None if history is None else history.m.cpu(),
            "v": None if history is None else history.v.cpu(),
            "updates": 0 if history is None else history.updates,
            "carried": None if carried is None else carried.cpu(),
        }

    def move_to(self, device: torch.device) -> None:
        """Move history and residual to the features' device: a model may move after its state was loaded."""
        if self.history is not None:
            self.history = AdamHistory(self.history.m.to(device), self.history.v.to(device), self.history.updates)
        if self.carried is not None:
            self.carried = self.carried.to(device)

    def load(self, state: Mapping[str, Any], *, dim: int) -> None:
        """Restore what `to_dict` returned.

        Args:
            state: as saved.
            dim: D of the features; 0 without features.

        Raises:
            ConfigError: the history belongs to a weight of another size.
        """
        m, v = state["m"], state["v"]
        if m is not None and len(m) != dim:
            raise ConfigError(
                f"The saved Adam history has {len(m)} entries but the feature has {dim}; resume with the model and "
                "selection of the saved run."
            )
        self.forget_features()
        self.step = int(state["step"])
        carried = state.get("carried")
        if carried is not None and dim:
            self.carried = carried
        if m is not None:
            self.history = AdamHistory(m, v, int(state["updates"]))
