"""The gradient noise scale: its estimators, and its measurement in a selection."""

from __future__ import annotations

import logging
from copy import deepcopy
from math import isclose
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.features.exact import value_gradients
from colm.noise import HALF_LIFE, NOTHING, NoiseMeter, NoiseTerms, fade, noise_ratio, noise_terms
from tests.support.models import ragged_batch, tiny_model
from tests.support.pools import LENGTHS, SIZES, SOURCES, pool_of_16

Rows = list[list[float]]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def slowly(rows: Rows) -> NoiseTerms:
    """The estimators, one pair of rows and one coordinate at a time."""
    n = len(rows)
    if n < 2:
        return NOTHING
    pairs = [dot(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j]
    squared_mean = sum(pairs) / (n * (n - 1))
    means = [sum(column) / n for column in zip(*rows, strict=True)]
    trace = sum((value - mean) ** 2 for row in rows for value, mean in zip(row, means, strict=True)) / (n - 1)
    variance = 4 / n**2 * sum(dot(rows[i], rows[j]) ** 2 for i in range(n) for j in range(i))
    return NoiseTerms((n - 1) * trace, (n - 1) * squared_mean, variance)


def terms_of(rows: torch.Tensor) -> NoiseTerms:
    return noise_terms(rows @ rows.T)


numbers = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(st.integers(1, 4).flatmap(lambda d: st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=1, max_size=7)))
def test_the_terms_are_those_written_out(rows: Rows) -> None:
    found, expected = terms_of(torch.tensor(rows, dtype=torch.float64)), slowly(rows)
    size = max(1.0, max(dot(row, row) for row in rows))
    assert found.spread >= 0
    for mine, theirs in zip(found, expected, strict=True):
        assert isclose(mine, theirs, rel_tol=1e-9, abs_tol=1e-10 * size**2)
    squares = sum(dot(row, row) for row in rows) / len(rows)
    if len(rows) > 1:  # the two estimates split the mean square of the rows
        assert isclose((found.spread + found.shared) / (len(rows) - 1), squares, rel_tol=1e-9, abs_tol=1e-10 * size)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.ones(1, 3), None),  # one row has no pair
        (torch.zeros(0, 3), None),
        (torch.zeros(8, 3), None),
        (torch.ones(8, 3), 0.0),  # identical rows are without noise
        (torch.eye(8), None),  # nothing is shared
        (torch.ones(2, 3), None),  # a single pair is not clear
        (torch.tensor([[1.0, 1.0], [1.0, -1.0]]).repeat(8, 1), 16 / 14),  # G = (1, 0), but 7 of 15 pairs are twins
    ],
)
def test_edges(rows: torch.Tensor, expected: float | None) -> None:
    found = noise_ratio(terms_of(rows.double()))
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_estimates_are_unbiased() -> None:
    """Monte Carlo, with a covariance and a mean that are known, and pools of few rows."""
    generator = torch.Generator().manual_seed(0)
    deviation, mean = torch.tensor([3.0, 1.0, 0.5, 0.1]).double(), torch.tensor([0.3, -0.2, 0.0, 0.4]).double()
    draws = torch.randn(20_000, 5, 4, generator=generator, dtype=torch.float64) * deviation + mean
    found = torch.tensor([terms_of(rows) for rows in draws[:4000]], dtype=torch.float64) / 4  # n - 1
    error = found.std(0) / len(found) ** 0.5
    truth = torch.tensor([deviation.square().sum(), mean.square().sum()])
    assert ((found.mean(0)[:2] - truth).abs() < 4 * error[:2]).all()
    without_mean = torch.tensor([terms_of(rows - mean) for rows in draws[4000:8000]], dtype=torch.float64)
    assert without_mean[:, 2].mean().item() == pytest.approx(without_mean[:, 1].var().item(), rel=0.15)


