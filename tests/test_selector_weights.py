"""How much the kept rows count: weights that stand for the pool, are fitted to it, or even out its sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from colm import ConfigError, CoresetSelector, SelectionConfig
from colm.features.exact import value_gradients
from colm.losses import example_losses, example_mean
from colm.select.direction import match_direction
from colm.select.weighting import fit_weights
from colm.step.pool import Pool
from colm.step.sources import balance_sources
from tests.support.models import ragged_batch, tiny_model
from tests.support.pools import SIZES, SOURCES, pool_of_16


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.mark.parametrize("weights", ["relative", "fitted"])
def test_rows_at_random_count_as_much_in_all_as_they_are(model: Any, weights: Any) -> None:
    """Also in the steps before a warm-up ends, and where the small sources alone fill the budget."""
    sketch: dict[str, Any] = {"shorten": "sketch", "pick": "direction", "warmup_steps": 1, "weights": weights}
    coreset = CoresetSelector(model, SelectionConfig(**sketch), SIZES).select(pool_of_16(), SOURCES)
    small = [w for i, w in zip(coreset.indices.tolist(), coreset.weights.tolist(), strict=True) if i in (6, 11, 12)]
    assert small == [0.125] * 3
    assert float(coreset.weights.sum()) == pytest.approx(1.0)
    every_small = SelectionConfig(small_sources=tuple(SIZES), **sketch)
    assert set(CoresetSelector(model, every_small, SIZES).select(pool_of_16(), SOURCES).weights.tolist()) == {0.125}


@pytest.mark.parametrize("settings", [{}, {"features": "none"}, {"features": "gradient_norm", "pick": "sample"}])
def test_represented_weights_count_the_pool(model: Any, settings: dict[str, Any]) -> None:
    config = SelectionConfig(weights="represented", **settings)
    selector = CoresetSelector(model, config, SIZES)
    batch = pool_of_16()
    coreset = selector.select(batch, SOURCES)
    of_row = dict(zip(coreset.indices.tolist(), (16 * coreset.weights).tolist(), strict=True))
    assert [of_row[row] for row in (6, 11, 12)] == pytest.approx([1.0] * 3)  # small sources stand for themselves
    for source, rows, kept in (("big", 9, 3), ("large", 4, 2)):
        held = [weight for row, weight in of_row.items() if SOURCES[row] == source]
        assert len(held) == kept
        if settings.get("features") == "none":
            assert held == pytest.approx([rows / kept] * kept)
        elif settings == {}:
            assert sum(held) == pytest.approx(rows)
    taken = selector.take([batch], coreset)
    logits = torch.randn(8, 9, 64, generator=torch.Generator().manual_seed(0))
    width = taken[0]["labels"].shape[1]
    longest_first = Pool([batch]).by_length(coreset.indices.tolist())
    expected = sum(
        of_row[row] / 16 * example_losses(logits[i : i + 1, :width], taken[0]["labels"][i : i + 1])
        for i, row in enumerate(longest_first)
    )
    found = example_mean(logits[:, :width], taken[0]["labels"], taken[0]["row_weights"])
    torch.testing.assert_close(found, torch.as_tensor(expected).squeeze())


@pytest.mark.parametrize("settings", [{}, {"features": "none"}, {"features": "gradient_norm", "pick": "sample"}])
def test_relative_weights_leave_small_sources_their_share(model: Any, settings: dict[str, Any]) -> None:
    found = {}
    for weights in ("represented", "relative"):
        config = SelectionConfig(weights=weights, **settings)  # type: ignore[arg-type]
        coreset = CoresetSelector(model, config, SIZES).select(pool_of_16(), SOURCES)
        found[weights] = dict(zip(coreset.indices.tolist(), coreset.weights.tolist(), strict=True))
    relative, represented = found["relative"], found["represented"]
    small = (6, 11, 12)
    assert [relative[row] for row in small] == pytest.approx([1 / 8] * 3)
    big = [row for row in relative if row not in small]
    assert sum(relative[row] for row in big) == pytest.approx(5 / 8)
    ratios = [relative[row] / represented[row] for row in big]
    assert ratios == pytest.approx([ratios[0]] * 5)


@pytest.mark.parametrize("settings", [{"weights": "relative"}, {"weights": "represented"}, {"balance": 1.0}, {}])
def test_rows_that_only_fill_micro_batches_weigh_nothing(model: Any, settings: dict[str, Any]) -> None:
    """As in a stream's last pool. A pool without any label has a loss of 0, and not NaN."""
    silent = ragged_batch([4, 4])
    silent["labels"].fill_(-100)
    selector = CoresetSelector(model, SelectionConfig(small_sources="none", **settings), {"a": 10, "b": 10})
    pool = [ragged_batch([6, 5]), silent, silent, silent]
    assert selector.select(pool, ["a", "b"] * 4).weights.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert selector.select([silent, silent], ["a", "b"] * 2).weights.tolist() == [0.0, 0.0]


