"""A training forward whose layers' outputs are known, layer by layer."""

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
"""How far the first layer's inputs may be apart, relative in l2 norm, or the precision of their dtype if that is more:
embeddings are looked up, not summed, and noise on them may be small."""


class KnownForward:
    """The states of one micro-batch, handed out as its layers are called.

    Args:
        states: inputs of all layers and the output of the last, (n, T, d) each, on the device or in host memory.
        used: (n, T), tokens that are no padding; None for all.
        precision: autocast in the layers when the states were made.
        parts: by layer whose output is a tuple, of how many parts; all but the first are None.
        checked: by layer whose second run was compared with the first, weights whose products nobody reads in it.
        hooked: layers with hooks inside, which may read any product, and may do other things later: each second run is
            compared.
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
        self._handed: tuple[Tensor, int] | None = None  # the last layer's output, and how often it was written to

    def run(self, number: int, name: str, layer: nn.Module, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Return layer `number`'s known output for its place in the forward, see `run_known`.

        Raises:
            ConfigError: autocast is another one than in the selection pass.
            UnsupportedModelError: the layer has other inputs that gradients go through, or other hidden states than
                those that the layer before it returned.
        """
        hidden, rest = args[0], args[1:]
        precision = Precision.of(hidden.device.type)
        if self._precision is not None and precision != self._precision:
            raise ConfigError(
                f"The selection pass ran in {_describe(self._precision)} and training runs in {_describe(precision)}, "
                "but reuse_forward=True trains from the pass's hidden states; call select() and take() under the "
                "autocast of the training forward, or set reuse_forward=False."
            )
        given = tree_leaves((rest, getattr(function, "args", ()), getattr(function, "keywords", {})))
        if any(isinstance(value, Tensor) and value.requires_grad for value in given):
            raise UnsupportedModelError(
                f"{name} has inputs besides its hidden states that gradients go through, which reuse_forward=True would"
                " lose; set reuse_forward=False."
            )
        stored, output = self._states[number], self._states[number + 1]
        assert stored is not None
        assert output is not None
        if number == 0:
            self._check_beginning(name, hidden.detach(), stored)
        else:
            self._check_passed_on(name, hidden)
        self._states[number] = None  # from here on held by the graph alone
        expected = None if name in self._checked and name not in self._hooked else output
        last = number == len(self._states) - 2
        seen = _hand_out(output, hidden, last=last)
        call = LayerCall(name, function, rest, precision, seen, expected, self._checked, self._used)
        known = run_known(call, hidden, stored, [p for p in layer.parameters() if p.requires_grad])
        self._handed = known, known._version
        return (known, *[None] * (self._parts[name] - 1)) if name in self._parts else known

    def _check_beginning(self, name: str, given: Tensor, stored: Tensor) -> None:
        """Compare what the first layer is given in training with what it was given in the selection pass.

        Raises:
            UnsupportedModelError: they differ, so that what comes before the layers would count for nothing.
        """
        error = relative_difference(stored, given, self._used)
        if not error <= max(EXACT, torch.finfo(given.dtype).eps):
            raise UnsupportedModelError(
                f"{name}, the first layer, is given other values in training than in the selection pass (relative "
                f"difference {error:.1e}): a hook on the embeddings, noise or dropout works in training only, which "
                "reuse_forward=True would leave out; remove it, or set reuse_forward=False."
            )

    def _check_passed_on(self, name: str, hidden: Tensor) -> None:
        """Check that a layer, which runs from what is stored, is given what the one before it returned.

        Raises:
            UnsupportedModelError: it is not.
        """
        assert self._handed is not None
        handed, version = self._handed
        self._handed = None
        place = (hidden.data_ptr(), hidden.shape, hidden.stride(), hidden.dtype, hidden._version)
        if place != (handed.data_ptr(), handed.shape, handed.stride(), handed.dtype, version):
            raise UnsupportedModelError(
                f"{name} is given other values in training than the layer before it returns: a hook on that layer "
                "changes them, which reuse_forward=True would leave out; remove it, or set reuse_forward=False."
            )


def _hand_out(output: Tensor, hidden: Tensor, *, last: bool) -> Tensor:
    """Return the values that a layer's caller sees, on the device of `hidden`.

    The next layer takes its own stored input, so of values in host memory only the last layer's are fetched: what would
    read the others finds not-a-number.
    """
    if last or output.device == hidden.device:
        return output.to(hidden.device, non_blocking=True).detach()
    return torch.full((), torch.nan, dtype=output.dtype, device=hidden.device).expand(output.shape)


def _describe(precision: Precision) -> str:
    return f"autocast to {precision.dtype}" if precision.enabled else "no autocast"