def test_many_measurements_give_the_ratio() -> None:
    generator = torch.Generator().manual_seed(1)
    deviation, mean = 1.0, 0.4
    truth = 8 * deviation**2 / (8 * mean**2)
    terms = NOTHING
    found = []
    for _ in range(400):
        draws = mean + deviation * torch.randn(24, 8, generator=generator, dtype=torch.float64)
        terms = fade(terms, terms_of(draws))
        found.append(noise_ratio(terms))
    known = sorted(value for value in found if value is not None)
    assert len(known) > 390
    assert known[len(known) // 2] == pytest.approx(truth, rel=0.15)


def test_measurements_fade() -> None:
    terms = fade(NOTHING, NoiseTerms(8.0, 4.0, 2.0))
    for _ in range(round(HALF_LIFE)):
        terms = fade(terms, NOTHING)
    assert terms == pytest.approx((4.0, 2.0, 0.5))


# ---- In a selection ----


def steps(selector: CoresetSelector, model: Any, count: int, *, first: int = 0) -> list[Any]:
    """Train on pools with labels that all rows share, so that gradients have a mean; return the records."""
    records = []
    for number in range(first, first + count):
        batch = learnable(number)
        coreset = selector.select(batch, SOURCES)
        torch.manual_seed(number)  # of the dropout
        for kept in selector.take(batch, coreset):
            logits = model(input_ids=kept["input_ids"], attention_mask=kept["attention_mask"]).logits
            example_mean(logits, kept["labels"], num_examples=len(coreset.indices)).backward()
        selector.optimizer.step()
        selector.optimizer.zero_grad()
        records.append(selector.commit())
    return records


def learnable(seed: int) -> dict[str, Any]:
    batch = ragged_batch(LENGTHS, seed=seed)
    batch["labels"] = torch.where(batch["labels"] == -100, -100, 1 + batch["input_ids"] % 2)
    return batch


def start(family: str = "llama", *, lora: bool = False, **settings: Any) -> tuple[CoresetSelector, Any]:
    model = tiny_model(family, lora=lora).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    return CoresetSelector(model, SelectionConfig(**settings), SIZES, optimizer=optimizer), model


@pytest.mark.parametrize(
    ("family", "lora", "settings"),
    [
        ("llama", False, {"features": "none"}),
        ("llama", True, {"features": "exact", "weights": "represented"}),
        ("gpt2", False, {"features": "spsa", "loss": "token"}),  # a fused weight, transposed
        ("phi3", False, {"features": "mean_hidden", "pass_labels": 1}),  # a fused weight
    ],
)
def test_the_measurement_written_out(family: str, lora: bool, settings: dict[str, Any]) -> None:
    selector, model = start(family, lora=lora, noise_every=1, **settings)
    steps(selector, model, 1)
    batch = learnable(1)
    gradients = value_gradients(model, batch).double()
    site = selector.site
    if site is None:
        (weight,) = (p for name, p in model.named_parameters() if "layers.2.self_attn.v_proj" in name)
        squares = selector.optimizer.state[weight]["exp_avg_sq"]
    else:
        squares = selector.optimizer.state[site.weight]["exp_avg_sq"]
        squares = squares.T if family == "gpt2" else squares
        squares = squares if site.value_rows is None else squares[site.value_rows]
    scale = ((squares.double() / 0.001).sqrt() + 1e-8).sqrt().flatten()  # after one step, 1 - 0.999
    coreset = selector.select(batch, SOURCES)
    kept = coreset.indices.tolist()
    labelled = (batch["labels"][:, 1:] != -100).sum(1).double()
    counts = labelled[kept] if settings.get("loss") == "token" else coreset.weights.double()
    rows = (gradients[kept] / scale).nan_to_num(0.0) * (counts / counts.mean())[:, None]
    selector.commit()
    state = selector.state_dict()["noise"]
    assert state["adam"]
    assert state["overall"] == pytest.approx(slowly(rows.tolist()), rel=1e-3)
    assert set(state["sources"]) == {SOURCES[p] for p in kept}
    for name, found in state["sources"].items():
        own = [row for row, p in zip(rows.tolist(), kept, strict=True) if SOURCES[p] == name]
        assert found == pytest.approx(slowly(own), rel=1e-3)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adamax])  # Adamax has other moments
def test_gradients_are_sketched_and_raw_without_second_moments(monkeypatch: pytest.MonkeyPatch, optimizer: Any) -> None:
    monkeypatch.setattr("colm.noise.SKETCH", 400)
    selector, model = start(noise_every=1, features="none", keep=1.0)
    selector.optimizer = optimizer(model.parameters(), lr=0.01)
    steps(selector, model, 1)
    batch = learnable(1)
    rows = value_gradients(model, batch)
    selector.select(batch, SOURCES)
    selector.commit()
    state = selector.state_dict()["noise"]
    assert not state["adam"]
    expected = slowly(rows.double().tolist())
    assert state["overall"] == pytest.approx(expected, rel=0.25)  # 512 coordinates in 400
    assert state["overall"] != pytest.approx(expected, rel=1e-6)


