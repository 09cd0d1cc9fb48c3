"""Find the linear maps inside quantized and PEFT-wrapped modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from colm.step.sharding import whole_shape


def base_map(module: nn.Module) -> nn.Module:
    """Return the linear map inside PEFT's wrappers."""
    for attribute in ("base_layer", "original_module"):
        inner = getattr(module, attribute, None)
        if isinstance(inner, nn.Module):
            return base_map(inner)
    return module


def map_that_runs(projection: nn.Module) -> nn.Module:
    """Return the linear map that runs when the projection is called: LoRA's base, or the modules_to_save copy."""
    return trained_map(projection) if hasattr(projection, "original_module") else base_map(projection)


def is_linear(module: nn.Module) -> bool:
    """True for nn.Linear, its quantized variants, and transformers' Conv1D."""
    weight = getattr(module, "weight", None)
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")  # OFT's rotations have only one of them
    return isinstance(weight, Tensor) and (sized or _is_transposed(module))


def is_adapted(module: nn.Module) -> bool:
    """True for a map that PEFT has wrapped in an adapter."""
    return isinstance(getattr(module, "base_layer", None), nn.Module)


def map_sizes(linear: nn.Module) -> tuple[int, int]:
    """Return (d_out, d_in), including for GPT-2's Conv1D, whose weight is (d_in, d_out)."""
    module: Any = linear
    if _is_transposed(linear):
        shape = whole_shape(module.weight)
        return int(shape[1]), int(shape[0])
    return int(module.out_features), int(module.in_features)


def output_rows(linear: nn.Module, values: Tensor) -> Tensor:
    """Return a tensor of the weight's shape, such as the optimizer's moments, as (d_out, d_in)."""
    return values.T if _is_transposed(linear) else values


def _is_transposed(linear: nn.Module) -> bool:
    return type(linear).__name__ == "Conv1D"


def trained_map(projection: nn.Module) -> nn.Module:
    """Return the map that PEFT trains for a projection: LoRA's B, a modules_to_save copy, or the projection itself.

    With several active adapters, the first trained one is used.
    """
    holder: Any = projection
    copies = getattr(holder, "modules_to_save", None)
    if copies is not None and hasattr(holder, "original_module"):
        active: list[nn.Module] = [copies[name] for name in _as_list(holder.active_adapter) if name in copies]
        return active[0] if active else holder.original_module
    factors = getattr(holder, "lora_B", {})
    if not hasattr(holder, "base_layer") or not isinstance(factors, nn.ModuleDict):
        return base_map(projection)
    adapters: list[nn.Module] = [factors[name] for name in holder.active_adapters if name in factors]
    return next(
        (adapter for adapter in adapters if is_trained(adapter)), adapters[0] if adapters else base_map(projection)
    )


def _as_list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def is_trained(module: nn.Module) -> bool:
    """True if the module's weight is trained."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.requires_grad