MATCHED = SelectionConfig.from_dict({"preset": "matched", "coordinates": 10_000})


def test_fitted_weights_match_the_mean_gradient_of_the_big_sources(model: Any) -> None:
    coreset = CoresetSelector(model, MATCHED, SIZES).select(pool_of_16(), SOURCES)
    of_row = dict(zip(coreset.indices.tolist(), (8 * coreset.weights).tolist(), strict=True))
    assert [of_row.pop(row) for row in (6, 11, 12)] == pytest.approx([1.0] * 3)  # small sources as with uniform weights
    gradients = value_gradients(model, pool_of_16())
    mean = gradients[[row for row, source in enumerate(SOURCES) if source in ("big", "large")]].mean(0)
    expected = fit_weights(gradients[sorted(of_row)], 5 * mean)
    assert [of_row[row] for row in sorted(of_row)] == pytest.approx(expected.tolist(), rel=1e-3)


def test_what_a_coreset_lacks_is_carried_to_the_next_goal(model: Any) -> None:
    selector = CoresetSelector(model, MATCHED, SIZES)
    gradients = value_gradients(model, pool_of_16())
    big = [row for row, source in enumerate(SOURCES) if source in ("big", "large")]
    carried = torch.zeros(gradients.shape[1])
    for _ in range(3):
        goal = 5 * gradients[big].mean(0) + carried
        coreset = selector.select(pool_of_16(), SOURCES)
        picks = [big[i] for i in match_direction(gradients[big], 5, goal).tolist()]
        assert coreset.indices.tolist() == sorted([*picks, 6, 11, 12])
        carried = 0.95 * (goal - fit_weights(gradients[picks], goal).float() @ gradients[picks])
        assert selector.select(pool_of_16(), SOURCES).indices.tolist() == coreset.indices.tolist()  # not yet committed
        selector.commit()
        torch.testing.assert_close(selector.state_dict()["carried"], carried, rtol=1e-3, atol=1e-6)
    resumed = CoresetSelector(model, MATCHED, SIZES)
    resumed.load_state_dict(selector.state_dict())
    assert torch.equal(resumed.select(pool_of_16(), SOURCES).weights, selector.select(pool_of_16(), SOURCES).weights)
    selector.commit(stepped=False)
    torch.testing.assert_close(selector.state_dict()["carried"], carried, rtol=1e-3, atol=1e-6)
    selector.reset()
    assert selector.state_dict()["carried"] is None


def test_balance_weighs_random_rows_and_what_is_matched(model: Any) -> None:
    counts = balance_sources(SIZES, 0.5)
    config = SelectionConfig(balance=0.5, features="none", small_sources="none")
    coreset = CoresetSelector(model, config, SIZES).select(pool_of_16(), SOURCES)
    expected = [counts[SOURCES[row]] / 8 for row in coreset.indices.tolist()]
    assert coreset.weights.tolist() == pytest.approx(expected)
    assert "row_weights" in CoresetSelector(model, config, SIZES).take(pool_of_16(), coreset)[0]

    config = SelectionConfig.from_dict({**MATCHED.to_dict(), "balance": 0.5, "small_sources": "none"})
    coreset = CoresetSelector(model, config, SIZES).select(pool_of_16(), SOURCES)
    count = torch.tensor([counts[source] for source in SOURCES])
    rows = value_gradients(model, pool_of_16()) * count[:, None]
    picks = sorted(match_direction(rows, 8).tolist())
    assert coreset.indices.tolist() == picks
    weights = fit_weights(rows[picks], 8 * rows.mean(0)).float() * count[picks] / 8
    torch.testing.assert_close(coreset.weights, weights, rtol=1e-3, atol=1e-6)

    with pytest.raises(ConfigError, match="balance=0.5 needs source_sizes"):
        CoresetSelector(model, config)
