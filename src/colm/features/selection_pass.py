"""The selection pass: compute the configured features, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from colm import config_parts
from colm.config_parts import Pass
from colm.features.baselines import gradient_norm_features, last_hidden_features, loss_features, mean_hidden_features
from colm.features.exact import exact_features
from colm.features.site import ValueSite
from colm.features.spsa import draw_directions, spsa_features
from colm.step.pool import Pool
from colm.step.sharding import missing_forwards
from colm.types import Features

FEATURES = {
    "exact": exact_features,
    "mean_hidden": mean_hidden_features,
    "last_hidden": last_hidden_features,
    "loss": loss_features,
    "gradient_norm": gradient_norm_features,
}
"""Feature functions by config name, all with the same signature; SPSA also needs directions."""

GRADIENTS = ("exact", "spsa")
"""Gradient features: Adam can turn them into steps, and their largest coordinates characterize a source."""


def tokens_at_a_time(limits: Pass, pool: Pool) -> int:
    """Return how many padded tokens go through the trunk at a time."""
    return limits.tokens or pool.largest_batch_tokens()


def run_selection_pass(
    model: nn.Module,
    site: ValueSite,
    pool: Pool,
    rows: list[int],
    wanted: config_parts.Features,
    limits: Pass,
    *,
    generator: torch.Generator,
    recording: Callable[[list[list[int]]], AbstractContextManager[None]] | None = None,
) -> Features:
    """Return the features of `rows`, numbered by position.

    Args:
        model: see `value_gradients`.
        site: from `locate_value_site`.
        pool: this rank's rows.
        rows: positions in the pool.
        wanted: names the features.
        limits: the sizes of the pass.
        generator: draws SPSA's directions; the same on every rank.
        recording: takes the row positions of each micro-batch; returns a context that watches their forwards.
    """
    max_tokens = tokens_at_a_time(limits, pool)
    if limits.labels is not None:
        pool = pool.cut_behind(limits.labels)
    if wanted.spsa is not None:
        directions = draw_directions(site, wanted.spsa.probes, generator)
        # The last layer sees 2 * probes copies of each row, so each micro-batch holds fewer rows.
        max_tokens = max(1, max_tokens // wanted.spsa.probes)

    def run(groups: list[list[int]]) -> Features:
        chunk = limits.head_chunk_tokens
        if wanted.spsa is not None:
            return spsa_features(model, site, pool, groups, directions, wanted.spsa.eps, head_chunk_tokens=chunk)
        return FEATURES[wanted.kind](model, site, pool, groups, head_chunk_tokens=chunk)

    groups = list(pool.group(rows, max_tokens))
    more = missing_forwards(model, len(groups), pool.device)
    precision: AbstractContextManager[object] = nullcontext()
    if limits.dtype is not None:
        precision = torch.autocast(pool.device.type, dtype=getattr(torch, limits.dtype))
    with precision:
        with recording(groups) if recording is not None else nullcontext():
            features = run(groups)
        shortest = pool.by_length(range(len(pool)))[-1]
        for _ in range(more):
            run([[shortest]])
    return features
