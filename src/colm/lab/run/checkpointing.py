"""Checkpointed layers, as the Trainer turns them on when it begins to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def read_checkpointing(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of checkpointing in all of a run's training arguments; None without it."""
    found = None
    for name in ("gradient_checkpointing", "activation_checkpointing"):  # the older transformers know only the first
        if arguments.get(name):
            found = dict(arguments[f"{name}_kwargs"] or {})
    return found


def enable_checkpointing(model: Any, options: Mapping[str, Any]) -> None:
    """Checkpoint a model's layers, with options of the training arguments."""
    rest = dict(options)
    more = {name: rest.pop(name) for name in ("every_n_layers", "offload") if name in rest}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=rest or None, **more)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=rest or None, **more)
