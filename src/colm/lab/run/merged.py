"""A LoRA adapter and its base as one model."""

from __future__ import annotations

from typing import Any

from colm.errors import ConfigError, one_line
from colm.lab.run.adapters import load_adapted
from colm.lab.run.named import find_model, load_base, load_named_tokenizer
from colm.lab.run.target import Target
from colm.models import load_config


def merge(target: Target) -> tuple[Any, Any]:
    """Return the model of a run or an adapter with the adapter merged into its weights, and its tokenizer.

    Raises:
        ConfigError: there is no adapter, it is of a kind that cannot be merged, or its base is quantized.
    """
    named = find_model(target.model)
    if named.adapter is None:
        raise ConfigError(f"{target.name} has no adapter to merge: all of its weights are there already.")
    quantized = None if named.base == "tiny" else getattr(load_config(named.base), "quantization_config", None)
    if quantized and named.base != "demo" and not named.base.endswith(".gguf"):  # these are dequantized when loaded
        raise ConfigError(
            f"The base {named.base!r} of {target.name} is quantized, and merging would round the adapter away. Set "
            "base_model_name_or_path in a copy of the adapter to the model that it was quantized from, and merge that."
        )
    tokenizer = load_named_tokenizer(target.model)
    model = load_adapted(load_base(named, target.settings.dtype, tokenizer), named.adapter)
    try:
        return model.merge_and_unload(safe_merge=True), tokenizer
    except (AttributeError, NotImplementedError, ValueError) as error:  # kinds without weights to add, broken weights
        raise ConfigError(f"The adapter of {target.name} cannot be merged ({one_line(error)}).") from error
