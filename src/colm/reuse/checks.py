"""What training from the selection pass's forward cannot be combined with, refused before training."""

from __future__ import annotations

from typing import Any

from torch import nn

from colm.errors import ConfigError, UnsupportedModelError
from colm.features.site import unwrap
from colm.step.sharding import is_sharded

STRETCHED = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest row of a micro-batch, so that a row has other states in another one."""

_OFF = "or set reuse_forward=False."


def checkpoint_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers that transformers can checkpoint, with their names, in the order of the model."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]


def check_reuse(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the model's layers, if their forward can be trained from whatever the loop does.

    Raises:
        ConfigError: dropout, or a setting that makes a row's states depend on its micro-batch.
        UnsupportedModelError: the model is sharded or compiled, or has no layers with a checkpoint function.
    """
    inner = unwrap(model)
    if is_sharded(model):
        raise UnsupportedModelError(
            "reuse_forward=True has not been run with weights sharded by fully_shard, which are gathered at a layer's "
            f"forward; use DistributedDataParallel, {_OFF}"
        )
    if inner is not model and any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise UnsupportedModelError(
            f"reuse_forward=True exchanges the layers' checkpoint function, which torch.compile has built in; do not "
            f"compile the model, {_OFF}"
        )
    layers = checkpoint_layers(inner)
    if not layers:
        raise UnsupportedModelError(
            "reuse_forward=True needs layers that are transformers' GradientCheckpointingLayer; "
            f"{type(inner).__name__} has none. Set reuse_forward=False."
        )
    config: Any = getattr(inner, "config", None)
    if getattr(config, "output_router_logits", False):
        raise ConfigError(
            "output_router_logits=True reads from inside of layers, which reuse_forward=True does not run in the "
            f"forward; set model.config.output_router_logits=False, {_OFF}"
        )
    for rope in _rope_types(config):
        if rope in STRETCHED:
            raise ConfigError(
                f"The model's rope_type={rope!r} depends on the longest row of a micro-batch, so a row's hidden states "
                f"in the selection pass are not those of training; choose another rope_type, {_OFF}"
            )
    check_dropout(inner)
    return layers


def check_dropout(model: nn.Module) -> None:
    """Refuse a model that drops out in training, since its second run would not be its first.

    Raises:
        ConfigError: the first module with a rate above 0.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            _refuse_rate(name, "p", module.p)
        for key, value in vars(module).items():
            noisy = "drop" in key.lower() or "jitter" in key.lower()
            if noisy and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                _refuse_rate(name, key, value)


def _refuse_rate(name: str, key: str, value: float) -> None:
    raise ConfigError(
        f"reuse_forward=True trains from a forward without dropout, but {name} has {key}={value}; set the model's "
        f"dropout rates (with LoRA also lora_dropout) to 0, {_OFF}"
    )


def check_checkpointing(layers: list[tuple[str, nn.Module]]) -> None:
    """Refuse a model of which some layer is not checkpointed.

    Raises:
        ConfigError: how many layers are.
    """
    enabled = sum(bool(getattr(layer, "gradient_checkpointing", False)) for _, layer in layers)
    if enabled < len(layers):
        raise ConfigError(
            f"reuse_forward=True saves a forward of gradient checkpointing, but {enabled} of {len(layers)} layers are "
            "checkpointed; set gradient_checkpointing=True for all of them (in your own loop "
            f"model.gradient_checkpointing_enable()), {_OFF}"
        )


def _rope_types(config: Any) -> list[str]:
    """Return the types of rotary embedding that a config names, of all kinds of layers."""
    if config is None:
        return []
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    parts = [settings, *settings.values()] if isinstance(settings, dict) else []
    return [part["rope_type"] for part in parts if isinstance(part, dict) and "rope_type" in part]
