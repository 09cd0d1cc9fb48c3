"""The paper's zeroth-order estimate of the last value projection's gradient (SPSA).

Perturbing the weight by eps Z changes the map's output by eps x Z^T. We add that to the output and
leave the weight unchanged. The trunk runs once per micro-batch: at the input of the layer with the
projection, the batch is repeated, one copy for each direction and sign.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from colm.features.capture import run_to_losses, undisturbed
from colm.features.factors import renumber
from colm.features.locate import locate_value_site
from colm.features.site import ValueSite, unwrap
from colm.features.value_rows import layer_config
from colm.step.pool import IGNORE, Pool
from colm.step.transfer import send
from colm.types import Batch

logger = logging.getLogger(__name__)


def spsa_gradients(
    model: nn.Module,
    batch: Batch,
    *,
    probes: int = 1,
    eps: float = 1e-3,
    generator: torch.Generator,
    value_module: str | None = None,
) -> Tensor:
    """Estimate each example's gradient of the last value projection by finite differences.

    Row i is the mean over probes of (L_i(W + eps Z) - L_i(W - eps Z)) / (2 eps) Z. All examples share
    the directions Z, which have standard normal entries. The rows are therefore linear combinations
    of `probes` directions; with one probe they lie on a line.

    Args:
        model: a Hugging Face causal language model, bare, with PEFT adapters, or in DDP.
        batch: ``input_ids``, ``labels`` (n, T), usually ``attention_mask``, on the model's device.
        probes: number of directions, at least 1.
        eps: step size of the finite difference, in units of the weight.
        generator: draws the directions; a CPU generator, so that every device draws the same.
        value_module: path of another Linear to use.

    Returns:
        (n, D) float32, with rows laid out as in `value_gradients`.

    Raises:
        UnsupportedModelError: no value projection was found.
        DataError: the batch lacks a key.

    Source: CoLM, section 4.3, equation 9, after MeZO (Malladi et al. 2023).
    """
    site = site_for_copies(model, locate_value_site(model, value_module))
    pool = Pool(batch)
    directions = draw_directions(site, probes, generator)
    features = spsa_features(model, site, pool, [list(range(len(pool)))], directions, eps)
    return features.rows(torch.arange(len(pool)))


def site_for_copies(model: nn.Module, site: ValueSite) -> ValueSite:
    """Return the site, without its layers if a batch can be repeated only at the input of the model."""
    if site.layers and not _repeats_in_layers(unwrap(model), site):
        logger.info("A batch cannot be repeated at the input of the layers of %s; SPSA reruns the trunk.", site.name)
        return site._replace(layers=())
    return site


def _repeats_in_layers(model: Any, site: ValueSite) -> bool:
    """True if each copy of a batch repeated at the input of the site's layer has the losses of the batch.

    A layer may receive tensors whose first dimension only looks like the row (say, with as many rows as heads), or
    hidden states whose rows are in another dimension.
    """
    heads = getattr(layer_config(model, site.name), "num_attention_heads", None)
    embedding = model.get_input_embeddings().weight
    tolerance = 1e-4 if embedding.dtype in (torch.float32, torch.float64) else 2e-2
    generator = torch.Generator().manual_seed(0)
    for rows in {3, heads if isinstance(heads, int) else 4}:
        tokens = 6 if rows == 5 else 5  # rows = tokens would be ambiguous
        ids = torch.randint(3, 8, (rows, tokens), generator=generator).to(embedding.device)
        used = torch.arange(tokens, device=ids.device) < tokens - torch.arange(rows, device=ids.device)[:, None] % 3
        batch = {"input_ids": ids, "attention_mask": used.long(), "labels": ids.masked_fill(~used, IGNORE)}
        try:
            with undisturbed(model):
                once = run_to_losses(model, site, batch).losses
                twice = run_to_losses(model, site, batch, copies=2).losses
        except Exception as error:  # modeling code can raise anything on an unexpected shape
            logger.info("Repeating %d rows at the input of a layer failed (%s).", rows, error)
            return False
        if not torch.allclose(twice, once.repeat(2), rtol=tolerance, atol=tolerance):
            return False
    return True


def draw_directions(site: ValueSite, probes: int, generator: torch.Generator) -> Tensor:
    """Draw `probes` standard normal directions, (probes, d_out, d_in) float32 on the CPU."""
    return torch.randn((probes, site.out_features, site.in_features), generator=generator)


class SpsaFeatures:
    """Estimates stored as slopes along a few shared directions: (n, probes) and (probes, D) instead of (n, D).

    Args:
        slopes: (n, probes) float32, the derivative of each row's loss along each direction.
        directions: (probes, d_out, d_in) float32.
    """

    def __init__(self, slopes: Tensor, directions: Tensor) -> None:
        self.slopes = slopes
        self._directions = directions.flatten(1)

    @property
    def dim(self) -> int:
        """D, the number of coordinates per example."""
        return self._directions.shape[1]

    @property
    def device(self) -> torch.device:
        """Device that holds the rows."""
        return self.slopes.device

    def __len__(self) -> int:
        return len(self.slopes)

    def rows(self, indices: Tensor) -> Tensor:
        """Return the rows `indices` (k,) int64 as (k, D) float32: the mean of slope times direction."""
        return self.slopes[send(indices, self.device)] @ self._directions / len(self._directions)

    def columns(self, indices: Tensor, columns: Tensor) -> Tensor:
        """Return the rows `indices` (k,) int64 at the coordinates `columns` (h,) int64, as (k, h) float32."""
        return self.slopes[send(indices, self.device)] @ self._directions[:, columns] / len(self._directions)

    def finite(self) -> Tensor:
        """Return which rows are finite, (n,) bool."""
        return torch.isfinite(self.slopes.square()).all(1)


def spsa_features(
    model: nn.Module,
    site: ValueSite,
    pool: Pool,
    groups: list[list[int]],
    directions: Tensor,
    eps: float,
    *,
    head_chunk_tokens: int | None = None,
) -> SpsaFeatures:
    """Return the features of a pool from one forward per group of rows.

    Args:
        model: see `spsa_gradients`.
        site: from `site_for_copies`.
        pool: the rows.
        groups: row positions of each micro-batch; features are numbered by position.
        directions: from `draw_directions`.
        eps: step size of the finite difference.
        head_chunk_tokens: labeled tokens that go through the output head at a time.
    """
    probes = directions.shape[0]
    directions = send(directions, pool.device)  # where the model runs; offloaded weights are elsewhere
    slopes = torch.zeros(sum(map(len, groups)), probes, dtype=directions.dtype, device=pool.device)
    for group, numbers in zip(groups, renumber(groups), strict=True):
        batch = _unambiguous(pool.collate(group, side="right"))
        with undisturbed(model):
            captured = run_to_losses(
                model,
                site,
                batch,
                change_output=lambda inputs, output: _perturb(inputs, output, site, directions, eps),
                copies=2 * probes,
                head_chunk_tokens=head_chunk_tokens,
            )
        plus, minus = captured.losses.view(2, probes, len(group))
        slopes[numbers] = ((plus - minus) / (2 * eps)).T.to(slopes.dtype)
    return SpsaFeatures(slopes, directions)


def _perturb(inputs: Tensor, output: Tensor, site: ValueSite, directions: Tensor, eps: float) -> Tensor:
    """Add +eps x Z_p^T to the first half of the copies and -eps x Z_p^T to the second, in float32."""
    probes = directions.shape[0]
    copies = inputs.reshape(2, probes, -1, inputs.shape[-1])  # the trunk's copies are identical: one per sign and probe
    dtype = torch.promote_types(output.dtype, directions.dtype)
    change = eps * torch.einsum("spti,poi->spto", copies.to(dtype), directions.to(dtype))
    change[1].neg_()
    perturbed = output.to(dtype)
    if site.value_rows is None:
        perturbed = perturbed + change.reshape(output.shape)
    else:
        flat = perturbed.reshape(-1, output.shape[-1]).clone()
        flat[:, site.value_rows] += change.reshape(-1, change.shape[-1])
        perturbed = flat.reshape(output.shape)
    return perturbed.to(output.dtype)


def _unambiguous(batch: Batch) -> Batch:
    """Pad by one column if rows = tokens, so that a (tokens, d) tensor is not mistaken for one with rows first."""
    rows, tokens = batch["input_ids"].shape
    if rows != tokens:
        return batch
    fill = {"labels": IGNORE}
    padded = dict(batch)
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == tokens:
            column = value.new_full((rows, 1, *value.shape[2:]), fill.get(key, 0))
            padded[key] = torch.cat([value, column], 1)
    return padded
