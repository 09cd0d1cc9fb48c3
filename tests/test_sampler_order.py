"""MixtureBatchSampler in balanced order."""

from __future__ import annotations

import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colm import ConfigError, DataError, MixtureBatchSampler, SelectionConfig
from colm.balanced import BalancedPasses, PoolSize
from colm.mixing import Passes
from colm.ordering import deal_balanced
from colm.row_features import RowFeatures, make_features
from colm.select.quota import source_quotas
from colm.step.sources import balance_sources
from tests.support.trainers import mixture

LABELS = random.Random(0).choices("abcd", [0.5, 0.35, 0.1, 0.05], k=203)
SMALL = ("c", "d")


def steps_of(samplers: list[MixtureBatchSampler]) -> list[list[int]]:
    """Return the rows of each step of a pass over all ranks, sorted."""
    accumulation = samplers[0].accumulation
    passes = [list(sampler) for sampler in samplers]
    return [
        sorted(row for batches in passes for batch in batches[start : start + accumulation] for row in batch)
        for start in range(0, len(passes[0]), accumulation)
    ]


def each_rank(world: int, *args: Any, **kwargs: Any) -> list[MixtureBatchSampler]:
    return [
        MixtureBatchSampler(*args, rank=rank, world_size=world, order="balanced", **kwargs) for rank in range(world)
    ]


