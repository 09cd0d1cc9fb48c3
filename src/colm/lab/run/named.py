"""The meaning of `model:`: a model, or an adapter and its base."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stderr
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig
from transformers import set_seed
from transformers.utils import find_adapter_config_file

from colm.errors import ConfigError, one_line
from colm.lab.run.adapters import adapted_modules, load_adapted, lora_config
from colm.lab.run.arguments import NEEDS_INIT
from colm.lab.run.settings import RunSettings
from colm.lab.run.yaml12 import read_config_file, write_yaml
from colm.models import build_tiny_model, in_dtype, load_config, load_model, load_tokenizer
from colm.step.record import CONFIG_NAME

logger = logging.getLogger(__name__)

ADAPTER_NAME = "adapter_config.json"

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")

NOT_SAVED = {"task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping"}
FREE = NOT_SAVED | {"peft_version", "runtime_config", "target_modules", "exclude_modules", "lora_dropout"}
"""LoRA fields that may differ from the adapter's when training continues, or that are compared in another way."""

NOT_SHAPE = NOT_SAVED | {"peft_version", "runtime_config", "init_lora_weights", *NEEDS_INIT}
"""LoRA fields that do not affect existing weights."""

PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "layer_replication")
"""LoRA fields that select the layers."""


class NamedModel(NamedTuple):
    """A model by its name."""

    base: str  # as `load_model` takes it, or 'tiny'
    adapter: str | None = None  # folder, or hub name
    seed: int = 0  # of a randomly initialized base


def find_model(name: str, seed: int = 0) -> NamedModel:
    """Find out what a name refers to, without loading it.

    Args:
        name: a hub name, a folder of a model, of an adapter or of a run or its checkpoint; a .gguf file, demo or tiny.
        seed: seed of a randomly initialized base.

    Raises:
        ConfigError: the adapter cannot be read, lacks its weights or belongs to another kind of model, its base is
            unknown or missing, or the folder also contains full weights.
    """
    folder = Path(name)
    is_folder = os.path.isdir(name)  # False for what cannot be a name, too
    if name in ("tiny", "demo", "none") or name.endswith(".gguf"):
        return NamedModel(name, None, seed)
    if is_folder:
        found = (folder / ADAPTER_NAME).is_file()
        if found and any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
            raise ConfigError(
                f"The folder {name!r} contains both a full model and an adapter ({ADAPTER_NAME}). Keep one, and move "
                "the other's files to another folder."
            )
    else:
        found = _is_hub_adapter(name)
    if not found:
        return NamedModel(name, None, seed)
    if is_folder and not any((folder / file).is_file() for file in ADAPTER_WEIGHTS):
        raise ConfigError(
            f"The folder {name!r} contains an {ADAPTER_NAME}, but not the adapter's weights "
            f"({' or '.join(ADAPTER_WEIGHTS)})."
        )
    base = read_adapter(name).base_model_name_or_path
    run = folder.parent if folder.name.startswith("checkpoint-") else folder
    if not base and (run / CONFIG_NAME).is_file():
        held = read_config_file(run / CONFIG_NAME)
        under = find_model(str(held.get("model")), int(held.get("seed") or 0))
        _check_base(name, under.base)
        return under._replace(adapter=name)
    if not base:
        raise ConfigError(
            f"The adapter in {name!r} does not say which model it was trained on; set base_model_name_or_path in its "
            f"{ADAPTER_NAME} to the model's name or folder."
        )
    _check_base(name, str(base))
    return NamedModel(str(base), name, seed)


def _check_base(adapter: str, base: str) -> None:
    """Refuse an adapter whose base is missing, or is itself an adapter."""
    if base in ("tiny", "demo") or (base.endswith(".gguf") and os.path.isfile(base)):
        return
    try:
        load_config(base)
    except ConfigError as error:
        raise ConfigError(
            f"The adapter in {adapter!r} was trained on {base!r}, which cannot be loaded. Restore it, or set "
            f"base_model_name_or_path in the adapter's {ADAPTER_NAME} to where it is now. {error}"
        ) from error


def _is_hub_adapter(name: str) -> bool:
    try:
        return find_adapter_config_file(name) is not None
    except Exception:  # no such name, or no connection: loading the model reports the error
        return False


def read_adapter(name: str) -> Any:
    """Return PEFT's configuration of an adapter.

    Raises:
        ConfigError: it cannot be read, or the adapter is for another kind of model.
    """
    try:
        adapter = PeftConfig.from_pretrained(name)
    except Exception as error:  # the file may contain anything
        raise ConfigError(f"The {ADAPTER_NAME} of {name!r} cannot be read ({one_line(error)}).") from error
    if adapter.peft_type is None:
        raise ConfigError(f"The {ADAPTER_NAME} of {name!r} does not say which kind of adapter it is (peft_type).")
    if adapter.task_type not in (None, "CAUSAL_LM"):
        task = getattr(adapter.task_type, "value", adapter.task_type)
        raise ConfigError(f"The adapter in {name!r} is for {task}, not for a causal language model (CAUSAL_LM).")
    return adapter