def test_it_is_measured_now_and_then_and_known_when_it_is_clear() -> None:
    selector, model = start(noise_every=3, features="none")
    records = steps(selector, model, 16)
    assert [record.step for record in records if record.noise is not None] == [3, 6, 9, 12, 15]
    last = records[-1].noise
    assert last == selector.noise_scale
    assert last.overall > 0
    assert all(scale > 0 for scale in last.sources.values())
    assert "tiny" not in last.sources  # one row a pool: no pair
    selector.reset()
    assert selector.noise_scale is None


@pytest.mark.parametrize("features", ["exact", "none"])
def test_nothing_else_changes(features: str) -> None:
    """Dropout draws, weights, buffers and picks are equal bit for bit."""
    found = []
    for every in (0, 2):
        selector, model = start(lora=True, noise_every=every, features=features)
        torch.manual_seed(5)
        records = steps(selector, model, 6)
        assert model.training
        tensors = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
        found.append((tensors, [record.kept for record in records], records[-2].noise))
    (without, picks, nothing), (measured, their_picks, scale) = found
    assert nothing is None
    assert scale is not None
    assert picks == their_picks
    assert all(torch.equal(one, other) for one, other in zip(without, measured, strict=True))


def test_it_resumes() -> None:
    whole, model = start(noise_every=1)
    steps(whole, model, 3)
    state, weights, moments = deepcopy((whole.state_dict(), model.state_dict(), whole.optimizer.state_dict()))
    resumed, other = start(noise_every=1)
    other.load_state_dict(weights)
    resumed.optimizer.load_state_dict(moments)
    resumed.load_state_dict(state)
    assert resumed.noise_scale == whole.noise_scale
    steps(whole, model, 2, first=3)
    steps(resumed, other, 2, first=3)
    assert resumed.state_dict()["noise"] == whole.state_dict()["noise"]
    del state["noise"]  # of an older version
    resumed.load_state_dict(state)
    assert resumed.noise_scale is None


def test_a_step_that_is_lost_leaves_no_trace() -> None:
    selector, model = start(noise_every=1)
    steps(selector, model, 2)
    before = selector.state_dict()["noise"]
    selector.select(pool_of_16(), SOURCES)
    assert selector.state_dict()["noise"] == before


def test_a_model_that_cannot_be_measured_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> list[str]:  # the selector's own messages depend on the level that other tests leave
        return [record.getMessage() for record in caplog.records if record.name == "colm.noise"]

    selector, model = start(noise_every=1, features="none", value_module="no.such.module")
    with caplog.at_level(logging.INFO, "colm.noise"):
        records = steps(selector, model, 4)
    assert [record.noise for record in records] == [None] * 4
    (line,) = said()
    assert line.startswith("The gradient noise scale is not measured: value_module='no.such.module' does not match")
    assert line.endswith("Set noise_every=0 to omit it.")

    monkeypatch.setattr("colm.noise.is_sharded", lambda model: True)
    selector, model = start(noise_every=1)
    with caplog.at_level(logging.INFO, "colm.noise"):
        steps(selector, model, 3)
    assert len(said()) == 2
    assert "the model's weights are sharded" in said()[1]
    monkeypatch.undo()

    monkeypatch.setattr("colm.noise.gather_rows", lambda rows: [rows, torch.zeros_like(rows)])
    selector, model = start(noise_every=1)
    with caplog.at_level(logging.INFO, "colm.noise"):
        steps(selector, model, 3)
    assert len(said()) == 3
    assert "another rank cannot measure its rows" in said()[2]


def test_another_metric_starts_over() -> None:
    selector, model = start(noise_every=1)
    steps(selector, model, 3)
    before = selector.state_dict()["noise"]
    selector.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps(selector, model, 1, first=3)
    after = selector.state_dict()["noise"]
    assert (before["adam"], after["adam"]) == (True, False)
    assert after["overall"][0] < before["overall"][0] / 2  # raw gradients are smaller than steps


def test_when_it_is_due() -> None:
    meter = NoiseMeter(SelectionConfig(noise_every=50))
    assert [step for step in range(160) if meter.due(step)] == [50, 100, 150]
    meter = NoiseMeter(SelectionConfig(noise_every=0))
    assert not any(meter.due(step) for step in range(160))