def test_with_all_rows_kept_the_steps_are_those_of_the_deal() -> None:
    features = np.random.default_rng(0).standard_normal((203, 5))
    samplers = each_rank(1, LABELS, 4, 1.0, accumulation=2, seed=3, features=features)
    base = Passes(LABELS, None, True, None, 3).rows(1)
    samplers[0].set_epoch(1)
    dealt = base[deal_balanced(features[base].astype(np.float32), [8] * 25 + [3])]
    assert steps_of(samplers) == [sorted(dealt[start : start + 8].tolist()) for start in range(0, 203, 8)]


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.8])
def test_a_pass_keeps_small_sources_whole_and_of_large_ones_their_shares(keep: float) -> None:
    sampler = MixtureBatchSampler(LABELS, 4, keep, accumulation=2, order="balanced")
    assert sampler.small == set(SMALL)
    steps = [steps_of([sampler]) for _ in range(3)]
    pools = [min(sampler.pool_rows, 203 - start) for start in range(0, 203, sampler.pool_rows)]
    assert [len(step) for step in steps[0]] == [
        sampler.config.kept_rows(rows, -(-rows * 2 // pools[0])) for rows in pools
    ]
    of_each = Counter(LABELS)
    budget = sum(map(len, steps[0])) - sum(of_each[name] for name in SMALL)
    for epoch, each in enumerate(steps):
        rows = [row for step in each for row in step]
        assert len(set(rows)) == len(rows)
        expected = source_quotas({name: of_each[name] for name in "ab"}, budget, epoch)
        assert Counter(LABELS[row] for row in rows) == {**expected, **{name: of_each[name] for name in SMALL}}
    assert len({frozenset(row for step in each for row in step) for each in steps}) == 3  # drawn anew in each pass


def test_small_sources_above_the_budget_of_a_pass_are_sampled(caplog: pytest.LogCaptureFixture) -> None:
    sampler = MixtureBatchSampler(LABELS, 4, 0.25, small_sources=("a", "c"), order="balanced")
    rows = [row for batch in sampler for row in batch]
    assert {LABELS[row] for row in rows} == {"a", "c"}
    assert (
        f"small sources alone have {sum(label in 'ac' for label in LABELS)} rows in a pass, of which 51" in caplog.text
    )


def test_small_sources_that_fill_the_budget_of_a_pass_are_said(caplog: pytest.LogCaptureFixture) -> None:
    sampler = MixtureBatchSampler(["a"] * 34 + ["b"] * 30, 4, order="balanced", small_sources=("b",))
    assert sum(len(batch) for batch in sampler) == 32
    assert "Overflow" not in caplog.text  # two rows of a large source
    sampler = MixtureBatchSampler(["a"] * 32 + ["b"] * 32, 4, order="balanced", small_sources=("b",))
    rows = [row for batch in sampler for row in batch]
    assert min(rows) == 32
    assert "have 32 rows in a pass, of which 32 rows are kept, so no row of a large source" in caplog.text


def test_sources_are_evenly_spaced_by_default() -> None:
    labels = ["a"] * 300 + ["b"] * 60 + ["c"] * 40
    counts = [Counter(labels[row] for row in step) for step in steps_of(each_rank(1, labels, 8, 0.5))]
    kept = sum(counts, Counter())
    for name in "abc":
        assert {count[name] - int(8 * kept[name] / 200) for count in counts} <= {0, 1}


@given(st.integers(9, 60), st.sampled_from([(4, 1), (2, 2), (1, 4)]), st.sampled_from([0.3, 0.5, 1.0]), st.booleans())
@settings(max_examples=25)
def test_any_number_of_ranks_has_the_same_steps(rows: int, deal: tuple[int, int], keep: float, drop: bool) -> None:
    labels = LABELS[:rows]
    accumulation, world = deal
    if drop and rows < round(8 / keep):
        return
    one = steps_of(each_rank(1, labels, 2, keep, accumulation=4, drop_last=drop))
    found = steps_of(each_rank(world, labels, 2, keep, accumulation=accumulation, drop_last=drop))
    assert [sorted(set(step)) for step in found] == one  # with fewer rows than ranks, some rows are repeated
    assert [len(step) for step in found][:-1] == [len(step) for step in one][:-1]


@pytest.mark.parametrize("settings", [{"temperature": 3.0}, {"shares": {"a": 1, "b": 1, "c": 2, "d": 0}}])
def test_shares_choose_the_rows_of_the_pass(settings: dict[str, Any]) -> None:
    samplers = each_rank(1, LABELS, 4, 1.0, small_sources="none", **settings)
    rows = [row for step in steps_of(samplers) for row in step]
    assert Counter(LABELS[row] for row in rows) == samplers[0].sizes
    assert sorted(rows) == sorted(MixtureBatchSampler(LABELS, 4, 1.0, small_sources="none", **settings)._passes.rows(0))


@pytest.mark.parametrize("settings", [{"weights": "represented"}, {"weights": "relative"}, {"balance": 0.5}])
def test_rows_have_weights_by_what_they_stand_for(settings: dict[str, Any]) -> None:
    sampler = MixtureBatchSampler(LABELS, 8, 0.5, order="balanced", **settings)
    assert sampler.needs_weights
    batches = list(sampler)
    of_each, kept = Counter(LABELS), Counter(LABELS[row] for batch in batches for row in batch)
    stands_for = {name: of_each[name] / kept[name] for name in of_each}
    importance = balance_sources(of_each, settings.get("balance", 0.0))
    for batch in batches[:-1]:  # of pools of 16 rows
        mean = np.mean([stands_for[LABELS[row]] for row in batch if LABELS[row] not in SMALL])
        for row in batch:
            name = LABELS[row]
            relative = 1.0 if name in SMALL else stands_for[name] / mean
            expected = {"represented": stands_for[name] / 16, "relative": relative / 8}
            weight = expected.get(settings.get("weights", ""), 1 / 8) * importance[name]
            assert row.weight == pytest.approx(weight, rel=1e-5)


def test_a_loaded_position_continues_and_another_order_is_refused() -> None:
    make = lambda **settings: MixtureBatchSampler(LABELS, 4, 0.5, accumulation=2, order="balanced", **settings)  # noqa: E731
    whole = make()
    batches = [*whole, *whole]
    stopped, resumed = make(), make()
    stopped.set_epoch(1)
    state = stopped.state_dict(batches=9)
    resumed.load_state_dict(state)
    assert [*resumed] == batches[len(whole) + 9 :]
    for other in (
        make(features=np.random.default_rng(0).random((203, 2))),
        MixtureBatchSampler(LABELS, 4, 0.5, accumulation=2),
    ):
        with pytest.raises(ConfigError, match="The saved sampler has order="):
            other.load_state_dict(state)
    with pytest.raises(ConfigError, match="The saved sampler has order=None, but this one has"):
        make().load_state_dict(MixtureBatchSampler(LABELS, 4, 0.5, accumulation=2).state_dict())


def test_a_pass_is_dealt_once_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []
    monkeypatch.setattr("colm.balanced.deal_balanced", lambda *args: calls.append(args) or deal_balanced(*args))
    sampler = MixtureBatchSampler(LABELS, 4, 0.5, order="balanced")
    with caplog.at_level(logging.INFO):
        first = list(sampler)
        sampler.set_epoch(0)
        assert list(sampler) == first
    assert len(calls) == 1
    assert caplog.text.count("The order of the rows is balanced by sources: 102 of 203 rows in 26 steps, made in") == 1


def test_a_schedule_keeps_more_or_fewer_rows_by_the_step() -> None:
    config = SelectionConfig(features="none", keep_schedule=[[0, 1.0], [20, 0.2]])
    passes = Passes(LABELS, None, True, None, 0)
    features = make_features("sources", passes.codes, 4)
    dealer = BalancedPasses(passes, features, config, frozenset(), pool=PoolSize(20, 2), length=200)
    for epoch in range(2):
        kept = np.count_nonzero(dealer.deal(epoch).stands_for.reshape(10, 20), axis=1)
        assert kept.tolist() == [config.kept_rows(20, 2, step=10 * epoch + step) for step in range(10)]


def test_features_by_tokens_of_a_dataset_and_from_files(tmp_path: Path) -> None:
    data = mixture(60)
    tokens = MixtureBatchSampler.from_dataset(data, 4, order="balanced", features="tokens")
    values = tokens._dealer.features.values
    np.save(tmp_path / "f.npy", values)
    for given_ in (str(tmp_path / "f.npy"), tmp_path / "f.npy", values, RowFeatures("mine", values)):
        assert list(MixtureBatchSampler(data["source"], 4, order="balanced", features=given_)) == list(tokens)
        tokens.set_epoch(0)
    rows = MixtureBatchSampler.from_dataset(data, 4, order="balanced", features="sources")
    assert list(rows) != list(tokens)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"features": "sources"}, "features are for order='balanced'; set it, or leave features out"),
    ({"order": "balancd"}, "order='balancd' is not one of 'random', 'balanced'. Did you mean 'balanced'"),
    (
        {"order": "balanced", "features": "token"},
        "features is 'token'; it must be 'tokens', 'sources', or a .npy or .parquet file",
    ),
    ({"order": "balanced", "features": "tokens"}, "features='tokens' needs the rows of the data: use .*from_dataset"),
    ({"order": "balanced", "features": "no.npy"}, "The features in no.npy cannot be read"),
    (
        {"order": "balanced", "features": np.ones((3, 1))},
        "The array has features of 3 rows, but the training data has 203",
    ),
    ({"order": "balanced", "features": np.ones(203)}, r"The array has features of shape \(203,\)"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        MixtureBatchSampler(LABELS, 4, **settings)


def test_the_random_order_by_name_is_the_default() -> None:
    assert list(MixtureBatchSampler(LABELS, 4, order="random")) == list(MixtureBatchSampler(LABELS, 4))