def check_adapter(settings: RunSettings) -> NamedModel:
    """Return the run's model; an adapter must match the settings of `lora`.

    Raises:
        ConfigError: as `find_model`; or `lora` is null, the adapter is not a LoRA, or it has other settings.
    """
    named, lora = find_model(settings.model, settings.seed), settings.lora
    if named.adapter is None:
        return named
    adapter = read_adapter(named.adapter)
    kind = getattr(adapter.peft_type, "value", adapter.peft_type)
    if kind != "LORA":
        raise ConfigError(
            f"The model {settings.model!r} is an adapter of type {kind}, which colm cannot train further; merge "
            "it into its base (merge_and_unload of PEFT), save that, and name its folder as the model."
        )
    if lora is None:
        raise ConfigError(
            f"The model {settings.model!r} is a LoRA adapter on {named.base!r}, but lora is null. To train the "
            f"adapter further, set lora to its settings, {_flow(adapter_settings(adapter, 'r') | _places(adapter))}. "
            "To train all weights, merge it into its base first (merge_and_unload of PEFT) and name that folder."
        )
    wanted = lora_config(lora)
    differing = [
        key
        for key in lora
        if key not in FREE and _comparable(getattr(wanted, key)) != _comparable(getattr(adapter, key))
    ]
    if differing:
        raise ConfigError(
            f"The model {settings.model!r} is a LoRA adapter with {_flow(adapter_settings(adapter, *differing))}, but "
            f"lora says {_flow({key: lora[key] for key in differing})}. Use the adapter's settings to train it "
            "further, or merge it into its base and name that folder to train a new one."
        )
    return named


def load_named(settings: RunSettings, named: NamedModel, tokenizer: Any) -> Any:
    """Return the model to train: bare, or with its adapter, whose weights are then trained.

    Raises:
        ConfigError: it cannot be loaded, or the adapter is on different layers than `lora` selects.
    """
    base = load_base(named, settings.dtype, tokenizer)
    set_attention(base, settings)
    if named.adapter is None or settings.lora is None:
        return base
    adapter = read_adapter(named.adapter)
    if "lora_dropout" in settings.lora:
        adapter.lora_dropout = settings.lora["lora_dropout"]
    wanted = adapted_modules(base.config, settings.lora)
    model = load_adapted(base, named.adapter, config=adapter)
    held = adapted_modules(base.config, adapter_settings(adapter))
    if wanted != held:
        raise ConfigError(
            f"The model {settings.model!r} is an adapter on {len(held)} layers, but the lora settings select "
            f"{len(wanted)}. To train it further, set in lora {_flow(_places(adapter))}, and no other of "
            f"{', '.join(PLACES)}."
        )
    set_seed(settings.seed)
    logger.info("Training continues from the adapter %s on %s.", named.adapter, named.base)
    return model


def set_attention(model: Any, settings: RunSettings) -> None:
    """Let a model compute attention as the settings say.

    Raises:
        ConfigError: the model, this machine or the number format does not allow it.
    """
    name = settings.attention
    if name == "auto":
        return
    check_half(name, model.dtype)
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        raise ConfigError(f"attention={name!r} cannot be used here ({one_line(error)}). Set it to auto.") from error
    if model.config._attn_implementation != name:  # transformers only warns
        raise ConfigError(f"attention={name!r} cannot be set for a {type(model).__name__}. Set it to auto.")


def check_half(attention: str, dtype: torch.dtype) -> None:
    """Check that the weights of a model with FlashAttention are in a half precision.

    Raises:
        ConfigError: they are in float32.
    """
    if "flash" in attention and dtype.itemsize == 4:  # a selection also runs outside the Trainer's autocast
        raise ConfigError(
            f"attention={attention!r} needs bfloat16 or float16, but the weights are in float32; set dtype to bfloat16."
        )


def load_base(named: NamedModel, dtype: str, tokenizer: Any) -> Any:
    """Return the model without its adapter. Raises ConfigError."""
    if named.base != "tiny":
        # transformers shows a bar for each GGUF file that it converts, which no setting hides.
        converted = named.base == "demo" or named.base.endswith(".gguf")
        with redirect_stderr(io.StringIO()) if converted else nullcontext():
            return load_model(named.base, dtype=dtype)
    set_seed(named.seed)  # an adapter's random base is not saved but initialized again
    return in_dtype(build_tiny_model(tokenizer), dtype)


def load_named_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model or adapter, or of the adapter's base if it has none. Raises ConfigError."""
    named = find_model(name)
    own = named.adapter is None or any((Path(named.adapter) / file).is_file() for file in TOKENIZERS)
    return load_tokenizer(name if own else named.base)


def adapter_settings(adapter: Any, *names: str) -> dict[str, Any]:
    """Return fields of an adapter's configuration as in the section `lora`; without `names`, all that shape it."""
    if names:
        return {name: _comparable(getattr(adapter, name)) for name in names}
    default = LoraConfig()
    known = {field.name for field in fields(LoraConfig) if field.init} - NOT_SHAPE
    return {
        name: _comparable(value)
        for name in sorted(known)
        if (value := getattr(adapter, name)) != getattr(default, name)
    }


def _places(adapter: Any) -> dict[str, Any]:
    """Return the settings that select the adapter's layers."""
    return {key: value for key, value in adapter_settings(adapter, *PLACES).items() if value is not None}


def _comparable(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _comparable(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {key: _comparable(part) for key, part in value.items()}
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else value


def _flow(value: Any) -> str:
    """Return settings in one line of YAML."""
    return " ".join(write_yaml(value, flow=True).split())
