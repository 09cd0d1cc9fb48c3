"""What `model:` names: a model, or an adapter and the base that it was trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig, PeftConfig
from transformers import set_seed
from transformers.utils import find_adapter_config_file

from colm.errors import ConfigError, one_line
from colm.lab.run.adapters import adapted_modules, load_adapted, lora_config
from colm.lab.run.settings import RunSettings
from colm.lab.run.training import NEEDS_INIT
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
"""Fields of a LoRA that one which goes on need not have as its adapter, or that are compared in another way."""

NOT_SHAPE = NOT_SAVED | {"peft_version", "runtime_config", "init_lora_weights", *NEEDS_INIT}
"""Fields of a LoRA that its weights do not depend on once they are there."""

PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "layer_replication")
"""Fields of a LoRA that say which layers it is on."""


class NamedModel(NamedTuple):
    """A model by its name."""

    base: str  # as `load_model` takes it, or 'tiny'
    adapter: str | None = None  # folder, or hub name
    seed: int = 0  # that a random base was drawn with


def find_model(name: str, seed: int = 0) -> NamedModel:
    """Return what a name stands for, without loading it.

    Args:
        name: a hub name, a folder of a model, of an adapter or of a run or its checkpoint; a .gguf file, demo or tiny.
        seed: of a random base.

    Raises:
        ConfigError: the adapter cannot be read, lacks its weights or is of another kind of model, its base is not known
            or not there, or the folder holds whole weights besides.
    """
    folder = Path(name)
    is_folder = os.path.isdir(name)  # False for what cannot be a name, too
    if name in ("tiny", "demo", "none") or name.endswith(".gguf"):
        return NamedModel(name, None, seed)
    if is_folder:
        found = (folder / ADAPTER_NAME).is_file()
        if found and any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
            raise ConfigError(
                f"The folder {name!r} holds a whole model and an adapter ({ADAPTER_NAME}), of which only one can be "
                "meant; move the other's files to another folder."
            )
    else:
        found = _is_hub_adapter(name)
    if not found:
        return NamedModel(name, None, seed)
    if is_folder and not any((folder / file).is_file() for file in ADAPTER_WEIGHTS):
        raise ConfigError(
            f"The folder {name!r} holds an {ADAPTER_NAME}, but not the adapter's weights "
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
    """Refuse an adapter whose base has gone, or is an adapter itself."""
    if base in ("tiny", "demo") or (base.endswith(".gguf") and os.path.isfile(base)):
        return
    try:
        load_config(base)
    except ConfigError as error:
        raise ConfigError(
            f"The adapter in {adapter!r} was trained on {base!r}, which cannot be loaded. Put it back, or set "
            f"base_model_name_or_path in the adapter's {ADAPTER_NAME} to where it is now. {error}"
        ) from error


def _is_hub_adapter(name: str) -> bool:
    try:
        return find_adapter_config_file(name) is not None
    except Exception:  # no such name, or no way to ask: loading the model says what is wrong
        return False


def read_adapter(name: str) -> Any:
    """Return PEFT's configuration of an adapter.

    Raises:
        ConfigError: it cannot be read, or is of an adapter on another kind of model.
    """
    try:
        adapter = PeftConfig.from_pretrained(name)
    except Exception as error:  # a file of any content
        raise ConfigError(f"The {ADAPTER_NAME} of {name!r} cannot be read ({one_line(error)}).") from error
    if adapter.peft_type is None:
        raise ConfigError(f"The {ADAPTER_NAME} of {name!r} does not say which kind of adapter it is (peft_type).")
    if adapter.task_type not in (None, "CAUSAL_LM"):
        task = getattr(adapter.task_type, "value", adapter.task_type)
        raise ConfigError(f"The adapter in {name!r} is for {task}, not on a causal language model (CAUSAL_LM).")
    return adapter


def check_adapter(settings: RunSettings) -> NamedModel:
    """Return what the run's model is; an adapter must be one that the settings of `lora` go on with.

    Raises:
        ConfigError: as `find_model`, or full fine-tuning of an adapter, no LoRA, or one with other settings.
    """
    named, lora = find_model(settings.model, settings.seed), settings.lora
    if named.adapter is None:
        return named
    adapter = read_adapter(named.adapter)
    kind = getattr(adapter.peft_type, "value", adapter.peft_type)
    if kind != "LORA":
        raise ConfigError(
            f"The model {settings.model!r} is an adapter of the kind {kind}, which training cannot go on with; merge "
            "it into its base (merge_and_unload of PEFT), save that, and name its folder as the model."
        )
    if lora is None:
        raise ConfigError(
            f"The model {settings.model!r} is a LoRA adapter on {named.base!r}, but lora is null: to go on training "
            f"the adapter set lora to its settings, {_flow(adapter_settings(adapter, 'r') | _places(adapter))}; to "
            "train all weights merge it into its base first (merge_and_unload of PEFT) and name that folder."
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
            f"lora says {_flow({key: lora[key] for key in differing})}. Write the adapter's settings to go on training "
            "it, or merge it into its base and name that folder for a new one."
        )
    return named


def load_named(settings: RunSettings, named: NamedModel, tokenizer: Any) -> Any:
    """Return the model that is trained on from: bare, or with its adapter, whose weights are trained then.

    Raises:
        ConfigError: it cannot be loaded, or the adapter is on other layers than `lora` says.
    """
    base = load_base(named, settings.dtype, tokenizer)
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
            f"The model {settings.model!r} is an adapter on {len(held)} layers, but by the settings of lora it would "
            f"be on {len(wanted)}. To go on training it have in lora {_flow(_places(adapter))}, and no other of "
            f"{', '.join(PLACES)}."
        )
    set_seed(settings.seed)
    logger.info("Training goes on from the adapter %s on %s.", named.adapter, named.base)
    return model


def load_base(named: NamedModel, dtype: str, tokenizer: Any) -> Any:
    """Return the model without its adapter. Raises ConfigError."""
    if named.base != "tiny":
        return load_model(named.base, dtype=dtype)
    set_seed(named.seed)  # an adapter's random base is not saved, but drawn again
    return in_dtype(build_tiny_model(tokenizer), dtype)


def load_named_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model or an adapter; of an adapter that has none, its base's. Raises ConfigError."""
    named = find_model(name)
    own = named.adapter is None or any((Path(named.adapter) / file).is_file() for file in TOKENIZERS)
    return load_tokenizer(name if own else named.base)


def adapter_settings(adapter: Any, *names: str) -> dict[str, Any]:
    """Return fields of an adapter's configuration as the section `lora` has them; all that shape it without `names`."""
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
    """Return the settings that put a LoRA on the layers that an adapter is on."""
    return {key: value for key, value in adapter_settings(adapter, *PLACES).items() if value is not None}


def _comparable(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _comparable(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {key: _comparable(part) for key, part in value.items()}
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else value


def _flow(value: Any) -> str:
    """Return settings as they can be written in one line."""
    return " ".join(write_yaml(value, flow=True).split())
