"""Find the last value projection of a causal language model: the one place that decides.

Names propose, a forward pass of one token decides: it shows which of the proposed modules run, in
which order, and which outputs of a fused projection are values. With one token the attention has one
key, so its softmax is 1 whatever the query and the key, and only the values reach the logits. That
holds for every layout (blocks, interleaved by head, grouped or multi-query, latent attention), so no
table of layouts is needed.
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
"""Names of modules that compute the values and nothing else."""

FUSED = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "qkv", "kv_b_proj", "kv_proj", "W_pack", "att_proj")
"""Names of modules that compute the values and more."""

NO_SOFTMAX = ("linear", "mamba", "conv", "recurrent", "mlp")
"""Parts of layer types in a config, and of module names, that are not softmax attention."""

MIX_ROWS = ("LILY",)
"""Kinds of adapters whose output for a row depends on the other rows of its batch."""

NO_ATTENTION = ("feed_forward", "mlp", "ffn", "experts", "compressor", "indexer")
"""Names on the path of modules that belong to no attention."""


def locate_value_site(model: nn.Module, value_module: str | None = None) -> ValueSite:
    """Find the last value projection that runs, or take the module that the user names.

    Where the projection has LoRA, its B is taken. Where nothing of it is trained, the trained linear map
    of the same layer that is nearest to it is taken, which the log says. An adapter that has no linear map of its
    own (OFT, AdaLoRA, IA3, ...) leaves the projection itself, whose gradient is taken though it is not trained.

    Args:
        model: a Hugging Face causal language model, bare, with PEFT adapters, in DDP or compiled.
        value_module: dotted path of a Linear, or an ending of it that only one module has.

    Raises:
        ConfigError: `value_module` names no module, or one that is not linear.
        UnsupportedModelError: no value projection was found, the message lists what was looked at; an adapter learns
            a prompt, or does not call the projection; or the model's logits are not finite.

    Source: CoLM, section 4.3: the last layer's V projection has the largest gradient norms.
    """
    inner = unwrap(model)
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
                "%s is not trained; the features are gradients of %s, the nearest map that is.", name, nearest
            )
            return _make_site(inner, nearest, trained_map(modules[nearest]), None, modules)
        if is_adapted(modules[name]):
            logger.info(
                "The %s has no linear map of its own; the gradient of %s is the feature.", _adapters(inner), name
            )
            return _make_site(inner, name, module, _value_rows(inner, name, influence), modules)
        logger.warning("%s is not trained, nor is another map of its layer; its gradient is the feature.", name)
    return _make_site(inner, name, module, _value_rows(inner, name, influence), modules)


def _value_rows(model: nn.Module, name: str, influence: Tensor) -> Tensor | None:
    return find_value_rows(model, name, influence) if _leaf(name) in FUSED else None


def _adapters(model: Any) -> str:
    """Return the kinds of the model's adapters as words for a message, such as ``OFT adapter``; empty without any."""
    kinds = sorted({str(getattr(config.peft_type, "value", config.peft_type)) for config in _peft_configs(model)})
    return f"{' and '.join(kinds)} adapter" if kinds else ""


def _peft_configs(model: Any) -> list[Any]:
    held = getattr(model, "peft_config", None)
    return list(held.values()) if isinstance(held, dict) else []


def _refuse_adapters(model: nn.Module) -> None:
    """Refuse adapters that mix rows or learn a prompt, which lengthens rows; a prefix of keys and values does not."""
    for config in _peft_configs(model):
        if getattr(config.peft_type, "value", "") in MIX_ROWS:
            raise UnsupportedModelError(
                f"The {_adapters(model)} averages over the rows of a batch, so no row has a gradient of "
                "its own; use LoRA."
            )
        if getattr(config, "is_prompt_learning", False) and getattr(config.peft_type, "value", "") != "PREFIX_TUNING":
            raise UnsupportedModelError(
                f"The {_adapters(model)} learns a prompt, which lengthens every row beyond its labels; use LoRA or "
                "another adapter of weights."
            )


