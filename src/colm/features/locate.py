"""Find the last value projection of a causal language model: the one place that decides."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colm.errors import ConfigError, UnsupportedModelError, suggest

SEPARATE = ("v_proj", "value_proj", "v_lin", "value", "wv")
"""Names of modules that compute the values and nothing else."""

FUSED_BLOCKS = ("qkv_proj", "c_attn")
"""Names of modules that compute queries, keys and values, one block of outputs after the other."""

FUSED_OTHER = ("query_key_value", "Wqkv", "in_proj", "att_proj", "kv_b_proj", "kv_proj", "qkv", "W_pack")
"""Names of fused projections whose layout differs by architecture: named in the error, not used."""


class ValueSite(NamedTuple):
    """The linear map whose weight's per-example gradient is the feature.

    With LoRA that is the matrix B of the last value projection, a linear map of its own whose input
    is A x. Hooking B instead of the projection makes LoRA and full training one case, and scaling
    (LoRA, rsLoRA) comes in by the chain rule.
    """

    name: str  # dotted path of the value projection
    module: nn.Module  # the linear map that is hooked
    value_rows: Tensor | None  # (d_out,) int64, its outputs that are values; None for all
    out_features: int  # d_out
    in_features: int  # d_in, LoRA's rank where there is LoRA
    layer: nn.Module  # the transformer layer that holds the projection

    @property
    def weight(self) -> nn.Parameter:
        """The trained weight, whose optimiser group sets the Adam constants."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def dim(self) -> int:
        """D, entries of the gradient."""
        return self.out_features * self.in_features


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, as the training forward sees it otherwise.

    Autocast that accelerate puts around the forward stays in place, so that the pass runs in the
    precision of training.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
        assert isinstance(inner, nn.Module)
        return inner
    return model


def locate_value_site(model: nn.Module, value_module: str | None = None) -> ValueSite:
    """Find the last value projection, or take the module that the user names.

    Args:
        model: a Hugging Face causal language model, bare or with PEFT adapters.
        value_module: dotted path of a Linear, or an ending of it that only one module has.

    Raises:
        ConfigError: `value_module` names no module, or one that is not linear.
        UnsupportedModelError: no value projection was found; the message lists what was looked at.

    Source: CoLM, section 4.3: the last layer's V projection has the largest gradient norms.
    """
    modules = dict(unwrap(model).named_modules())
    if value_module is not None:
        name = _resolve(value_module, modules)
    else:
        candidates = [
            name
            for name, module in modules.items()
            if _leaf(name) in SEPARATE + FUSED_BLOCKS and (_is_linear(module) or hasattr(module, "base_layer"))
        ]
        if not candidates:
            raise UnsupportedModelError(_not_found(modules))
        name = candidates[-1]  # named_modules yields layers in order
    projection = modules[name]
    value_rows = None
    if _leaf(name) in FUSED_BLOCKS:
        value_rows = _block_value_rows(unwrap(model), name, _features(_base(projection))[0])
    module = _trained_map(projection)
    out_features, in_features = _features(module)
    if value_rows is not None:
        out_features = len(value_rows)
        weight: Any = module.weight
        value_rows = value_rows.to(weight.device)
    return ValueSite(name, module, value_rows, out_features, in_features, _layer_of(name, modules))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _base(projection: nn.Module) -> nn.Module:
    base = getattr(projection, "base_layer", projection)
    assert isinstance(base, nn.Module)
    return base


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
    """Return LoRA's B of the first active adapter, or the projection itself."""
    holder: Any = projection
    if not hasattr(holder, "base_layer"):
        return projection
    adapters = [name for name in holder.active_adapters if name in getattr(holder, "lora_B", {})]
    if not adapters:
        return _base(projection)
    adapter: nn.Module = holder.lora_B[adapters[0]]
    return adapter


def _block_value_rows(model: nn.Module, name: str, fused: int) -> Tensor:
    """Return the outputs of a block-fused projection that are values: the last block."""
    config: Any = model.config
    config = config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    values = key_value_heads * head_dim
    if fused != heads * head_dim + 2 * values:
        raise UnsupportedModelError(
            f"{name} has {fused} outputs, not the {heads * head_dim + 2 * values} of {heads} query and "
            f"{key_value_heads} key and value heads of size {head_dim}, so its value rows are not known. "
            "Name another Linear with value_module."
        )
    return torch.arange(fused - values, fused)


def _layer_of(name: str, modules: dict[str, nn.Module]) -> nn.Module:
    """Return the outermost list element on the path: the transformer layer."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        if isinstance(modules[".".join(parts[:depth])], nn.ModuleList):
            return modules[".".join(parts[: depth + 1])]
    return modules[name]


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
    fused = [name for name in modules if _leaf(name) in FUSED_OTHER]
    linear = [name for name, module in modules.items() if _is_linear(module)]
    looked_at = fused[-1:] or linear[-8:]
    seen = f"the last ones are {', '.join(looked_at)}" if looked_at else "it has no Linear at all"
    why = f"its last attention projection, {fused[-1]}, is fused in a layout that colm does not know" if fused else seen
    return (
        f"No value projection was found among {len(linear)} linear modules (looked for names ending in "
        f"{', '.join(SEPARATE + FUSED_BLOCKS)}): {why}. Name the module to use with "
        "SelectionConfig(value_module='path.of.a.Linear')."
    )
