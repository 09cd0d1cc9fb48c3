"""The layers' inputs of the selection pass, kept as its micro-batches go by."""

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
    """What the layers read and wrote, by micro-batch of the pass.

    Args:
        layers: name and module, in the order in which they run.
        offload: hold it in host memory.

    Attributes:
        states: of each micro-batch the inputs of all layers and the output of the last, (n, T, d) each.
        where: row position in the pool -> (micro-batch, row in it).
        precision: autocast in the layers; None before the first forward.
        parts: by layer whose output is a tuple, of how many parts: hidden states, and nothing else.
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
        """Within the block, record one forward of the model for each group of row positions, in their order.

        Raises:
            UnsupportedModelError: a layer's output is not the next one's input, or not one state for each token.
        """
        expected = iter(groups)
        versions: list[tuple[str, Tensor, int]] = []
        state: dict[str, Any] = {"next": 0, "group": None, "hidden": None}

        def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            name, layer = self._layers[state["next"]]
            if module is not layer:
                raise _refuse(name, "does not run once in a forward, in the order of the layers")
            if not args or not isinstance(args[0], Tensor):
                raise _refuse(name, "is not given its hidden states as the first argument")
            if state["next"] == 0:
                state["group"] = next(expected)
                self.precision = Precision.of(args[0].device.type)
                self.states.append([])
                keep(name, args[0])
            elif args[0] is not state["hidden"]:
                raise _refuse(name, "does not read what the layer before it wrote")

        def returned(module: nn.Module, output: Any) -> None:
            name, _ = self._layers[state["next"]]
            hidden = first_tensor(output)
            if hidden is None:
                raise _refuse(name, "returns more than hidden states")
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
                raise _refuse(name, f"has hidden states {tuple(hidden.shape)}, not (rows, tokens, size) of {rows} rows")
            state["hidden"] = hidden
            if not self._offload:
                versions.append((name, hidden.detach(), hidden._version))
            self.states[-1].append(to_host(hidden.detach()) if self._offload else hidden.detach())

        with watched_calls([layer for _, layer in self._layers], called, returned):
            yield
        if next(expected, None) is not None:
            raise _refuse(self._layers[0][0], "did not run for each micro-batch of the selection pass")
        for name, hidden, version in versions:
            if hidden._version != version:
                raise _refuse(name, "has hidden states that are changed in place")
        if self._offload and torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies have arrived

    def gather(self, runs: Sequence[Sequence[int]], widths: Sequence[int]) -> list[list[Tensor]]:
        """Return the states of runs of rows, (len(run), width, d) each, and drop all others as it goes.

        Padding holds the state of a row's first token, which the layer is known to take.

        Args:
            runs: row positions, each recorded.
            widths: tokens to pad each run to on the right.
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
                states[level] = states[level][:0]
        self.states, self.where = [], {}
        return gathered


def to_host(tensor: Tensor) -> Tensor:
    """Copy to pinned memory, without waiting for it; a tensor that is there already stays."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return host.copy_(tensor, non_blocking=True)


def _by_group(places: Sequence[tuple[int, int]], device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
    """Return by micro-batch of the pass which rows of a run, (k,) int64, come from which of its rows, (k,) int64."""
    plan: dict[int, tuple[list[int], list[int]]] = {}
    for target, (group, row) in enumerate(places):
        targets, rows = plan.setdefault(group, ([], []))
        targets.append(target)
        rows.append(row)
    return {group: (row_numbers(targets, device), row_numbers(rows, device)) for group, (targets, rows) in plan.items()}


def _refuse(name: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{name} {what}, so its forward cannot be trained from; set reuse_forward=False.")
