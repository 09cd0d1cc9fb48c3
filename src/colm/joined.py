"""Whether a model can train rows that are joined to one, without padding: it must keep them apart.

transformers separates joined rows by position ids that begin again, in most attention layers. A model with its own
masks, positions or recurrent states may not, and would let a row read those before it. So a comparison decides.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from colm.errors import UnsupportedModelError, one_line
from colm.features.capture import changed_input, logits_of, model_inputs, undisturbed
from colm.features.head import output_module
from colm.features.precision import Precision
from colm.features.site import unwrap
from colm.step.pool import Pool
from colm.step.sharding import whole_shape

logger = logging.getLogger(__name__)

LENGTHS = (5, 23, 1, 40, 2, 12)
"""Tokens of the made-up rows: longer than the kernels of convolutions, and also single tokens."""


def check_joined(model: nn.Module) -> None:
    """Compare the logits of joined rows with those of padded rows, on made-up rows.

    Args:
        model: a causal language model, also within PEFT or DistributedDataParallel.

    Raises:
        UnsupportedModelError: the logits differ, or the model does not run on joined rows; says why.
    """
    caller: Any = unwrap(model)
    config = getattr(caller, "config", None)
    if getattr(config and config.get_text_config(), "attention_chunk_size", None):
        raise UnsupportedModelError("it attends within chunks, which are counted from the first of the joined rows")
    weight = caller.get_input_embeddings().weight
    width = max(LENGTHS)
    ids = (torch.arange(len(LENGTHS) * width).reshape(len(LENGTHS), width) * 7 + 3) % whole_shape(weight)[0]
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    rows = {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}
    padded = {key: value.to(weight.device) for key, value in rows.items()}
    pool = Pool(padded)
    joined = pool.join(range(len(pool)))
    precise = [weight.dtype.itemsize >= 4]

    def note(hidden: Tensor) -> Tensor:
        precise.append(hidden.dtype.itemsize >= 4 and not Precision.of(hidden.device.type).enabled)
        return hidden

    head = output_module(caller)
    with undisturbed(caller), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as PEFT's that it ignores position ids
        try:
            with changed_input(caller.get_input_embeddings() if head is None else head, note):
                expected = logits_of(caller(**model_inputs(caller, padded)))
            found = logits_of(caller(**{key: value for key, value in joined.items() if key != "labels"}))
        except Exception as error:  # modeling code raises errors of any kind
            raise UnsupportedModelError(f"it does not run on joined rows ({one_line(error)})") from error
    if found.shape[:2] != joined["input_ids"].shape or expected.shape[:2] != ids.shape:
        raise UnsupportedModelError("it gives no logits for each token")
    expected = expected[padded["attention_mask"].bool()].float()
    difference = (found[0].float() - expected).abs().max()
    # Rounding alone makes small differences; what another row contributes is as small in a model that is not trained.
    exact = 1e-4 if weight.device.type == "cpu" else 2e-3  # TF32
    tolerance = exact if all(precise) else 2e-2
    if not bool(difference <= tolerance * expected.abs().max().clamp_min(1e-6)):
        raise UnsupportedModelError("a row's logits depend on the rows that it is joined to")


def can_join(model: nn.Module) -> bool:
    """Return whether the model can train joined rows; the log says so, or why not. See `check_joined`."""
    try:
        check_joined(model)
    except UnsupportedModelError as error:
        logger.info("padding_free=True has no effect on this model, whose rows stay padded: %s.", error)
        return False
    logger.info("Kept rows are trained without padding, joined to one row per micro-batch.")
    return True
