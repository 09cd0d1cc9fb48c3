"""Find the last value projection of a causal language model. Only this module decides which one it is.

Module names give the candidates; a forward pass of one token decides. It shows which candidates run,
in which order, and which outputs of a fused projection are values. With one token, attention has one
key, so its softmax is 1 for any query and key, and only the values reach the logits. This holds for
every layout (blocks, interleaved by head, grouped or multi-query, latent attention), so no table of
layouts is needed.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

from colm.errors import ConfigError, UnsupportedModelError, suggest
from colm.features.linear_maps import (
    base_map,
    is_adapted,
    is_linear,
    is_trained,
    map_sizes,
    map_that_runs,
    trained_map,
)
from colm.features.one_token import find_head, observe_calls, one_token_influence, require_finite_logits
from colm.features.site import ValueSite, unwrap
from colm.features.value_rows import find_value_rows

logger = logging.getLogger(__name__)

SEPARATE = ("v_proj", "value_proj", "v_lin", "value", "wv", "Wv", "project_v", "v_proj_current")
"""Names of modules that compute only the values."""

FUSED = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "qkv", "kv_b_proj", "kv_proj", "W_pack", "att_proj")
"""Names of modules that compute the values and other outputs."""

NO_SOFTMAX = ("linear", "mamba", "conv", "recurrent", "mlp")
"""Substrings of config layer types, and of module names, that do not denote softmax attention."""

MIX_ROWS = ("LILY",)
"""Adapter types whose output for a row depends on the other rows in its batch."""

NO_ATTENTION = ("feed_forward", "mlp", "ffn", "experts", "compressor", "indexer")
"""Path components of modules that are not part of attention."""


def locate_value_site(model: nn.Module, value_module: str | None = None) -> ValueSite:
    """Find the last value projection that runs, or use the module that the user names.

    With LoRA, the projection's B is used. If no part of the projection is trained, the nearest trained linear
    map of the same layer is used, and the log says so. If the adapter has no linear map of its own (OFT, AdaLoRA,
    IA3, ...), the gradient of the projection itself is used, although it is not trained.

    Args:
        model: a Hugging Face causal language model, bare, with PEFT adapters, in DDP or compiled.
        value_module: dotted path of a Linear, or a suffix of the path that is unique.

    Raises:
        ConfigError: `value_module` matches no module, several modules, or one that is not linear.
        UnsupportedModelError: no value projection was found (the message lists the modules searched); an adapter
            learns a prompt or bypasses the projection; a `device_map` has spread the model over several GPUs; or the
            model's logits are not finite.

    Source: CoLM, section 4.3: the last layer's V projection has the largest gradient norms.
    """
    inner = unwrap(model)
    _refuse_several_gpus(inner)
    _refuse_adapters(inner)
    modules = dict(inner.named_modules())
    if value_module is not None:
        name = _resolve(value_module, modules)
        module = trained_map(modules[name])
        return _make_site(inner, name, module, None, modules)
    name, influence = _last_that_matters(inner, modules)
    module = trained_map(modules[name])
    if not is_trained(module):
        nearest = _nearest_trained(name, modules)
        if nearest is not None:
            logger.warning(
                "%s is not trained; the features are gradients of %s, the nearest trained map.", name, nearest
            )
            return _make_site(inner, nearest, trained_map(modules[nearest]), None, modules)
        if is_adapted(modules[name]):
            logger.info(
                "The %s has no linear map of its own; the gradient of %s is the feature.", _adapters(inner), name
            )
            return _make_site(inner, name, module, _value_rows(inner, name, influence), modules)
        logger.warning("%s is not trained, nor is any other map of its layer; its gradient is the feature.", name)
    return _make_site(inner, name, module, _value_rows(inner, name, influence), modules)


def _value_rows(model: nn.Module, name: str, influence: Tensor) -> Tensor | None:
    return find_value_rows(model, name, influence) if _leaf(name) in FUSED else None


def _adapters(model: Any) -> str:
    """Return the model's adapter types as text for a message, such as ``OFT adapter``; empty without adapters."""
    kinds = sorted({str(getattr(config.peft_type, "value", config.peft_type)) for config in _peft_configs(model)})
    return f"{' and '.join(kinds)} adapter" if kinds else ""


