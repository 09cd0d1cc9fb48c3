"""Reject settings and models that cannot be combined with `reuse_forward`, before training starts."""

from __future__ import annotations

from typing import Any

from torch import nn

from colm.errors import ConfigError, UnsupportedModelError
from colm.features.site import is_compiled, unwrap
from colm.step.sharding import is_sharded, is_split_by_zero

STRETCHED = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest row of a micro-batch: a row's states then depend on its micro-batch."""

_OFF = "or set reuse_forward=False."


def checkpoint_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers that transformers can checkpoint, with their names, in model order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]


def check_reuse(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the model's layers after checking that their selection forward can be reused in any training loop.

    Raises:
        ConfigError: dropout is on, or a setting makes a row's states depend on its micro-batch.
        UnsupportedModelError: ZeRO-3 splits the model, it is compiled, or has no layers with a checkpoint function.
    """
    inner = unwrap(model)
    if is_split_by_zero(model):
        raise UnsupportedModelError(
            "reuse_forward=True does not work with DeepSpeed's ZeRO-3, which changes what each layer is given; use "
            f"ZeRO-2 or FSDP2, {_OFF}"
        )
    if any(is_compiled(module) for module in model.modules()):
        raise UnsupportedModelError(
            f"reuse_forward=True replaces the layers' checkpoint function, which torch.compile has already inlined; "
            f"do not compile the model, {_OFF}"
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
            "output_router_logits=True reads values inside the layers, which reuse_forward=True does not run in the "
            f"training forward; set model.config.output_router_logits=False, {_OFF}"
        )
    for rope in _rope_types(config):
        if rope in STRETCHED:
            raise ConfigError(
                f"The model's rope_type={rope!r} depends on the longest row of a micro-batch, so a row's hidden states "
                f"differ between selection pass and training; choose another rope_type, {_OFF}"
            )
    check_dropout(inner)
    return layers


def check_dropout(model: nn.Module) -> None:
    """Reject a model with dropout, since its second run would differ from the first.

    Raises:
        ConfigError: names the first module with a rate above 0.
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
        f"reuse_forward=True reuses a forward without dropout, but {name} has {key}={value}; set the model's dropout "
        f"rates (with LoRA, also lora_dropout) to 0, {_OFF}"
    )


def check_checkpointing(layers: list[tuple[str, nn.Module]]) -> None:
    """Reject a model unless all its layers are checkpointed, and FSDP2 gathers their weights outside the checkpoints.

    Raises:
        ConfigError: gives the number of checkpointed layers.
        UnsupportedModelError: FSDP2 would gather weights within a checkpoint, so their gradients would be lost.
    """
    if checkpoints_surround_hooks() and any(is_sharded(layer) for _, layer in layers):
        raise UnsupportedModelError(
            "reuse_forward=True does not work with FSDP2 and this release of transformers, whose checkpoints run its "
            f"hooks again in the backward; upgrade transformers to 5.23 or newer, {_OFF}"
        )
    enabled = sum(bool(getattr(layer, "gradient_checkpointing", False)) for _, layer in layers)
    if enabled < len(layers):
        raise ConfigError(
            f"reuse_forward=True requires gradient checkpointing, but {enabled} of {len(layers)} layers are "
            "checkpointed; set gradient_checkpointing=True for all layers (in your own loop, call "
            f"model.gradient_checkpointing_enable()), {_OFF}"
        )


def checkpoints_surround_hooks() -> bool:
    """Return whether a checkpoint contains its layer's hooks: it wraps the call, up to 5.22, and not the forward."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return "__call__" in vars(GradientCheckpointingLayer)


def _rope_types(config: Any) -> list[str]:
    """Return the rotary embedding types in a config, over all kinds of layers."""
    if config is None:
        return []
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    parts = [settings, *settings.values()] if isinstance(settings, dict) else []
    return [part["rope_type"] for part in parts if isinstance(part, dict) and "rope_type" in part]
