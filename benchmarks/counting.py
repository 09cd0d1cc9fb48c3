"""Memory by counting, the same on any machine: peaks of what autograd saves and of what is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


class _Held:
    """A saved tensor, counted as long as autograd keeps it."""

    def __init__(self, tensor: Tensor, counter: _Counter) -> None:
        self.tensor = tensor
        self._counter = counter
        counter.add(tensor)

    def __del__(self) -> None:
        self._counter.drop(self.tensor)


class _Counter:
    def __init__(self, weights: set[int]) -> None:
        self.weights = weights
        self._uses: dict[int, int] = {}
        self.live = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] == 1 and key not in self.weights:
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def drop(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key]
            if key not in self.weights:
                self.live -= storage.nbytes()


def peak_saved_bytes(action: Callable[[], Any], model: nn.Module) -> int:
    """Return the peak bytes, excluding weights, that autograd holds saved while `action` runs."""
    counter = _Counter({parameter.untyped_storage().data_ptr() for parameter in model.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Held(tensor, counter), lambda held: held.tensor):
        action()
    return counter.peak


def peak_bytes(action: Callable[[], Any]) -> int:
    """Return the peak bytes allocated while `action` runs, above the earlier allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
