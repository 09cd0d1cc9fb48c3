"""Parse and format amounts of memory, and compute the size of optimizer state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from colm.errors import ConfigError, suggest

if TYPE_CHECKING:
    from torch import Tensor

GIB = 2**30
SMALLEST = 10**6
"""Minimum bytes of a number without a unit: 24 more likely means gigabytes than bytes."""

_UNITS = {"b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power}


class _Optimizer(NamedTuple):
    copies: float  # of each trained weight, in the weight's dtype, kept from step to step
    extra: float  # additional bytes per trained weight, regardless of dtype
    within: float  # temporary copies during the optimizer step


_ADAM, _ADAM_8BIT = _Optimizer(2, 0, 0), _Optimizer(0, 2 * (1 + 4 / 256), 0)  # one float32 scale per block of 256
OPTIMIZERS = {
    "adamw_torch_fused": _ADAM,
    "adamw_torch": _Optimizer(2, 0, 1),  # the square roots of all weights at once
    "stable_adamw": _Optimizer(2, 0, 1),
    "adamw_bnb_8bit": _ADAM_8BIT,
    "adamw_8bit": _ADAM_8BIT,
    "paged_adamw_8bit": _ADAM_8BIT,
    "paged_adamw_32bit": _Optimizer(0, 8, 0),
    "lion_8bit": _Optimizer(0, 1 + 4 / 256, 0),
    "lion_32bit": _Optimizer(0, 4, 0),
    "sgd": _Optimizer(0, 0, 0),
    "adagrad": _Optimizer(1, 0, 1),
    "rmsprop": _Optimizer(1, 0, 1),
    "adafactor": _Optimizer(0, 0, 1),  # plus one number per row and column, see below
}
"""State kept by the optimizers of training.optim; paged optimizers as if nothing were paged out."""


def parse_memory(text: str) -> int:
    """Return the bytes that `text` names: ``24GiB``, ``24GB``, ``512 MiB``, or ``80e9`` bytes without a unit.

    Raises:
        ConfigError: `text` is not an amount of memory, or is too small a number without a unit.

    >>> parse_memory("24GiB"), parse_memory("24 gb"), parse_memory("80e9")
    (25769803776, 24000000000, 80000000000)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:e\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or (found[2] and found[2] not in _UNITS):
        raise ConfigError(
            f"--gpu-memory={text!r} is not an amount of memory; use a number with the units MiB, GiB, TiB (powers "
            "of 1024) or MB, GB, TB (of 1000), such as 24GiB, or a number of bytes, such as 80e9."
        )
    amount = float(found[1]) * _UNITS.get(found[2], 1)
    if not found[2] and amount < SMALLEST:
        raise ConfigError(
            f"--gpu-memory={text!r} has no unit and is too few bytes for a GPU; use {text.strip()}GiB, or at least "
            f"{SMALLEST:,} bytes."
        )
    if not 0 < amount < float("inf"):
        raise ConfigError(f"--gpu-memory={text!r} must be more than 0 and finite; for example 24GiB.")
    return int(amount)


def show_memory(size: float) -> str:
    """Write bytes in GiB, with more digits for small amounts.

    >>> show_memory(3 * 2**29), show_memory(2**20)
    ('1.50', '0.0010')
    """
    return f"{size / GIB:.2f}" if size >= GIB / 10 or size == 0 else f"{size / GIB:.4f}"


def optimizer_bytes(name: str, trained: Sequence[Tensor]) -> tuple[int, int]:
    """Return the bytes that an optimizer keeps between steps, and the temporary bytes of its step.

    Args:
        name: value of training.optim.
        trained: the trained weights, fake or real.

    Raises:
        ConfigError: the optimizer is not in `OPTIMIZERS`.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"training.optim={name!r} cannot be planned: the size of its state is unknown.{suggest(name, OPTIMIZERS)} "
            f"Known: {', '.join(OPTIMIZERS)}. Plan with the most similar one: colm plan ... training.optim=adamw_torch"
        )
    copies, extra, within = OPTIMIZERS[name]
    weights = sum(weight.numel() * weight.element_size() for weight in trained)
    kept = copies * weights + extra * sum(weight.numel() for weight in trained)
    if name == "adafactor":
        kept += sum(4 * (sum(weight.shape) if weight.dim() == 2 else weight.numel()) for weight in trained)
    return int(kept), int(within * weights)
