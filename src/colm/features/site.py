"""The linear map whose weight's per-example gradient is the feature."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from colm.features.head import OutputHead


class ValueSite(NamedTuple):
    """The linear map whose weight's per-example gradient is the feature.

    With LoRA that is the matrix B of the last value projection, a linear map of its own whose input
    is A x. Hooking B instead of the projection makes LoRA and full training one case, and scaling
    (LoRA, rsLoRA, DoRA's magnitude) comes in by the chain rule.
    """

    name: str  # dotted path of the projection
    module: nn.Module  # the linear map that has the weight
    value_rows: Tensor | None  # (d_out,) int64, its outputs that are values; None for all
    out_features: int  # d_out
    in_features: int  # d_in, LoRA's rank where there is LoRA
    uses: tuple[nn.Module, ...]  # the maps that have this weight, as a rule the module alone; these are hooked
    flat: bool  # it reads (rows * tokens, d_in), not (rows, tokens, d_in)
    layers: tuple[nn.Module, ...]  # the transformer layer with the projection and those after it; none if it recurs
    layers_after: int  # transformer layers that follow the one with the projection
    head: OutputHead | None  # the output head, if it can run apart from the model and so in chunks
    adapted: bool = False  # an adapter gets its output, and may add to it in place

    @property
    def weight(self) -> nn.Parameter:
        """The trained weight, whose optimizer group sets the Adam constants."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def dim(self) -> int:
        """D, entries of the gradient."""
        return self.out_features * self.in_features


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and torch.compile, as the training forward sees it otherwise.

    Autocast that accelerate puts around the forward stays in place, so that the pass runs in the
    precision of training.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile's wrapper
            inner = model._orig_mod
            assert isinstance(inner, nn.Module)
            model = inner
        else:
            return model
