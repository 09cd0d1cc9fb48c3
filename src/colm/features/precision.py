"""In which precision a forward ran."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """Autocast as it was at some moment, which whatever runs again apart from the model's forward needs."""

    kind: str  # of device
    enabled: bool
    dtype: torch.dtype  # float32 where it is off

    @staticmethod
    def of(kind: str) -> Precision:
        """Return autocast as it is now, for devices of `kind`."""
        enabled = torch.is_autocast_enabled(kind)
        return Precision(kind, enabled, torch.get_autocast_dtype(kind) if enabled else torch.float32)

    def context(self) -> torch.autocast:
        """Return a context with this autocast."""
        return torch.autocast(self.kind, dtype=self.dtype if self.enabled else None, enabled=self.enabled)
