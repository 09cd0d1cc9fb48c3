"""Add adapters to a model: new ones from LoRA settings, or saved ones from a folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args

import torch
from transformers import AutoModelForCausalLM

from colm.errors import ConfigError, one_line, suggest
from colm.hints import hints_of


def add_lora(model: Any, lora: Mapping[str, Any]) -> Any:
    """Add LoRA to a causal language model.

    Args:
        model: the bare model.
        lora: fields of `peft.LoraConfig`.

    Raises:
        ConfigError: the settings do not fit the model.
    """
    from peft import get_peft_model

    _check_names(model, lora)
    try:
        return get_peft_model(model, lora_config(lora))
    except Exception as error:  # each kind of adapter raises its own
        raise ConfigError(f"The lora settings do not fit the model ({one_line(error)}).") from error


def _check_names(model: Any, lora: Mapping[str, Any]) -> None:
    """Refuse names that the model lacks; PEFT silently ignores them if other names match.

    Raises:
        ConfigError: gives the first such name.
    """
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    for setting in ("target_modules", "modules_to_save", "target_parameters"):
        named = lora.get(setting)
        known = parameters if setting == "target_parameters" else modules
        for name in named if isinstance(named, list) else ():
            if not any(held == name or held.endswith(f".{name}") for held in known):
                ends = sorted({held.rpartition(".")[2] for held in known})
                raise ConfigError(
                    f"The lora settings do not fit the model: lora.{setting} names {name!r}, which the model does not "
                    f"have.{suggest(name, ends)}"
                )


def lora_config(lora: Mapping[str, Any]) -> Any:
    """Make PEFT's configuration from the fields in a file; nested configurations are mappings there.

    Raises:
        ValueError, TypeError: PEFT refuses the values.
    """
    from peft import LoraConfig

    made = {name: _nested_config(hints_of(LoraConfig)[name], value) for name, value in lora.items()}
    return LoraConfig(**{"task_type": "CAUSAL_LM", **made})


def _nested_config(hint: Any, value: Any) -> Any:
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]
    return kinds[0](**value) if kinds and isinstance(value, Mapping) else value


def load_adapted(base: Any, folder: str, *, config: Any = None) -> Any:
    """Return `base` with the adapter in `folder`.

    Args:
        base: the bare model.
        folder: the adapter's folder, or its hub name.
        config: configuration of an adapter to train; None for inference only.

    Raises:
        ConfigError: the adapter cannot be read, lacks weights, or does not fit the model.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(base, folder, config=config, is_trainable=config is not None)
    except Exception as error:  # files, configurations and weights each raise their own
        raise ConfigError(f"The adapter in {folder} could not be loaded ({one_line(error)}).") from error


def adapted_modules(config: Any, lora: Mapping[str, Any]) -> set[str]:
    """Return the names of the modules that LoRA settings adapt, without loading weights.

    Raises:
        ConfigError: the settings do not fit the model.
    """
    config = copy.deepcopy(config)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model = add_lora(AutoModelForCausalLM.from_config(config), lora)
    return {name.rpartition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
