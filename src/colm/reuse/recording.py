"""Record the layers' inputs during the selection pass, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from colm.errors import UnsupportedModelError
from colm.features.capture import watched_calls
from colm.features.precision import Precision
from colm.reuse.recompute import first_tensor
from colm.step.transfer import row_numbers


class Recording:
    """The layers' inputs and outputs, for each micro-batch of the pass.

    Args:
        layers: name and module, in execution order.
        offload: keep the states in host memory.

    Attributes:
        states: for each micro-batch, the inputs of all layers and the output of the last, (n, T, d) each.
        where: row position in the pool -> (micro-batch, row within it).
        precision: autocast in the layers; None before the first forward.
        parts: for each layer with a tuple output, the tuple's length; all entries but the hidden states are None.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Module]], *, offload: bool) -> None:
        self._layers = list(layers)
        self._offload = offload
        self.states: list[list[Tensor]] = []
        self.where: dict[int, tuple[int, int]] = {}
        self.precision: Precision | None = None
        self.parts: dict[str, int] = {}

    @contextmanager
    def watch(self, groups: Sequence[Sequence[int]]) -> Iterator[None]:
        """Within the block, record one forward of the model per group of row positions, in order.

        Raises:
            UnsupportedModelError: a layer's output is not the next layer's input, or not one state per token.
        """
        expected = iter(groups)
        versions: list[tuple[str, Tensor, int]] = []
        state: dict[str, Any] = {"next": 0, "group": None, "hidden": None}

        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            name, layer = self._layers[state["next"]]
            if module is not layer:
                raise _refuse(name, "does not run exactly once per forward, in layer order")
            if not args or not isinstance(args[0], Tensor):
                raise _refuse(name, "does not take its hidden states as the first argument")
            if state["next"] == 0:
                state["group"] = next(expected)
                self.precision = Precision.of(args[0].device.type)
                self.states.append([])
                keep(name, args[0])
            elif args[0] is not state["hidden"]:
                raise _refuse(name, "does not read the previous layer's output")

        def returned(module: nn.Module, output: Any) -> None:
            name, _ = self._layers[state["next"]]
            hidden = first_tensor(output)
            if hidden is None:
                raise _refuse(name, "returns more than its hidden states")
            if output is not hidden:
                self.parts[name] = len(output)
            keep(name, hidden)
            state["next"] = (state["next"] + 1) % len(self._layers)
            if state["next"] == 0:
                number = len(self.states) - 1
                self.where |= {position: (number, row) for row, position in enumerate(state["group"])}

        def keep(name: str, hidden: Tensor) -> None:
            if hidden.dim() != 3 or len(hidden) != len(state["group"]):
                rows = len(state["group"])
                raise _refuse(name, f"has states {tuple(hidden.shape)}, not (rows, tokens, size) for {rows} rows")
            state["hidden"] = hidden
            if not self._offload:
                versions.append((name, hidden.detach(), hidden._version))
            self.states[-1].append(to_host(hidden.detach()) if self._offload else hidden.detach())

        with watched_calls([layer for _, layer in self._layers], called, returned):
            yield
        if next(expected, None) is not None:
            raise _refuse(self._layers[0][0], "did not run for every micro-batch of the selection pass")
        for name, hidden, version in versions:
            if hidden._version != version:
                raise _refuse(name, "has hidden states that are modified in place")
        if self._offload and torch.cuda.is_available():
            torch.cuda.synchronize()  # wait for the copies

    def gather(self, runs: Sequence[Sequence[int]], widths: Sequence[int]) -> list[list[Tensor]]:
        """Return the states of runs of rows, (len(run), width, d) each, dropping all others along the way.

        Padding repeats the state of the row's first token, a value that the layer is known to handle.

        Args:
            runs: recorded row positions.
            widths: tokens to which each run is padded on the right.
        """
        gathered: list[list[Tensor]] = [[] for _ in runs]
        device = self.states[0][0].device
        plans = [_by_group([self.where[position] for position in run], device) for run in runs]
        for level in range(len(self._layers) + 1):
            for out, run, width, plan in zip(gathered, runs, widths, plans, strict=True):
                sample = self.states[0][level]
                block = torch.empty(
                    (len(run), width, sample.shape[-1]),
                    dtype=sample.dtype,
                    device=sample.device,
                    pin_memory=self._offload and sample.is_pinned(),
                )
                for group, (targets, rows) in plan.items():
                    held = self.states[group][level]
                    shared = min(width, held.shape[1])
                    block[targets, :shared] = held[rows, :shared]
                    if width > shared:
                        block[targets, shared:] = held[rows, :1]
                out.append(block)
            for states in self.states:
                states[level] = states[level].new_empty(0)  # not a view, which would keep the memory
        self.states, self.where = [], {}
        return gathered


def to_host(tensor: Tensor) -> Tensor:
    """Copy to pinned memory without waiting; a CPU tensor is returned as is."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return host.copy_(tensor, non_blocking=True)


def _by_group(places: Sequence[tuple[int, int]], device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
    """Map each micro-batch of the pass to the rows of a run that come from it and its own rows, (k,) int64 each."""
    plan: dict[int, tuple[list[int], list[int]]] = {}
    for target, (group, row) in enumerate(places):
        targets, rows = plan.setdefault(group, ([], []))
        targets.append(target)
        rows.append(row)
    return {group: (row_numbers(targets, device), row_numbers(rows, device)) for group, (targets, rows) in plan.items()}


def _refuse(name: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{name} {what}, so its forward cannot be reused; set reuse_forward=False.")
