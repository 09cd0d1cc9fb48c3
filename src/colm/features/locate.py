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

import torch
from torch import Tensor, nn

from colm.errors import ConfigError, UnsupportedModelError, suggest
from colm.features.capture import call_counts, find_head, one_token_influence
from colm.features.site import ValueSite, unwrap

logger = logging.getLogger(__name__)

SEPARATE = ("v_proj", "value_proj", "v_lin", "value", "wv", "Wv", "project_v", "v_proj_current")
"""Names of modules that compute the values and nothing else."""

FUSED = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "qkv", "kv_b_proj", "kv_proj", "W_pack", "att_proj")
"""Names of modules that compute the values and more."""

NO_SOFTMAX = ("linear", "mamba", "conv", "recurrent", "mlp")
"""Parts of layer types in a config, and of module names, that are not softmax attention."""

NO_ATTENTION = ("feed_forward", "mlp", "ffn", "experts", "compressor", "indexer")
"""Names on the path of modules that belong to no attention."""

NOISE = 1e-6
"""Queries and keys of one token have no influence; a fused attention kernel may leave rounding below this."""


WIDE_GAP = 10.0
"""Ratio of influences that tells values from the rest where the rest has some."""


def locate_value_site(model: nn.Module, value_module: str | None = None) -> ValueSite:
    """Find the last value projection that runs, or take the module that the user names.

    Where the projection has LoRA, its B is taken. Where nothing of it is trained, the trained linear map
    of the same layer that is nearest to it is taken, which the log says.

    Args:
        model: a Hugging Face causal language model, bare, with PEFT adapters, in DDP or compiled.
        value_module: dotted path of a Linear, or an ending of it that only one module has.

    Raises:
        ConfigError: `value_module` names no module, or one that is not linear.
        UnsupportedModelError: no value projection was found; the message lists what was looked at.

    Source: CoLM, section 4.3: the last layer's V projection has the largest gradient norms.
    """
    inner = unwrap(model)
    modules = dict(inner.named_modules())
    if value_module is not None:
        name = _resolve(value_module, modules)
        module = _trained_map(modules[name])
        return _make_site(inner, name, module, None, modules)
    name, influence = _last_that_matters(inner, modules)
    module = _trained_map(modules[name])
    if not _is_trained(module):
        nearest = _nearest_trained(name, modules)
        if nearest is not None:
            logger.warning(
                "%s is not trained; the features are gradients of %s, the nearest map that is.", name, nearest
            )
            return _make_site(inner, nearest, _trained_map(modules[nearest]), None, modules)
        logger.warning("%s is not trained, nor is another map of its layer; its gradient is the feature.", name)
    rows = _value_rows(inner, name, influence) if _leaf(name) in FUSED else None
    return _make_site(inner, name, module, rows, modules)


def _last_that_matters(model: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, Tensor]:
    """Return the last proposed module that runs and moves the logits, and how much each of its outputs does."""
    proposed = {name: _that_runs(module) for name, module in modules.items() if _is_proposed(name, module, model)}
    if not proposed:
        raise UnsupportedModelError(_not_found(modules))
    try:
        calls = call_counts(model, proposed)
    except Exception as error:  # modeling code can raise anything
        raise UnsupportedModelError(
            f"The model did not run on one token ({type(error).__name__}: {error}), which is how the last value "
            "projection is found. Name a Linear with value_module."
        ) from error
    reason = ""
    for name in reversed(calls):
        try:
            influence = one_token_influence(model, _trained_map(modules[name]))
        except RuntimeError as error:  # not used on the way to the logits, or modified in place there
            reason = f" ({name}: {error})"
            continue
        if influence.max() > 0:
            if calls[name] > 1:
                logger.warning("%s runs %d times in a pass; features are of its last run.", name, calls[name])
            return name, influence
    raise UnsupportedModelError(_not_found(modules) + reason)


def _is_proposed(name: str, module: nn.Module, model: Any) -> bool:
    if _leaf(name) not in SEPARATE + FUSED or not _is_linear(_base(module)):
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


def _value_rows(model: nn.Module, name: str, influence: Tensor) -> Tensor | None:
    """Return the outputs of a fused projection that move the logits of a single token."""
    rows = (influence > NOISE * influence.max()).nonzero()[:, 0]
    expected = _value_sizes(model)
    if expected and len(rows) not in expected:
        rows = _above_gap(influence, expected)
    if expected and len(rows) not in expected:
        rows = _complete(rows, len(influence), expected)
    if expected and len(rows) not in expected:
        raise UnsupportedModelError(
            f"{len(rows)} of the {len(influence)} outputs of {name} act as values, but the model's heads make "
            f"{' or '.join(map(str, sorted(expected)))}. Name another Linear with value_module."
        )
    return rows if len(rows) < len(influence) else None


def _above_gap(influence: Tensor, expected: set[int]) -> Tensor:
    """Return the outputs above the widest gap, where an attention sink lets keys have some influence, too.

    A gap counts where it leaves an expected number of outputs above it and is tenfold at least.
    """
    ordered = influence.sort(descending=True).values.clamp_min(torch.finfo(influence.dtype).tiny)
    gaps = {count: float(ordered[count - 1] / ordered[count]) for count in expected if count < len(ordered)}
    count = max(gaps, key=lambda count: gaps[count], default=0)
    if count == 0 or gaps[count] < WIDE_GAP:
        return (influence > NOISE * influence.max()).nonzero()[:, 0]
    return (influence >= ordered[count - 1]).nonzero()[:, 0]


