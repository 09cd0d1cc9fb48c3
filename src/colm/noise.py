"""The gradient noise scale: with how many rows in a step its gradient is as much signal as noise.

B = tr(Sigma) / |G|^2, where rows' gradients have mean G and covariance Sigma. A step of B rows makes half the progress
of a step of unlimited rows; one of b rows makes b / (b + B) of it.

    the kept rows of a step (K,), every `noise_every` steps
      -> gradients of the last value projection, in the optimizer's metric, sketched, from all ranks (K, h)
      -> inner products (K, K)
      -> sums over pairs of rows, by source and of all
      -> added to those of earlier measurements, which fade
      -> ratios

Source: McCandlish, Kaplan, Amodei et al., 2018, arXiv:1812.06162, the "simple" noise scale.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colm.config import SelectionConfig
from colm.config_parts import Features
from colm.errors import UnsupportedModelError
from colm.features.adam import adam_constants, adam_scale
from colm.features.factors import blocks
from colm.features.locate import locate_value_site
from colm.features.selection_pass import run_selection_pass
from colm.features.shorten import draw_sketch
from colm.features.site import ValueSite
from colm.step.pool import Pool
from colm.step.pool_info import PoolFacts, group_by_source
from colm.step.ranks import gather_rows
from colm.step.sharding import is_sharded
from colm.types import Coreset, NoiseScale

logger = logging.getLogger(__name__)

HALF_LIFE = 4.0
"""Measurements after which one counts half: a single one is noisy, and the noise scale changes as the loss falls."""

CLEAR = 2.0
"""Standard errors by which |G|^2 must exceed 0 for the ratio to mean anything."""

SKETCH = 4096
"""Coordinates of a sketched gradient: the error of an inner product is about 1.6 % of the product of the norms."""

EXACT = Features("exact", adam=False, value_module=None, spsa=None)


class NoiseTerms(NamedTuple):
    """Sums over n rows with gradients g_i; those of several measurements add up, each weighted by n - 1."""

    spread: float  # estimates (n - 1) tr(Sigma)
    shared: float  # estimates (n - 1) |G|^2; may be negative
    variance: float  # of `shared`, if G were 0


NOTHING = NoiseTerms(0.0, 0.0, 0.0)


def noise_terms(products: Tensor) -> NoiseTerms:
    """Estimate the trace of the covariance and the squared mean of rows' gradients, both without bias.

    For independent rows, |G|^2 is the mean inner product of two rows, (|sum g|^2 - sum |g_i|^2) / (n (n - 1)), and
    tr(Sigma) is the sample variance, sum |g_i|^2 / n - |G|^2 with this estimate of |G|^2. If G is 0, inner products of
    different pairs are uncorrelated, so the variance of their sum is the sum of their squares.

    Args:
        products: (n, n) float64, the inner products g_i . g_j.

    Returns:
        n - 1 times the estimates; fewer than two rows have none.
    """
    n = len(products)
    if n < 2:
        return NOTHING
    own = products.diagonal()
    pairs = products - torch.diag(own)
    shared = pairs.sum().item() / n
    spread = own.sum().item() * (n - 1) / n - shared
    return NoiseTerms(max(0.0, spread), shared, 2 * pairs.square().sum().item() / n**2)


def fade(before: NoiseTerms, found: NoiseTerms) -> NoiseTerms:
    """Add a measurement to the sums of earlier ones, which lose half their weight in `HALF_LIFE` measurements."""
    keep = 0.5 ** (1 / HALF_LIFE)
    return NoiseTerms(
        keep * before.spread + found.spread,
        keep * before.shared + found.shared,
        keep**2 * before.variance + found.variance,
    )


def noise_ratio(terms: NoiseTerms) -> float | None:
    """Return the noise scale in rows; None while |G|^2 is not clearly above 0.

    >>> noise_ratio(NoiseTerms(spread=60.0, shared=2.0, variance=0.25))
    30.0
    >>> noise_ratio(NoiseTerms(spread=60.0, shared=2.0, variance=4.0))
    """
    clear = terms.shared > CLEAR * sqrt(terms.variance)
    return terms.spread / terms.shared if clear else None


class _Sums(NamedTuple):
    """The sums of all measurements so far."""

    adam: bool  # in Adam's metric; gradients as they are have other units
    rows: int  # of the last one
    overall: NoiseTerms
    sources: dict[str, NoiseTerms]

    def scale(self) -> NoiseScale:
        ratios = {name: noise_ratio(terms) for name, terms in sorted(self.sources.items())}
        known = {name: value for name, value in ratios.items() if value is not None}
        return NoiseScale(self.rows, noise_ratio(self.overall), known)


class NoiseMeter:
    """Measures the noise scale of the rows that are trained, and keeps the sums of earlier measurements.

    The sums change only in `commit`. If a model cannot be measured, the meter logs why once and stays off.

    Args:
        config: says how often, and how the loss weighs rows.
    """

    def __init__(self, config: SelectionConfig) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget all measurements, and what is known of the model."""
        self._sums: _Sums | None = None
        self._pending: _Sums | None = None
        self._site: ValueSite | None = None
        self._off = False

    @property
    def scale(self) -> NoiseScale | None:
        """The noise scale after the committed measurements; None before the first."""
        return None if self._sums is None else self._sums.scale()

    def due(self, step: int) -> bool:
        """Return whether the step after `step` others is measured."""
        every = self._config.noise_every
        return bool(every) and step > 0 and step % every == 0 and not self._off

    def measure(
        self, model: nn.Module, site: ValueSite | None, optimizer: Any, pool: Pool, facts: PoolFacts, coreset: Coreset
    ) -> NoiseScale | None:
        """Measure the kept rows, and return the noise scale with them; None if the model cannot be measured.

        Draws nothing, and leaves gradients, modes and buffers as they are. All ranks must call it.

        Args:
            model: as trained.
            site: the last value projection, or None to locate it.
            optimizer: its second moments scale the gradients, if it has any.
            pool: this rank's rows.
            facts: of all ranks' rows.
            coreset: the rows to measure; rows without a label do not count.
        """
        self._pending = None
        if is_sharded(model):
            self._turn_off("the model's weights are sharded")
            return None
        kept = [p for p in coreset.indices.tolist() if facts.labelled[p]]
        local = [p - facts.first for p in kept if facts.is_local(p)]
        found, adam, why = None, False, "another rank cannot measure its rows, or has no second moments of them"
        try:
            site = site or self._locate(model)
            scale = adam_scale(site, optimizer)
            if scale is None and _splits_moments(optimizer, site):
                raise UnsupportedModelError("the optimizer splits its second moments over ranks")
            adam = scale is not None
            found = self._sketch(model, site, pool, local, scale)
        except Exception as error:  # modeling code can raise anything, and training may go on without this pass
            why = str(error).partition("\n")[0] or type(error).__name__
        state = torch.tensor([[found is not None, adam]], device=pool.device).long()
        states = torch.cat(gather_rows(state)).tolist()
        if found is None or any(other != [1, int(adam)] for other in states):
            self._turn_off(why)
            return None
        gradients = torch.cat(gather_rows(found)).cpu().double()
        weight = dict(zip(coreset.indices.tolist(), coreset.weights.tolist(), strict=True))
        counts = facts.labelled if self._config.loss == "token" else weight
        self._pending = self._add(gradients, kept, [counts[p] for p in kept], facts, adam=adam)
        return self._pending.scale()

    def commit(self) -> None:
        """Keep the last measurement, if it was not kept yet."""
        if self._pending is not None:
            self._sums, self._pending = self._pending, None

    def state_dict(self) -> dict[str, Any]:
        """Return the committed sums; empty before the first measurement."""
        if self._sums is None:
            return {}
        sources = {name: list(terms) for name, terms in self._sums.sources.items()}
        return self._sums._asdict() | {"overall": list(self._sums.overall), "sources": sources}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums = self._pending = None
        if state:
            sources = {name: NoiseTerms(*terms) for name, terms in state["sources"].items()}
            self._sums = _Sums(state["adam"], state["rows"], NoiseTerms(*state["overall"]), sources)

    def _locate(self, model: nn.Module) -> ValueSite:
        if self._site is None:
            self._site = locate_value_site(model, self._config.value_module)
        return self._site

    def _sketch(self, model: nn.Module, site: ValueSite, pool: Pool, rows: list[int], scale: Tensor | None) -> Tensor:
        """Return the gradients of this rank's rows, (len(rows), h) float32."""
        limits = replace(self._config.selection_pass, labels=None)
        features = run_selection_pass(model, site, pool, rows, EXACT, limits, generator=torch.Generator())
        device, dim = features.device, features.dim
        sketch = draw_sketch(dim, SKETCH, device)
        parts = [torch.zeros(0, min(dim, SKETCH), device=device)]
        with torch.autocast(device.type, enabled=False):  # the caller's is for the model alone
            for chunk in blocks(torch.arange(len(features)), dim, device):
                gradients = features.rows(chunk)
                if scale is not None:
                    gradients *= scale.to(device)
                parts.append(gradients if sketch is None else sketch.apply(gradients))
        return torch.cat(parts)

    def _add(self, gradients: Tensor, kept: list[int], counts: list[float], facts: PoolFacts, *, adam: bool) -> _Sums:
        """Return the sums with kept rows that have gradients (K, h) float64 and count `counts` in the loss."""
        finite = [row for row, usable in enumerate(gradients.isfinite().all(1).tolist()) if usable]
        kept = [kept[row] for row in finite]
        weights = torch.tensor([counts[row] for row in finite], dtype=torch.float64)
        weights = weights / weights.mean().clamp_min(torch.finfo(weights.dtype).tiny)
        gradients = gradients[finite] * weights[:, None]  # the step's gradient is the mean of these
        products = gradients @ gradients.T
        place = {p: index for index, p in enumerate(kept)}
        own = {name: [place[p] for p in rows] for name, rows in group_by_source(kept, facts).items()}
        found = {name: noise_terms(products[rows][:, rows]) for name, rows in own.items()}
        before = self._sums
        if before is None or before.adam != adam:
            before = _Sums(adam, 0, NOTHING, {})
        names = sorted({*before.sources, *found})
        sources = {name: fade(before.sources.get(name, NOTHING), found.get(name, NOTHING)) for name in names}
        return _Sums(adam, len(kept), fade(before.overall, noise_terms(products)), sources)

    def _turn_off(self, why: str) -> None:
        self._off = True
        logger.info("The gradient noise scale is not measured: %s. Set noise_every=0 to omit it.", why.rstrip("."))


def _splits_moments(optimizer: Any, site: ValueSite) -> bool:
    """Return whether an Adam-like optimizer has state, but none of the trained weight itself, as ZeRO's has."""
    state = getattr(optimizer, "state", None)
    if not state or not site.weight.requires_grad or state.get(site.weight):
        return False
    return adam_constants(optimizer, site.weight) is not None
