"""Selectors of models without values, and models without the layers whose memory does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from colm.choosing import Chosen, Step, keep_rows
from colm.config import SelectionConfig
from colm.errors import UnsupportedModelError
from colm.features.linear_maps import base_map, is_linear, map_sizes
from colm.features.locate import FUSED, NO_ATTENTION
from colm.features.one_token import observe_calls
from colm.features.site import ValueSite
from colm.features.value_rows import layer_config
from colm.selector import CoresetSelector


class LongestRows:
    """Keeps the longest rows, since numbers drawn in a dry run are all the same."""

    def choose(self, step: Step) -> Chosen:
        """Return as many rows as the step keeps."""
        rows = sorted(step.facts.learnable, key=lambda position: -step.facts.tokens[position])
        return keep_rows(step, dict.fromkeys(rows[: step.budget], 1.0))


def make_selector(model: Any, config: SelectionConfig, optimizer: Any) -> CoresetSelector:
    """Return a selector for a model of fake tensors. Call it inside a `DryRun`.

    The value outputs of a fused projection are normally found by their influence on the logits, which is unknown here.
    Their number follows from the config's heads, and memory depends only on that number.

    Raises:
        UnsupportedModelError: see `locate_value_site`.
    """
    try:
        return CoresetSelector(model, config, optimizer=optimizer)
    except UnsupportedModelError:
        if config.value_module is not None:
            raise
        fused = _last_fused(model)
        if fused is None:
            raise
    selector = CoresetSelector(model, replace(config, value_module=fused), optimizer=optimizer)
    site = selector.site
    assert site is not None
    outputs = map_sizes(base_map(dict(model.named_modules())[fused]))[0]
    values = _count_values(model, fused, outputs)
    if values < outputs:
        selector.site = site._replace(value_rows=torch.arange(outputs - values, outputs), out_features=values)
    return selector


def _last_fused(model: Any) -> str | None:
    """Return the last projection to run that computes queries or keys as well as values."""
    fused = {
        name: base_map(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in FUSED
        and is_linear(base_map(module))
        and not any(part in NO_ATTENTION for part in name.split("."))
    }
    calls = observe_calls(model, fused)
    return calls[-1][0] if calls else None


def _count_values(model: Any, name: str, outputs: int) -> int:
    """Return how many of the outputs of a fused projection are values."""
    config = layer_config(model, name)
    heads = int(getattr(config, "num_attention_heads", 1))
    if name.rpartition(".")[2] == "kv_b_proj":
        return heads * int(getattr(config, "v_head_dim", outputs // (2 * heads)))
    if name.rpartition(".")[2] == "kv_proj":
        return outputs // 2
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(outputs - heads * size) // 2  # queries of all heads, and as many keys as values


@contextmanager
def cut_layers(model: nn.Module, site: ValueSite | None) -> Iterator[None]:
    """Inside the block, keep only the value projection's layer, its predecessor, and the layers after it."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    first = site.layers[0] if site is not None and site.layers else None
    holder = next((held for held in lists if any(layer is first for layer in held)), None)
    if holder is None:
        yield
        return
    layers = list(holder)
    place = next(number for number, layer in enumerate(layers) if layer is first)
    original = holder._modules
    holder._modules = {str(number): layer for number, layer in enumerate(layers[max(0, place - 1) :])}
    try:
        yield
    finally:
        holder._modules = original
