"""The output head and the cross-entropy in one kernel, Liger's, which keeps no logits.

For a mean over examples, each token's loss has its own weight. So the kernel returns one loss a token, and its backward
must weigh the tokens before it sums them over the head's weight: Liger does so from 0.8.2 on. (The release 25.1.1 of
cut-cross-entropy has no bias, no float32, sums a trained head's gradient in bfloat16, and rounds the products of the
target's logit to it.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colm.errors import ConfigError, UnsupportedModelError
from colm.features.head import OutputHead
from colm.losses import token_losses

PACKAGE, OLDEST = "liger-kernel", (0, 8, 2)

CAPS = ("final_logit_softcapping", "logits_soft_cap")
SCALES: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda scale: scale,
    "logits_scaling": lambda divisor: 1.0 / divisor,
    "lm_head_multiplier": lambda scale: scale,
}
"""The keys of `colm.features.head.FINISHES`, as what the kernel can do: cap logits, or read scaled states."""

Kernel = Callable[[Tensor, Tensor, Tensor, "Tensor | None", "float | None"], Tensor]
"""Maps hidden states (M, d), weight (V, d), targets (M,), bias (V,) or None, and softcap to losses (M,) float32."""


def require_fused() -> None:
    """Check that this machine can run the kernel.

    Raises:
        ConfigError: the package is missing or too old, or there is no CUDA device.
    """
    least = ".".join(map(str, OLDEST))
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        raise ConfigError(
            f"train_head='fused' needs {PACKAGE}>={least}: pip install 'colm[fused]', or set train_head to 'chunked'."
        ) from None
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < OLDEST:
        raise ConfigError(
            f"train_head='fused' needs {PACKAGE}>={least}, but {found} is installed, whose gradient is wrong if tokens "
            "differ in weight; upgrade it, or set train_head to 'chunked'."
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            "train_head='fused' needs a CUDA GPU, and torch finds none; set train_head to 'chunked', which gives the "
            "same losses."
        )


def load_kernel(device: torch.device) -> Kernel:
    """Return the kernel for tensors on this device.

    Raises:
        UnsupportedModelError: the device is not a CUDA GPU.
    """
    if device.type != "cuda":
        raise UnsupportedModelError(f"its weight is on the {device.type}")
    return _liger_losses


def _liger_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    # The gradient of a trained weight is summed over chunks, in its own dtype by default.
    loss = LigerFusedLinearCrossEntropyLoss(reduction="none", softcap=softcap, accum_dtype=torch.float32)
    losses: Tensor = loss(weight, hidden, targets, bias)
    return losses


class FusedHead(NamedTuple):
    """A head that is a plain linear map, as the kernel computes it."""

    linear: nn.Linear
    scale: float  # of the logits, by which states and bias are multiplied
    softcap: float | None
    kernel: Kernel

    @classmethod
    def of(cls, head: OutputHead) -> FusedHead:
        """Return a verified head for the kernel.

        Raises:
            UnsupportedModelError: the head is more than a linear map, or not on a GPU; says why.
        """
        linear = _plain_linear(head.module)
        scale, caps = 1.0, []
        for name, number in head.finishes:
            if name in CAPS:
                caps.append(number)
            elif name in SCALES and not caps:
                scale *= SCALES[name](number)
            else:
                raise UnsupportedModelError(f"the kernel cannot apply {name}")
        if len(caps) > 1:
            raise UnsupportedModelError("the model caps its logits more than once")
        return cls(linear, scale, caps[0] if caps else None, load_kernel(linear.weight.device))

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each token, (M,) float32, from states (M, d) and token ids (M,) int64."""
        weight: Tensor = self.linear.weight
        bias: Tensor | None = self.linear.bias
        if self.scale != 1.0:
            hidden = hidden * self.scale
            bias = None if bias is None else bias * self.scale
        return self.kernel(hidden.contiguous(), weight, targets, bias, self.softcap)

    def check(self, head: OutputHead, hidden: Tensor, targets: Tensor, tolerance: float) -> None:
        """Compare losses, and the gradient at the states, with those from the logits of `head`.

        Tokens differ in weight, which is what a kernel for a plain mean gets wrong.

        Raises:
            UnsupportedModelError: they differ by more than `tolerance` of the largest.
        """
        share = torch.linspace(0.5, 1.5, len(targets), device=hidden.device)

        def losses_and_gradient(losses_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
            states = hidden.detach().requires_grad_()
            losses = losses_of(states)
            (gradient,) = torch.autograd.grad((losses * share).sum(), states)
            return losses.detach().float(), gradient.float()

        with torch.enable_grad():
            found = losses_and_gradient(lambda states: self.token_losses(states, targets))
            expected = losses_and_gradient(lambda states: token_losses(head.logits(states), targets))
        for what, ours, theirs in zip(("losses", "gradient"), found, expected, strict=True):
            if not bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-6)):
                raise UnsupportedModelError(f"the kernel's {what} differ from those of the logits")


def _plain_linear(module: nn.Module) -> nn.Linear:
    """Return the `nn.Linear` that a head is, also as PEFT trains it whole (``modules_to_save``).

    Raises:
        UnsupportedModelError: the head is another module, such as one with an adapter or a quantized weight.
    """
    wrapper: Any = module
    whole, active = getattr(wrapper, "modules_to_save", None), getattr(wrapper, "active_adapters", [])
    if isinstance(whole, nn.ModuleDict) and len(active) == 1 and active[0] in whole:
        module = wrapper.original_module if wrapper.disable_adapters else whole[active[0]]
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    if type(module) is not nn.Linear or type(module.weight.data) is not Tensor or hooked:
        raise UnsupportedModelError(f"it is not a plain linear map but {type(module).__name__}")
    return module
