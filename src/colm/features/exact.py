"""Exact per-example gradients of the last value projection, without a full backward pass.

Each micro-batch needs one forward, without gradients up to the projection's output. From there to
the loss, autograd records a graph, and one backward of the summed per-example losses gives delta_t,
the gradient at each position's output. Example i's weight gradient is sum_t delta_t x_t^T.
"""

from __future__ import annotations

from torch import Tensor, nn

from colm.features.capture import output_gradient, run_to_losses, undisturbed
from colm.features.factors import GradientPiece, PieceFeatures, gradient_piece, multiply_factors, renumber
from colm.features.locate import locate_value_site
from colm.features.site import ValueSite
from colm.step.pool import Pool
from colm.types import Batch


def value_gradients(
    model: nn.Module, batch: Batch, *, value_module: str | None = None, head_chunk_tokens: int | None = None
) -> Tensor:
    """Return each example's gradient of the trainable weight of the last value projection.

    Row i is the gradient of example i's mean labeled-token loss with respect to LoRA's B or, without
    LoRA, the projection's value rows, flattened row-major as (d_out, d_in). Dropout is off. Rows are
    first aligned to the left edge, so the result does not depend on padding.

    Args:
        model: a Hugging Face causal language model, bare, with PEFT adapters, or in DDP.
        batch: ``input_ids``, ``labels`` (n, T), usually ``attention_mask``, on the model's device.
        value_module: path of another Linear to use.
        head_chunk_tokens: labeled tokens that go through the output head at a time.

    Returns:
        (n, D) float32 on the model's device; rows without labeled tokens are zero.

    Raises:
        UnsupportedModelError: no value projection was found.
        DataError: the batch lacks a key.

    Source: CoLM, section 4.3, which estimates this gradient by SPSA; the exact gradient costs about the same.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8,
        ...     num_hidden_layers=2, num_attention_heads=2))
        >>> ids = torch.arange(12).view(3, 4)
        >>> value_gradients(model, {"input_ids": ids, "labels": ids}).shape
        torch.Size([3, 64])
    """
    site = locate_value_site(model, value_module)
    aligned = _align(batch)
    with undisturbed(model):
        delta, inputs = _delta_and_inputs(model, site, aligned, head_chunk_tokens)
        return multiply_factors(delta, inputs)


def exact_features(
    model: nn.Module, site: ValueSite, pool: Pool, groups: list[list[int]], *, head_chunk_tokens: int | None = None
) -> PieceFeatures:
    """Return the features of a pool from one forward and a short backward per group of rows.

    Args:
        model: see `value_gradients`.
        site: from `locate_value_site`.
        pool: the rows.
        groups: row positions of each micro-batch; features are numbered by position.
        head_chunk_tokens: see `value_gradients`.
    """
    pieces = [exact_piece(model, site, pool, group, head_chunk_tokens=head_chunk_tokens) for group in groups]
    # If the model is spread over several devices, the projection may not be on the batch's.
    device = pieces[0].device if pieces else pool.device
    return PieceFeatures(pieces, renumber(groups), site.dim, device)


def exact_piece(
    model: nn.Module, site: ValueSite, pool: Pool, group: list[int], *, head_chunk_tokens: int | None = None
) -> GradientPiece:
    """Return the gradients of one micro-batch of the pass."""
    with undisturbed(model):
        batch = pool.collate(group, side="right")
        delta, inputs = _delta_and_inputs(model, site, batch, head_chunk_tokens)
        return gradient_piece(delta, inputs)


def _delta_and_inputs(
    model: nn.Module, site: ValueSite, batch: Batch, head_chunk_tokens: int | None
) -> tuple[Tensor, Tensor]:
    captured = run_to_losses(model, site, batch, start_graph=True, head_chunk_tokens=head_chunk_tokens)
    delta = output_gradient(captured)
    if site.value_rows is not None:
        delta = delta[..., site.value_rows]
    return delta.detach(), captured.inputs


def _align(batch: Batch) -> Batch:
    pool = Pool(batch)
    return pool.collate(range(len(pool)), side="right")
