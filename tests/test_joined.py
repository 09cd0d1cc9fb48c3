"""Kept rows joined to one row, without padding, have the losses and gradients of each row by itself."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from colm import CoresetSelector, LeanHead, SelectionConfig, example_mean
from colm.errors import ConfigError, UnsupportedModelError
from colm.joined import can_join, check_joined
from colm.losses import example_losses
from colm.step.pool import Pool, count_labelled
from tests.support.architectures import LAYOUTS, build_architecture
from tests.support.models import needs_task, one_row, ragged_batch, tiny_model, with_lora
from tests.support.pools import SIZES, SOURCES, pool_of_16

MODEL = tiny_model(num_hidden_layers=1)

APART = {
    "fused by head, alibi",
    "hybrid, last layers not attention",
    "hybrid, state space",
    "hybrid, gated delta",
    "hybrid, lightning",
    "hybrid, a block used several times",
    "separate, sinks",
    "fused, MPT",
    "cross-attention that does not run",
}
"""Layouts whose rows stay padded in transformers 5.24, without the kernels for convolutions."""


def gradients(model: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (losses * torch.linspace(0.5, 1.5, len(losses))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def alone(model: Any, pool: Pool, positions: list[int]) -> Tensor:
    """Return the rows' losses from one forward for each, without padding."""
    rows = [pool.collate([p]) for p in positions]
    return torch.cat([example_losses(model(input_ids=row["input_ids"]).logits, row["labels"]) for row in rows])


def joined_losses(model: Any, batch: dict[str, Any]) -> Tensor:
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return example_losses(logits, batch["labels"], batch["cu_seq_lens_q"])


def assert_same(model: Any, pool: Pool, positions: list[int], head: LeanHead | None, tolerance: float = 1e-5) -> None:
    def found() -> Tensor:
        batch = pool.join(positions)
        return joined_losses(model, batch) if head is None else head(model, batch)

    expected = alone(model, pool, positions)
    torch.testing.assert_close(found(), expected, rtol=tolerance, atol=tolerance)
    if not expected.requires_grad:
        return
    wanted, ours = gradients(model, expected), gradients(model, found())
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest) or 1.0
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=tolerance * scale, msg=name)


HEADS = [None, LeanHead(MODEL), LeanHead(MODEL, chunk_tokens=3)]


@settings(max_examples=30)
@given(data=st.data())
def test_any_rows(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    batch = ragged_batch(lengths, side=data.draw(st.sampled_from(["left", "right"])))
    size = batch["labels"].numel()
    told = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).view_as(batch["labels"])
    batch["labels"] = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | ~told, -100)
    pool = Pool(batch)
    positions = data.draw(st.permutations(range(len(lengths))))
    joined = pool.join(positions)
    assert joined["input_ids"].shape == joined["labels"].shape == (1, sum(lengths))
    assert joined["input_ids"][0].tolist() == [t for p in positions for t in one_row(batch, p)["input_ids"][0].tolist()]
    assert joined["position_ids"][0].tolist() == [place for p in positions for place in range(lengths[p])]
    assert joined["seq_idx"][0].tolist() == [i for i, p in enumerate(positions) for _ in range(lengths[p])]
    told_of = count_labelled(joined["labels"], joined["cu_seq_lens_q"]).tolist()
    assert told_of == [int(count_labelled(one_row(batch, p)["labels"])) for p in positions]
    assert "attention_mask" not in joined
    if max(lengths) > 1:  # a single token is not a row to learn from
        assert_same(MODEL, pool, positions, data.draw(st.sampled_from(HEADS)))


QUICK = {"separate, grouped-query", "fused by head, alibi", "Conv1D", "mixture of experts", "soft-capped logits"}


@pytest.mark.parametrize(
    "layout", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in LAYOUTS]
)
def test_a_check_decides_whether_a_model_keeps_rows_apart(layout: str) -> None:
    model_type, changes = LAYOUTS[layout]
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    model = build_architecture(model_type, **changes)
    try:
        check_joined(model)
    except UnsupportedModelError:
        assert layout in APART
        return
    with torch.no_grad():
        assert_same(model, Pool(ragged_batch([13, 9, 1, 16, 7])), [3, 0, 2, 1, 4], None, tolerance=1e-4)


def test_with_adapters_checkpointing_and_autocast() -> None:
    model = with_lora(tiny_model("phi3"))
    model.train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.enable_input_require_grads()
    pool = Pool(ragged_batch([5, 9, 1, 3]))
    check_joined(model)
    assert_same(model, pool, [1, 0, 3, 2], LeanHead(model))
    with torch.autocast("cpu", torch.bfloat16):
        check_joined(model)
        assert_same(model, pool, [1, 0, 3, 2], LeanHead(model), tolerance=3e-2)


def test_what_the_log_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colm")
    assert can_join(MODEL)
    assert caplog.messages == ["Kept rows are trained without padding, joined to one row per micro-batch."]
    assert not can_join(build_architecture("bloom"))
    assert "padding_free=True has no effect on this model, whose rows stay padded: a row's logits depend" in caplog.text
    chunked = tiny_model(num_hidden_layers=1)
    chunked.config.attention_chunk_size = 8192
    assert not can_join(chunked)
    assert caplog.messages[-1].endswith(
        "it attends within chunks, which are counted from the first of the joined rows."
    )
    assert not can_join(needs_task(tiny_model(num_hidden_layers=1)))
    assert "it does not run on joined rows (TypeError: " in caplog.messages[-1]


def take(model: Any, batches: Any = None, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    selector = CoresetSelector(model, SelectionConfig(features="none", keep_count=9, **changes), SIZES)
    batches = (
        [{key: value[i : i + 8] for key, value in pool_of_16().items()} for i in (0, 8)] if batches is None else batches
    )
    coreset = selector.select(batches, SOURCES)
    return coreset, selector.take(batches, coreset)


@pytest.mark.parametrize("weights", ["uniform", "represented"])
def test_a_step_of_your_own_loop(weights: Any) -> None:
    found = []
    for padding_free in (False, True):
        coreset, batches = take(MODEL, padding_free=padding_free, weights=weights)
        MODEL.zero_grad()
        for batch in batches:
            row_weights = batch.pop("row_weights", None)
            logits = MODEL(**{key: value for key, value in batch.items() if key != "labels"}).logits
            count, bounds = len(coreset.indices), batch.get("cu_seq_lens_q")
            example_mean(logits, batch["labels"], row_weights, num_examples=count, cu_seq_lens=bounds).backward()
        found.append((coreset.indices.tolist(), [p.grad.clone() for p in MODEL.parameters()]))
    assert found[0][0] == found[1][0]
    for ours, padded in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(ours, padded, rtol=1e-4, atol=1e-6)
    sizes = [batch["input_ids"].shape for batch in batches]
    assert all(rows == 1 for rows, _ in sizes)
    assert abs(sizes[0][1] - sizes[1][1]) <= 9


def test_masked_tokens_within_a_row_stay_masked() -> None:
    batch = pool_of_16()
    batch["attention_mask"][:, 1] = 0
    _, kept = take(MODEL, batch, padding_free=True)
    assert all("attention_mask" in each for each in kept)


def test_with_the_forward_reused_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="padding_free=True joins them; set one of them to False"):
        SelectionConfig(padding_free=True, reuse_forward=True)
