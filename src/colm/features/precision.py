"""The precision in which a forward ran."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """A snapshot of autocast, to rerun parts of a model outside its forward."""

    kind: str  # device type
    enabled: bool
    dtype: torch.dtype  # float32 if autocast is off

    @staticmethod
    def of(kind: str) -> Precision:
        """Return the current autocast state for devices of type `kind`."""
        enabled = torch.is_autocast_enabled(kind)
        return Precision(kind, enabled, torch.get_autocast_dtype(kind) if enabled else torch.float32)

    def context(self) -> torch.autocast:
        """Return a context that restores this autocast state."""
        return torch.autocast(self.kind, dtype=self.dtype if self.enabled else None, enabled=self.enabled)