def _peft_configs(model: Any) -> list[Any]:
    held = getattr(model, "peft_config", None)
    return list(held.values()) if isinstance(held, dict) else []


def _refuse_several_gpus(model: Any) -> None:
    """Reject a model whose layers a `device_map` has spread: the pass follows rows on one device."""
    parts = getattr(model, "hf_device_map", None) or {}
    places = dict.fromkeys(str(place) for place in parts.values() if str(place) not in ("cpu", "disk"))
    if len(places) > 1:
        raise UnsupportedModelError(
            f"device_map has spread the model over devices {', '.join(places)}, and a selection pass needs it on one. "
            "Load it without device_map, and start one process per GPU, with FSDP2 or ZeRO if it does not fit on one; "
            "or set features='none'."
        )


def _refuse_adapters(model: nn.Module) -> None:
    """Reject adapters that mix rows, or learn a prompt and so lengthen rows; prefix tuning is fine."""
    for config in _peft_configs(model):
        if getattr(config.peft_type, "value", "") in MIX_ROWS:
            raise UnsupportedModelError(
                f"The {_adapters(model)} averages over the rows of a batch, so per-example gradients do not exist. "
                "Use LoRA."
            )
        if getattr(config, "is_prompt_learning", False) and getattr(config.peft_type, "value", "") != "PREFIX_TUNING":
            raise UnsupportedModelError(
                f"The {_adapters(model)} learns a prompt, which makes every row longer than its labels. Use LoRA or "
                "another weight adapter."
            )


def _last_that_matters(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, Tensor]:
    """Return the last candidate that runs and affects the logits, with the influence of each of its outputs."""
    proposed = {name: map_that_runs(module) for name, module in modules.items() if _is_proposed(name, module, model)}
    if not proposed:
        raise UnsupportedModelError(_not_found(model, modules))
    try:
        calls = [name for name, _ in observe_calls(model, proposed)]
    except Exception as error:  # modeling code can raise anything
        with_adapter = f" with its {_adapters(model)}" if _adapters(model) else ""
        raise UnsupportedModelError(
            f"The model{with_adapter} did not run on one token ({type(error).__name__}: {error}), so the last value "
            "projection cannot be found. Name a Linear with value_module."
        ) from error
    reason = ""
    for name in dict.fromkeys(reversed(calls)):
        try:
            influence = one_token_influence(model, trained_map(modules[name]))
        except RuntimeError as error:  # not used to compute the logits, or modified in place
            reason = f" ({name}: {error})"
            continue
        if influence.max() > 0:
            return name, influence
    require_finite_logits(model)
    raise UnsupportedModelError(_not_found(model, modules) + reason)


def _is_proposed(name: str, module: nn.Module, model: Any) -> bool:
    if _leaf(name) not in SEPARATE + FUSED or not is_linear(base_map(module)):
        return False
    path = name.split(".")
    if any(part in NO_ATTENTION for part in path) or any(word in path[-2] for word in NO_SOFTMAX if len(path) > 1):
        return False
    return not any(word in _layer_type(path, model) for word in NO_SOFTMAX)


def _layer_type(path: list[str], model: Any) -> str:
    """Return what the config calls the layer on this path, or an empty string."""
    config = getattr(model, "config", None)
    if config is None:
        return ""
    types = getattr(config.get_text_config(), "layer_types", None)
    number = next((int(part) for part in path if part.isdigit()), None)
    return str(types[number]) if types and number is not None and number < len(types) else ""


