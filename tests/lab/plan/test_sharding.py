"""What each GPU holds of a sharded model: sizes counted by hand, and fully_shard's allocations in their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm import SelectionConfig
from colm.lab.plan.counting import DryRun
from colm.lab.plan.fully_shard import GATHERED, UNREDUCED, FullyShard, Sharded
from colm.lab.plan.outlook import Outlook, Request
from colm.lab.plan.shapes import ModelSpec, Shapes, build_shapes
from colm.lab.plan.sharding import Held, Sharding, hold, shard_shape
from colm.lab.plan.steps import Rows

HIDDEN, INNER, VOCABULARY, LAYERS = 8, 20, 30, 3
LAYER = 2 * HIDDEN**2 + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INNER + 2 * HIDDEN
"""Weights: queries and output, keys and values of half as many heads, the feed-forward part, two norms."""

ROOT = 2 * VOCABULARY * HIDDEN + HIDDEN
ALL = LAYERS * LAYER + ROOT


def shape() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return build_shapes(ModelSpec("x", "float32"), shape())


@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 64))
def test_a_shard_is_the_first_chunk(rows: int, columns: int, gpus: int) -> None:
    weight = torch.empty(rows, columns)
    assert shard_shape(weight, gpus) == weight.chunk(gpus)[0].shape


def test_sizes_counted_by_hand(shapes: Shapes) -> None:
    buffers = shapes.buffers
    assert hold(shapes, "adamw_torch_fused") == Held(4 * ALL + buffers, 8 * ALL, 0, 4 * ALL)
    found = hold(shapes, "adamw_torch_fused", Sharding("ddp", 4))
    assert (found.weights, found.unreduced, found.lasting) == (4 * ALL + buffers, 4 * ALL, 4 * ALL)
    # Of 30 rows, 4 GPUs hold at most 8; of 20 and 8 and 4 rows 5, 2 and 1.
    shard = LAYERS * LAYER // 4 + 2 * 8 * HIDDEN + HIDDEN // 4
    assert hold(shapes, "adamw_torch_fused", Sharding("fsdp2", 4)) == Held(4 * shard + buffers, 8 * shard, 0, 4 * shard)
    part = ALL // 4
    assert ALL % 8 == 0  # nothing to pad
    states = {"optimizer": 12 * part, "within_step": 4 * part}
    zero = {stage: hold(shapes, "adamw_torch_fused", Sharding(f"zero{stage}", 4, bucket=100)) for stage in (1, 2, 3)}
    assert zero[1] == Held(weights=4 * ALL + buffers, gradients=4 * ALL, **states)
    assert zero[2] == Held(weights=4 * ALL + buffers, gradients=4 * part, unreduced=400, **states)
    whole = {"gathered": 4 * ALL, "unreduced": 400, "lasting": 400}
    assert zero[3] == Held(weights=4 * part + buffers, gradients=4 * part, **states, **whole)


def test_limits_of_zero(shapes: Shapes) -> None:
    def zero(stage: int, **options: Any) -> Held:
        return hold(shapes, "sgd", Sharding(f"zero{stage}", 2, **options))

    norms = (2 * LAYERS + 1) * HIDDEN
    assert zero(3, live=10, persistent=HIDDEN).gathered == 4 * (norms + 10)
    assert zero(3, live=10, persistent=0).gathered == 40
    assert zero(2, bucket=None).unreduced == 4 * HIDDEN**2
    assert zero(2, bucket=50, overlap=True).unreduced == 400
    assert (zero(1, bucket=50).unreduced, zero(1, bucket=50, overlap=True).unreduced) == (0, 400)


def test_mixed_precision_keeps_trained_weights_in_float32() -> None:
    cast = build_shapes(ModelSpec("x", "bfloat16", cast=torch.bfloat16), shape())
    sharded = hold(cast, "adamw_torch_fused", Sharding("fsdp2", 2))
    assert sharded.optimizer == 2 * (sharded.weights - cast.buffers) == 2 * sharded.gradients == 8 * ALL // 2
    zero = hold(cast, "adamw_torch_fused", Sharding("zero2", 2, bucket=1))
    assert (zero.weights - cast.buffers, zero.gradients, zero.optimizer) == (2 * ALL, ALL, 6 * ALL)


def peaks(shapes: Shapes, sharding: Sharding, *, backward: bool, accumulated: bool = False) -> list[tuple[str, int]]:
    """Return part by part how much is live at most, in a pass over one row."""
    ids = torch.ones(1, 4, dtype=torch.int64)
    most: dict[str, int] = {}

    class Watched(DryRun):
        def label(self, tensor: torch.Tensor, part: str) -> None:
            super().label(tensor, part)
            most[part] = max(most.get(part, 0), self._live_parts[part])

    sharded = Sharded.of(shapes)
    with Watched(shapes.fake) as dry, FullyShard(dry, sharded, sharding, accumulated=accumulated).running():
        with torch.set_grad_enabled(backward):
            logits = shapes.model(input_ids=ids, use_cache=False).logits
        if backward:
            logits.sum().backward()
        left = sum(dry._live_parts[part] for part in (GATHERED, UNREDUCED))
    return [*sorted(most.items()), ("left", left)]


def test_fully_shard_gathers_two_layers_and_the_root(shapes: Shapes) -> None:
    # Two GPUs divide all rows evenly, so nothing is padded. While a layer's weights are copied out of what was
    # gathered, the root's are whole too.
    forward = dict(peaks(shapes, Sharding("fsdp2", 2), backward=False))
    assert forward == {GATHERED: 4 * (ROOT + max(ROOT, 2 * LAYER)), "left": 4 * ROOT}
    both = dict(peaks(shapes, Sharding("fsdp2", 2), backward=True))
    assert both[GATHERED] == 4 * (ROOT + max(ROOT, 2 * LAYER))
    # The root's gradients and those of a layer are whole when the next reduction copies them; one before it is held.
    assert 4 * (ROOT + LAYER) < both[UNREDUCED] <= 4 * (2 * ROOT + 2 * LAYER)
    assert both["left"] == 0


def test_deferred_gradients_are_whole(shapes: Shapes) -> None:
    now, later = (
        dict(peaks(shapes, Sharding("fsdp2", 2, deferred=deferred), backward=True, accumulated=True))[UNREDUCED]
        for deferred in (False, True)
    )
    assert now < 4 * ALL <= later


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_parts_add_up(engine: str) -> None:
    sharding = Sharding(engine, 2, bucket=1000)
    selection = SelectionConfig(noise_every=0, features="mean_hidden")
    outlook = Outlook(Request(ModelSpec("x", "float32"), selection, Rows(8), 4, 1, sharding=sharding), shape())
    way = outlook.coreset_step(4, 1, time=False)
    training = way.gradients + way.gathered + way.unreduced + way.activations
    assert way.peak == way.parameters + way.optimizer + max(training, way.selection)
    assert 0 <= way.logits <= way.activations
    assert way.selection > way.passing > 0
    assert outlook.traffic(4, 1, sources=1) is not None
