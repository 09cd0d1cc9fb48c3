"""Liger's kernels in the Trainers: all but its fused loss, which would hide the logits.

The fused loss replaces the model's forward, and with labels the model then returns no logits, from which the rows'
losses are computed. `SelectionConfig.train_head` saves the same memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import is_liger_kernel_available

from colm.errors import ConfigError

logger = logging.getLogger(__name__)

FUSED, GLOBAL = "fused_linear_cross_entropy", "cross_entropy"


def check_liger(args: Any) -> None:
    """Reject Liger's settings that replace the loss.

    Raises:
        ConfigError: a setting asks for such a kernel, or the package is missing.
    """
    if not getattr(args, "use_liger_kernel", False):
        return
    config = getattr(args, "liger_kernel_config", None) or {}
    if config.get(FUSED):
        raise ConfigError(
            f"liger_kernel_config[{FUSED!r}]=True hides the logits, from which the rows' losses are computed. Leave it "
            "out; train_head='chunked', or 'fused' on a GPU, takes as little memory."
        )
    if config.get(GLOBAL):
        raise ConfigError(
            f"liger_kernel_config[{GLOBAL!r}]=True replaces torch's cross-entropy everywhere by one that overwrites "
            "logits, which the selection reads. Leave it out."
        )
    if not is_liger_kernel_available():
        raise ConfigError("use_liger_kernel=True needs liger-kernel: pip install 'colm[fused]', or set it to False.")


@contextmanager
def layer_kernels_only(args: Any) -> Iterator[None]:
    """Within the block, the Trainer applies Liger's kernels without the fused loss, which is on by default."""
    config = getattr(args, "liger_kernel_config", None)
    if not getattr(args, "use_liger_kernel", False) or (config or {}).get(FUSED) is False:
        yield
        return
    logger.info("Liger's kernels are applied to the layers; its fused loss stays off, as it would hide the logits.")
    args.liger_kernel_config = {**(config or {}), FUSED: False}
    try:
        yield
    finally:
        args.liger_kernel_config = config
