"""The linear map whose weight's per-example gradient is the feature."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from colm.features.head import OutputHead


class ValueSite(NamedTuple):
    """The linear map whose weight's per-example gradient is the feature.

    With LoRA this is the matrix B of the last value projection, itself a linear map with input A x.
    Hooking B instead of the projection handles LoRA and full training alike; scaling (LoRA, rsLoRA,
    DoRA's magnitude) follows from the chain rule.
    """

    name: str  # dotted path of the projection
    module: nn.Module  # the linear map that owns the weight
    value_rows: Tensor | None  # (d_out,) int64, outputs that are values; None means all
    out_features: int  # d_out
    in_features: int  # d_in; with LoRA, its rank
    uses: tuple[nn.Module, ...]  # the maps that share this weight, normally just the module; these are hooked
    flat: bool  # the input is (rows * tokens, d_in), not (rows, tokens, d_in)
    layers: tuple[nn.Module, ...]  # the projection's transformer layer and all later ones; empty if it recurs
    layers_after: int  # transformer layers that follow the one with the projection
    head: OutputHead | None  # the output head, if it can run separately and therefore in chunks
    adapted: bool = False  # an adapter receives the output and may add to it in place

    @property
    def weight(self) -> nn.Parameter:
        """The trained weight; its optimizer group sets the Adam constants."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def dim(self) -> int:
        """D, the number of gradient entries."""
        return self.out_features * self.in_features


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DeepSpeed's engine and torch.compile, otherwise unchanged.

    The autocast that accelerate wraps around the forward stays in place, so the pass runs in the
    same precision as training.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel) or type(model).__name__ == "DeepSpeedEngine":
            inner = model.module
            assert isinstance(inner, nn.Module)
            model = inner
        elif hasattr(model, "_orig_mod"):  # torch.compile's wrapper
            inner = model._orig_mod
            assert isinstance(inner, nn.Module)
            model = inner
        else:
            return model


def is_compiled(module: nn.Module) -> bool:
    """Return whether `torch.compile` runs the module: as a wrapper, in place, or its forward."""
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return in_place or hasattr(module, "_orig_mod") or hasattr(module.forward, "_torchdynamo_orig_callable")


def hides_from_hooks(model: nn.Module, module: nn.Module) -> bool:
    """Return whether a hook on `module` would not run, or would compile again, since a compiled module contains it."""
    return any(is_compiled(part) and any(module is each for each in part.modules()) for part in model.modules())