def _complete(rows: Tensor, outputs: int, expected: set[int]) -> Tensor:
    """Fill in values that reach nothing, such as pruned channels: blocks of one size that hold the rest."""
    touched = set(rows.tolist())
    for count in sorted(size for size in expected if size > len(rows)):
        for block in (size for size in range(count, 0, -1) if count % size == 0 and outputs % size == 0):
            blocks = sorted({row // block for row in touched})
            if len(blocks) * block == count:
                return torch.tensor([start * block + i for start in blocks for i in range(block)])
    return rows


def _value_sizes(model: Any) -> set[int]:
    """Return how many values a token can have by the config: key-value heads, or all, times the head size."""
    config = getattr(model, "config", None)
    if config is None:
        return set()
    config = config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return set()
    sizes = {
        getattr(config, "head_dim", None),
        getattr(config, "v_head_dim", None),
        getattr(config, "kv_channels", None),
    }
    sizes |= {config.hidden_size // heads, getattr(config, "attention_head_size", None)}
    groups = {heads, getattr(config, "num_key_value_heads", None), getattr(config, "num_kv_heads", None), 1}
    return {count * size for count in groups if isinstance(count, int) for size in sizes if isinstance(size, int)}


def _make_site(
    model: nn.Module, name: str, module: nn.Module, rows: Tensor | None, modules: dict[str, nn.Module]
) -> ValueSite:
    out_features, in_features = _features(module)
    if rows is not None:
        weight: Any = module.weight
        out_features, rows = len(rows), rows.to(weight.device)
    layers = _layers_from(name, modules)
    try:
        head = find_head(model)
    except Exception as error:  # a named module in a model that does not run on one token
        logger.info("A pass of one token failed (%s).", error)
        head = None
    if head is None:
        logger.info(
            "The output head's logits are not the model's own, so the head runs on all labelled tokens at once."
        )
    return ValueSite(name, module, rows, out_features, in_features, layers, head)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _base(module: nn.Module) -> nn.Module:
    """Return the linear map inside PEFT's wrappers."""
    for attribute in ("base_layer", "original_module"):
        inner = getattr(module, attribute, None)
        if isinstance(inner, nn.Module):
            return _base(inner)
    return module


def _that_runs(projection: nn.Module) -> nn.Module:
    """Return the linear map that a call of the projection runs: the base of LoRA, or the whole copy."""
    return _trained_map(projection) if hasattr(projection, "original_module") else _base(projection)


def _is_linear(module: nn.Module) -> bool:
    """True for nn.Linear, its quantised relatives, and transformers' Conv1D."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and (hasattr(module, "in_features") or type(module).__name__ == "Conv1D")


def _features(linear: nn.Module) -> tuple[int, int]:
    """Return (d_out, d_in), also of GPT-2's Conv1D, whose weight is (d_in, d_out)."""
    module: Any = linear
    if type(linear).__name__ == "Conv1D":
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    return int(module.out_features), int(module.in_features)


def _trained_map(projection: nn.Module) -> nn.Module:
    """Return what PEFT trains of a projection: LoRA's B, a whole copy (modules_to_save), or the projection itself.

    Of several active adapters, the first one that is trained.
    """
    holder: Any = projection
    copies = getattr(holder, "modules_to_save", None)
    if copies is not None and hasattr(holder, "original_module"):
        active: list[nn.Module] = [copies[name] for name in _as_list(holder.active_adapter) if name in copies]
        return active[0] if active else holder.original_module
    factors = getattr(holder, "lora_B", {})
    if not hasattr(holder, "base_layer") or not isinstance(factors, nn.ModuleDict):
        return _base(projection)
    adapters: list[nn.Module] = [factors[name] for name in holder.active_adapters if name in factors]
    return next(
        (adapter for adapter in adapters if _is_trained(adapter)), adapters[0] if adapters else _base(projection)
    )


def _as_list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _is_trained(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.requires_grad


def _nearest_trained(name: str, modules: dict[str, nn.Module]) -> str | None:
    """Return the trained linear map of the projection's layer that stands nearest to it, or None."""
    layer = _layers_from(name, modules)[0]
    inside = {id(module) for module in layer.modules()}
    projections = [
        other
        for other, module in modules.items()
        if id(module) in inside
        and _is_linear(_base(module))
        and _leaf(other) not in ("base_layer", "original_module")
        and "lora_" not in other
        and ".modules_to_save." not in other
    ]
    trained = [other for other in projections if _is_trained(_trained_map(modules[other]))]
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
    linear = [name for name in modules if _is_linear(modules[name])]
    if not matches:
        raise ConfigError(f"value_module={wanted!r} names no module of the model.{suggest(wanted, linear)}")
    if len(matches) > 1:
        raise ConfigError(
            f"value_module={wanted!r} fits {len(matches)} modules, such as {matches[0]} and {matches[-1]}; "
            "give the whole path of one."
        )
    module = modules[matches[0]]
    if not _is_linear(_base(module)):
        raise ConfigError(
            f"value_module={wanted!r} is a {type(module).__name__}; it must be a Linear.{suggest(wanted, linear)}"
        )
    return matches[0]


def _not_found(modules: dict[str, nn.Module]) -> str:
    linear = [name for name, module in modules.items() if _is_linear(module)]
    seen = f"the last ones are {', '.join(linear[-8:])}" if linear else "it has no Linear at all"
    return (
        f"No value projection that runs was found among {len(linear)} linear modules (looked for names ending in "
        f"{', '.join(SEPARATE + FUSED)} outside of feed-forward, linear-attention and state-space layers): {seen}. "
        "A model without attention has none. Name the module to use with "
        "SelectionConfig(value_module='path.of.a.Linear')."
    )