def _make_site(
    model: nn.Module, name: str, module: nn.Module, rows: Tensor | None, modules: dict[str, nn.Module]
) -> ValueSite:
    out_features, in_features = map_sizes(module)
    if rows is not None:  # on the device of the logits; the weight may be offloaded
        out_features = len(rows)
    layers = _layers_from(name, modules)
    layers_after = len(layers) - 1
    sharing = _that_share(module, model)
    flat = False
    try:
        shapes = [shape for _, shape in observe_calls(model, sharing)]
        flat = all(len(shape) == 2 for shape in shapes)
        # DoRA also runs B on the identity, which is not a use on tokens.
        if sum((len(shape) == 2) == flat for shape in shapes) > 1:
            logger.warning(
                "The weight of %s is used several times per forward. Its gradient is the sum over the uses, and the "
                "selection pass keeps activations from the first use on, nearly as many as training does.",
                name,
            )
            layers = ()
        head = find_head(model)
    except Exception as error:  # the user named a module, and the model does not run on one token
        logger.info("The forward of one token failed (%s).", error)
        head = None
    if head is None:
        logger.info(
            "The output head alone does not reproduce the model's logits, so it runs on all labeled tokens at once."
        )
    uses = tuple(sharing.values())
    adapted = any(getattr(other, "base_layer", None) in uses for other in modules.values() if is_adapted(other))
    return ValueSite(name, module, rows, out_features, in_features, uses, flat, layers, layers_after, head, adapted)


def _that_share(module: nn.Module, model: nn.Module) -> dict[str, nn.Module]:
    """Return all maps that hold the weight of `module`, including itself (blocks may share weights)."""
    weight = module.weight
    return {
        name: other
        for name, other in model.named_modules()
        if other is module or other._parameters.get("weight") is weight
    }


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _nearest_trained(name: str, modules: dict[str, nn.Module]) -> str | None:
    """Return the trained linear map nearest to the projection in its layer, or None."""
    layer = _layers_from(name, modules)[0]
    inside = {id(module) for module in layer.modules()}
    adapted = tuple(f"{other}." for other, module in modules.items() if is_adapted(module))
    projections = [
        other
        for other, module in modules.items()
        if id(module) in inside
        and is_linear(base_map(module))
        and _leaf(other) != "original_module"
        and not other.startswith(adapted)  # parts of an adapter
        and ".modules_to_save." not in other
    ]
    trained = [other for other in projections if is_trained(trained_map(modules[other]))]
    place = projections.index(name)
    return min(trained, key=lambda other: abs(projections.index(other) - place), default=None)


def _layers_from(name: str, modules: dict[str, nn.Module]) -> tuple[nn.Module, ...]:
    """Return the transformer layer (the outermost list element on the path) and the layers after it."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        holder = modules[".".join(parts[:depth])]
        if isinstance(holder, nn.ModuleList):
            return tuple(list(holder)[int(parts[depth]) :])
    return (modules[name],)


def _resolve(wanted: str, modules: dict[str, nn.Module]) -> str:
    matches = [name for name in modules if name == wanted or name.endswith("." + wanted)]
    exact = [name for name in matches if name == wanted]
    matches = exact or matches
    linear = [name for name in modules if is_linear(modules[name])]
    if not matches:
        raise ConfigError(f"value_module={wanted!r} does not match any module of the model.{suggest(wanted, linear)}")
    if len(matches) > 1:
        raise ConfigError(
            f"value_module={wanted!r} matches {len(matches)} modules, such as {matches[0]} and {matches[-1]}. "
            "Give the full path of one."
        )
    module = modules[matches[0]]
    if not is_linear(base_map(module)):
        raise ConfigError(
            f"value_module={wanted!r} is a {type(module).__name__}; it must be a Linear.{suggest(wanted, linear)}"
        )
    return matches[0]


def _not_found(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    if any(is_adapted(module) and _leaf(name) in SEPARATE + FUSED for name, module in modules.items()):
        return (
            f"The {_adapters(model)} computes the value projection's output without calling the projection, so its "
            "gradient is unavailable. Use LoRA with target_modules, or set value_module to a Linear without the "
            "adapter."
        )
    linear = [name for name, module in modules.items() if is_linear(module)]
    seen = f"the last ones are {', '.join(linear[-8:])}" if linear else "the model has none"
    return (
        f"No active value projection was found among {len(linear)} linear modules (searched for names ending in "
        f"{', '.join(SEPARATE + FUSED)} outside feed-forward, linear-attention and state-space layers): {seen}. "
        "A model without attention has no value projection. Name the module to use with "
        "SelectionConfig(value_module='path.of.a.Linear')."
    )