def _last_that_matters(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, Tensor]:
    """Return the last proposed module that runs and moves the logits, and how much each of its outputs does."""
    proposed = {name: map_that_runs(module) for name, module in modules.items() if _is_proposed(name, module, model)}
    if not proposed:
        raise UnsupportedModelError(_not_found(model, modules))
    try:
        calls = [name for name, _ in observe_calls(model, proposed)]
    except Exception as error:  # modeling code can raise anything
        with_adapter = f" with its {_adapters(model)}" if _adapters(model) else ""
        raise UnsupportedModelError(
            f"The model{with_adapter} did not run on one token ({type(error).__name__}: {error}), which is how the "
            "last value projection is found. Name a Linear with value_module."
        ) from error
    reason = ""
    for name in dict.fromkeys(reversed(calls)):
        try:
            influence = one_token_influence(model, trained_map(modules[name]))
        except RuntimeError as error:  # not used on the way to the logits, or modified in place there
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
    if rows is not None:
        weight: Any = module.weight
        out_features, rows = len(rows), rows.to(weight.device)
    layers = _layers_from(name, modules)
    layers_after = len(layers) - 1
    sharing = _that_share(module, model)
    flat = False
    try:
        shapes = [shape for _, shape in observe_calls(model, sharing)]
        flat = all(len(shape) == 2 for shape in shapes)
        # DoRA runs B on the identity, too, which is no use of it on tokens.
        if sum((len(shape) == 2) == flat for shape in shapes) > 1:
            logger.warning(
                "The weight of %s is used several times in a pass. Its gradient is the sum over them, and the pass "
                "keeps activations from the first of them on, nearly as many as training does.",
                name,
            )
            layers = ()
        head = find_head(model)
    except Exception as error:  # a named module in a model that does not run on one token
        logger.info("A pass of one token failed (%s).", error)
        head = None
    if head is None:
        logger.info(
            "The output head's logits are not the model's own, so the head runs on all labeled tokens at once."
        )
    uses = tuple(sharing.values())
    adapted = any(getattr(other, "base_layer", None) in uses for other in modules.values() if is_adapted(other))
    return ValueSite(name, module, rows, out_features, in_features, uses, flat, layers, layers_after, head, adapted)


def _that_share(module: nn.Module, model: nn.Module) -> dict[str, nn.Module]:
    """Return the maps that hold the weight of `module`, itself among them (blocks may share weights)."""
    weight = module.weight
    return {
        name: other
        for name, other in model.named_modules()
        if other is module or other._parameters.get("weight") is weight
    }


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _nearest_trained(name: str, modules: dict[str, nn.Module]) -> str | None:
    """Return the trained linear map of the projection's layer that stands nearest to it, or None."""
    layer = _layers_from(name, modules)[0]
    inside = {id(module) for module in layer.modules()}
    adapted = tuple(f"{other}." for other, module in modules.items() if is_adapted(module))
    projections = [
        other
        for other, module in modules.items()
        if id(module) in inside
        and is_linear(base_map(module))
        and _leaf(other) != "original_module"
        and not other.startswith(adapted)  # what an adapter is made of
        and ".modules_to_save." not in other
    ]
    trained = [other for other in projections if is_trained(trained_map(modules[other]))]
    place = projections.index(name)
    return min(trained, key=lambda other: abs(projections.index(other) - place), default=None)


def _layers_from(name: str, modules: dict[str, nn.Module]) -> tuple[nn.Module, ...]:
    """Return the outermost list element on the path, the transformer layer, and those that come after it."""
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
        raise ConfigError(f"value_module={wanted!r} names no module of the model.{suggest(wanted, linear)}")
    if len(matches) > 1:
        raise ConfigError(
            f"value_module={wanted!r} fits {len(matches)} modules, such as {matches[0]} and {matches[-1]}; "
            "give the whole path of one."
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
            "gradient cannot be had; use LoRA with target_modules, or name a Linear that the adapter leaves alone with "
            "value_module."
        )
    linear = [name for name, module in modules.items() if is_linear(module)]
    seen = f"the last ones are {', '.join(linear[-8:])}" if linear else "it has no Linear at all"
    return (
        f"No value projection that runs was found among {len(linear)} linear modules (looked for names ending in "
        f"{', '.join(SEPARATE + FUSED)} outside of feed-forward, linear-attention and state-space layers): {seen}. "
        "A model without attention has none. Name the module to use with "
        "SelectionConfig(value_module='path.of.a.Linear')."
    )
