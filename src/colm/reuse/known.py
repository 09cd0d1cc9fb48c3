"""A training forward whose layer outputs are known from the selection pass."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from colm.errors import ConfigError, UnsupportedModelError
from colm.features.precision import Precision
from colm.reuse.recompute import LayerCall, relative_difference, run_known

EXACT = 1e-5
"""Largest relative difference (l2) between the first layer's inputs, or their dtype's precision if that is larger:
embeddings are looked up, not summed, and noise on them may be small."""


class KnownForward:
    """The states of one micro-batch, returned as its layers are called.

    Args:
        states: inputs of all layers and the output of the last, (n, T, d) each, on the device or in host memory.
        used: (n, T), tokens that are not padding; None means all.
        precision: autocast in the layers when the states were computed.
        parts: for each layer with a tuple output, the tuple's length; all entries but the first are None.
        checked: for each layer whose second run was compared with the first, the weights whose products are unused.
        hooked: layers with hooks inside. Hooks may read any product and may change their behavior later, so every
            second run is compared.
    """

    def __init__(
        self,
        states: list[Tensor],
        used: Tensor | None,
        precision: Precision | None,
        parts: dict[str, int],
        checked: dict[str, tuple[Tensor, ...]],
        hooked: Collection[str],
    ) -> None:
        self._states: list[Tensor | None] = list(states)
        self._used = used
        self._precision = precision
        self._parts = parts
        self._checked = checked
        self._hooked = hooked
        self._handed: tuple[Tensor, int] | None = None  # the previous layer's output and its version counter

    def run(self, number: int, name: str, layer: nn.Module, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return layer `number`'s known output; see `run_known`.

        Raises:
            ConfigError: autocast differs from the selection pass.
            UnsupportedModelError: the layer has other inputs that require gradients, or its hidden states are not the
                output of the previous layer.
        """
        hidden, rest = args[0], args[1:]
        precision = Precision.of(hidden.device.type)
        if self._precision is not None and precision != self._precision:
            raise ConfigError(
                f"The selection pass ran in {_describe(self._precision)} and training runs in {_describe(precision)}, "
                "but reuse_forward=True trains from the pass's hidden states; call select() and take() under the same "
                "autocast as the training forward, or set reuse_forward=False."
            )
        given = tree_leaves((rest, getattr(function, "args", ()), getattr(function, "keywords", {})))
        if any(isinstance(value, Tensor) and value.requires_grad for value in given):
            raise UnsupportedModelError(
                f"{name} has inputs other than its hidden states that require gradients, which reuse_forward=True would"
                " lose; set reuse_forward=False."
            )
        stored, output = self._states[number], self._states[number + 1]
        assert stored is not None
        assert output is not None
        if number == 0:
            self._check_beginning(name, hidden.detach(), stored)
        else:
            self._check_passed_on(name, hidden)
        self._states[number] = None  # from here on, only the graph holds it
        expected = None if name in self._checked and name not in self._hooked else output
        last = number == len(self._states) - 2
        seen = _hand_out(output, hidden, last=last)
        call = LayerCall(name, function, rest, precision, seen, expected, self._checked, self._used)
        known = run_known(call, hidden, stored, [p for p in layer.parameters() if p.requires_grad])
        self._handed = known, known._version
        return (known, *[None] * (self._parts[name] - 1)) if name in self._parts else known

    def _check_beginning(self, name: str, given: Tensor, stored: Tensor) -> None:
        """Compare the first layer's input in training with its input in the selection pass.

        Raises:
            UnsupportedModelError: they differ, so operations before the layers would be ignored.
        """
        error = relative_difference(stored, given, self._used)
        if not error <= max(EXACT, torch.finfo(given.dtype).eps):
            raise UnsupportedModelError(
                f"{name}, the first layer, receives different values in training and in the selection pass (relative "
                f"difference {error:.1e}): a hook on the embeddings, noise or dropout is active only in training, and "
                "reuse_forward=True would skip it; remove it, or set reuse_forward=False."
            )

    def _check_passed_on(self, name: str, hidden: Tensor) -> None:
        """Check that a layer, which runs from stored states, receives the output of the previous layer.

        Raises:
            UnsupportedModelError: it receives other values.
        """
        assert self._handed is not None
        handed, version = self._handed
        self._handed = None
        place = (hidden.data_ptr(), hidden.shape, hidden.stride(), hidden.dtype, hidden._version)
        if place != (handed.data_ptr(), handed.shape, handed.stride(), handed.dtype, version):
            raise UnsupportedModelError(
                f"{name} receives different values in training than the previous layer returns: a hook on that layer "
                "changes them, and reuse_forward=True would skip it; remove it, or set reuse_forward=False."
            )


def _hand_out(output: Tensor, hidden: Tensor, *, last: bool) -> Tensor:
    """Return the values that a layer's caller sees, on the device of `hidden`.

    The next layer uses its own stored input, so of values in host memory only the last layer's are copied to the
    device. Anything that reads the others gets NaN.
    """
    if last or output.device == hidden.device:
        return output.to(hidden.device, non_blocking=True).detach()
    return torch.full((), torch.nan, dtype=output.dtype, device=hidden.device).expand(output.shape)


def _describe(precision: Precision) -> str:
    return f"autocast to {precision.dtype}" if precision.enabled else "no autocast"
