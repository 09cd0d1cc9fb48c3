"""The old home of `colm.trainers.preemption.StopOnSignal`."""

from __future__ import annotations

import warnings

from colm.trainers.preemption import StopOnSignal

__all__ = ["StopOnSignal"]

warnings.warn(
    "colm.integrations.preemption is now colm.trainers.preemption; the old name goes with version 0.3.",
    DeprecationWarning,
    stacklevel=2,
)
