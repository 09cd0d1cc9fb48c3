"""MixtureBatchSampler: the rows of `features="none"`, without a model."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from colm import ConfigError, CoresetSelector, DataError, MixtureBatchSampler, SelectionConfig
from colm.mixing import fixed_shares, rows_by_share, temperature_shares
from colm.step.weighted import WeightedIndex
from tests.support.trainers import coreset_trainer, lines, mixture


def labels_of_rows(rows: int = 203, seed: int = 0) -> list[str]:
    return random.Random(seed).choices("abcd", [0.5, 0.35, 0.1, 0.05], k=rows)


def selected(
    order: list[int], labels: list[str], pool_rows: int, accumulation: int, world: int, config: SelectionConfig
) -> list[dict]:
    """Return row -> weight for each pool of two passes in this order, as `CoresetSelector` chooses them."""
    sizes = Counter(labels[row] for row in order)
    selector = CoresetSelector(torch.nn.Linear(1, 1), config, sizes, pad_token_id=0)
    steps = []
    for start in [*range(0, len(order), pool_rows)] * 2:
        pool = order[start : start + pool_rows]
        micro_batches = min(len(pool), world * -(-len(pool) * accumulation // pool_rows))
        parts = [part.tolist() for part in np.array_split(pool, micro_batches)]
        batches = [
            {key: torch.ones(len(part), 3, dtype=torch.int64) for key in ("input_ids", "labels")} for part in parts
        ]
        coreset = selector.select(batches, [labels[row] for row in pool], dataset_index=pool)
        rows = [pool[position] for position in coreset.indices.tolist()]
        steps.append(dict(zip(rows, coreset.weights.tolist(), strict=True)))
        selector.commit()
    return steps


SETTINGS: list[dict[str, Any]] = [
    {},
    {"balance": 0.7},
    {"balance": 1.0, "small_sources": "none"},
    {"weights": "represented"},
    {"weights": "relative", "by_source": False},
    {"small_sources": ("a",)},  # overflows the budget
]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(("keep", "settings"), [(0.5, s) for s in SETTINGS] + [(k, {}) for k in (0.25, 0.3, 0.75, 1.0)])
def test_rows_and_weights_are_those_of_the_selector(
    world: int, accumulation: int, keep: float, settings: dict[str, Any]
) -> None:
    labels = labels_of_rows()
    learnable = np.random.default_rng(1).random(len(labels)) > 0.1
    order = random.Random(2).sample(range(len(labels)), len(labels))
    known = [row for row in order if learnable[row]]
    samplers = [
        MixtureBatchSampler(
            labels, 2, keep, accumulation=accumulation, rank=rank, world_size=world, seed=5, learnable=learnable,
            order=order, **settings,
        )
        for rank in range(world)
    ]  # fmt: skip
    config = SelectionConfig(keep=keep, features="none", seed=5, **settings)
    expected = selected(known, labels, samplers[0].pool_rows, accumulation, world, config)
    passes = [[batch for _ in range(2) for batch in sampler] for sampler in samplers]
    assert {len(batches) for batches in passes} == {2 * len(samplers[0])}
    starts = [
        start for p in range(2) for start in range(p * len(samplers[0]), (p + 1) * len(samplers[0]), accumulation)
    ]
    ends = [min(start + accumulation, (start // len(samplers[0]) + 1) * len(samplers[0])) for start in starts]
    found = [[row for b in passes for part in b[i:j] for row in part] for i, j in zip(starts, ends, strict=True)]
    assert [sorted(set(rows)) for rows in found] == [sorted(step) for step in expected]  # a single row is repeated
    for rows, step in zip(found, expected, strict=True):
        if samplers[0].needs_weights:
            assert {int(row): row.weight for row in rows} == step
        else:
            assert all(type(row) is int for row in rows)
    for batches in passes:
        assert {len(batch) for batch in batches[: len(samplers[0]) - accumulation]} == {2}


def test_the_order_and_the_rows_are_those_of_a_trainer(tmp_path: Any) -> None:
    data = mixture(90)
    trainer = coreset_trainer(
        tmp_path,
        train_dataset=data,
        selection=SelectionConfig(features="none", seed=3),
        args={"max_steps": 18, "data_seed": 3, "save_strategy": "no"},
    )
    trainer.train()
    sampler = MixtureBatchSampler.from_dataset(data, 2, 0.5, accumulation=3, seed=3)
    assert sampler.pool_rows == 12
    assert sampler.steps_per_epoch == 8
    kept = [sorted(row for rows in line["kept"].values() for row in rows) for line in lines(tmp_path)]
    found = []
    for _ in range(3):
        batches = list(sampler)
        found += [sorted(row for batch in batches[i : i + 3] for row in batch) for i in range(0, len(batches), 3)]
    assert found[:18] == kept


def test_one_sampler_for_all_ranks_deals_like_one_for_each() -> None:
    labels = labels_of_rows(101)
    make = lambda rank: MixtureBatchSampler(labels, 3, accumulation=2, rank=rank, world_size=3)  # noqa: E731
    each, everyone = [list(make(rank)) for rank in range(3)], list(make("all"))
    assert len(everyone) == len(make("all")) == 3 * len(make(0))
    assert [everyone[rank::3] for rank in range(3)] == each


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_every_rank_has_as_many_batches_and_none_is_empty(
    rows: int, batch_size: int, accumulation: int, world: int, drop_last: bool
) -> None:
    labels = ["a", "b"] * rows
    settings: dict[str, Any] = {"accumulation": accumulation, "world_size": world, "drop_last": drop_last}
    try:
        samplers = [MixtureBatchSampler(labels, batch_size, **settings, rank=rank) for rank in range(world)]
    except DataError as error:
        assert "drop_last" in str(error)  # noqa: PT017
        assert drop_last
        return
    for sampler in samplers:
        batches = list(sampler)
        assert len(batches) == len(sampler) == len(samplers[0])
        assert all(batches)
        assert max(map(len, batches)) <= batch_size


def test_passes_differ_and_repeat() -> None:
    labels = labels_of_rows()
    sampler = MixtureBatchSampler(labels, 4)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert sampler.epoch == 2
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(MixtureBatchSampler(labels, 4, seed=1)) != first
    small = [row for row, name in enumerate(labels) if name in sampler.small]
    assert sampler.small == {"c", "d"}
    assert set(small) <= {row for batch in first for row in batch}


@pytest.mark.parametrize("rank", [0, 1, "all"])
def test_a_loaded_position_continues(rank: Any) -> None:
    settings: dict[str, Any] = {"accumulation": 3, "rank": rank, "world_size": 2, "temperature": 2.0}
    labels = labels_of_rows()
    whole = MixtureBatchSampler(labels, 2, **settings)
    batches = [*whole, *whole]
    for done in (0, 1, 3, len(whole) - 1, len(whole), len(whole) + 4):
        sampler = MixtureBatchSampler(labels, 2, **settings)
        seen: list[list[int]] = []
        while len(seen) < done:
            seen += islice(sampler, done - len(seen))
        if done == len(whole):
            assert sampler.epoch == 0  # its end was not asked for
        resumed = MixtureBatchSampler(labels, 2, **settings)
        resumed.load_state_dict(pickle.loads(pickle.dumps(sampler.state_dict())))
        assert resumed.state_dict() == sampler.state_dict()
        resumed.set_epoch(resumed.epoch)  # as loops do
        rest: list[list[int]] = []
        while len(rest) < len(batches) - done:
            rest += resumed
        assert rest == batches[done:]


def test_after_a_step_a_position_is_good_for_other_ranks_with_the_same_pools() -> None:
    labels = labels_of_rows()
    two = [MixtureBatchSampler(labels, 2, accumulation=2, rank=rank, world_size=2) for rank in range(2)]
    rows = [list(sampler) for sampler in two]
    one = MixtureBatchSampler(labels, 2, accumulation=4, rank=0, world_size=1)
    one.load_state_dict({**two[0].state_dict(batches=6), "epoch": 0})
    rest = list(one)
    for step in range(3):
        assert sorted(row for batch in rest[4 * step : 4 * step + 4] for row in batch) == sorted(
            row for batches in rows for batch in batches[6 + 2 * step : 8 + 2 * step] for row in batch
        )
    with pytest.raises(ConfigError, match="The saved sampler has accumulation=2, but this one has 4"):
        one.load_state_dict(two[0].state_dict(batches=5))


def test_a_position_can_be_that_of_training() -> None:
    sampler = MixtureBatchSampler(labels_of_rows(), 2)
    loader = DataLoader(range(203), batch_sampler=sampler, num_workers=1)
    batches = iter(loader)
    used = [next(batches).tolist() for _ in range(3)]
    state = sampler.state_dict(batches=3)  # the worker has been sent more
    assert sampler.state_dict()["pools"] > 3
    resumed = MixtureBatchSampler(labels_of_rows(), 2)
    resumed.load_state_dict(state)
    assert used + list(resumed) == list(MixtureBatchSampler(labels_of_rows(), 2))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**6), min_size=1), st.floats(0.2, 50))
def test_temperature_is_the_power_of_the_size(sizes: dict[str, int], temperature: float) -> None:
    if not any(sizes.values()):
        return
    found = temperature_shares(sizes, temperature)
    assert sum(found.values()) == pytest.approx(1)
    raw = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    whole = sum(share ** (1 / temperature) for share in raw.values() if share)
    for name, share in raw.items():
        assert found[name] == pytest.approx(share ** (1 / temperature) / whole if share else 0.0)


def test_a_pass_has_the_shares() -> None:
    labels = labels_of_rows(1000)
    held = Counter(labels)
    for settings in ({"temperature": 3.0}, {"shares": {"a": 1, "b": 1, "c": 2, "d": 0}}):
        sampler = MixtureBatchSampler(labels, 5, 1.0, **settings)
        if "shares" in settings:
            assert sampler.sizes == {"a": 250, "b": 250, "c": 500}
        else:
            assert sampler.sizes == rows_by_share(1000, temperature_shares(held, 3.0))
        passes = [Counter(row for batch in sampler for row in batch) for _ in range(2)]
        assert passes[0] != passes[1]
        for counts in passes:
            of_source: dict[str, list[int]] = {}
            for row, name in enumerate(labels):
                of_source.setdefault(name, []).append(counts[row])
            for name, times in of_source.items():
                assert sum(times) == sampler.sizes.get(name, 0)
                assert max(times) - min(times) <= 1  # none again before all others


def test_shares_that_equal_sizes_leave_no_source_small() -> None:
    sampler = MixtureBatchSampler(["a"] * 90 + ["b"] * 10, 4, shares={"a": 1, "b": 1})
    assert sampler.small == set()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_weights_if_the_loss_needs_them(workers: int) -> None:
    labels = labels_of_rows(60)
    data = Dataset.from_dict({"row": range(60), "source": labels})
    sampler = MixtureBatchSampler(data["source"], 2, accumulation=2, balance=1.0, world_size=1, rank=0)
    expected = [[(int(row), row.weight) for row in batch] for batch in sampler]
    sampler.set_epoch(0)
    collate = lambda rows: {"row": torch.tensor([row["row"] for row in rows]), "keys": sorted(rows[0])}  # noqa: E731
    batches = list(sampler.loader(data, collate, num_workers=workers))
    assert [list(zip(b["row"].tolist(), b["row_weights"].tolist(), strict=True)) for b in batches] == [
        [(row, pytest.approx(weight)) for row, weight in batch] for batch in expected
    ]
    assert batches[0]["row_weights"].dtype == torch.float32
    assert batches[0]["keys"] == ["row", "source"]
    assert "row_weights" not in next(iter(MixtureBatchSampler(labels, 2).loader(data, collate)))


@pytest.mark.parametrize("weights", ["relative", "represented"])
def test_weights_of_a_step_add_up_to_one_on_any_number_of_ranks(weights: Any) -> None:
    """Also of a last pool with fewer rows than ranks, whose rows then come several times."""
    for ranks in (1, 4):
        sampler = MixtureBatchSampler(["a"] * 18, 2, rank="all", world_size=ranks, weights=weights)
        batches = list(sampler)
        steps = [batches[start : start + ranks] for start in range(0, len(batches), ranks)]
        assert [sum(row.weight for batch in step for row in batch) for step in steps] == pytest.approx(
            [1.0] * len(steps)
        )


def test_a_weighted_index_survives_a_process() -> None:
    index = pickle.loads(pickle.dumps(WeightedIndex(3, 0.25)))
    assert (index, index.weight, [10, 11, 12, 13][index]) == (3, 0.25, 13)


@pytest.mark.parametrize("as_given", [np.array, torch.tensor, list, lambda x: Dataset.from_dict({"s": x})["s"]])
def test_sources_may_be_codes_in_any_container(as_given: Any) -> None:
    codes = [0, 1, 1, 0, 0, 0, 2, 0]
    expected = list(MixtureBatchSampler([str(code) for code in codes], 2))
    assert list(MixtureBatchSampler(as_given(codes), 2)) == expected


def test_numbers_may_be_those_of_numpy() -> None:
    numbers: dict[str, Any] = {"batch_size": np.int64(2), "accumulation": np.int64(2), "world_size": np.int64(1)}
    state = MixtureBatchSampler(["a"] * 9, **numbers).state_dict()
    assert json.loads(json.dumps(state)) == state


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    labels = labels_of_rows()
    assert list(MixtureBatchSampler(labels, 2)) == list(MixtureBatchSampler(labels, 2, rank=1, world_size=2))
    with pytest.raises(ConfigError, match=r"rank=None must be a whole number from 0 to 3 \(world_size=4\), or 'all'"):
        MixtureBatchSampler(labels, 2, world_size=4)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
    ({"keep": 1.5}, r"keep=1.5 must be a number above 0 and at most 1"),
    ({"accumulation": 1.5}, "accumulation=1.5 must be a whole number"),
    ({"rank": 2, "world_size": 2}, "rank=2 must be a whole number from 0 to 1"),
    ({"sources": "source"}, "sources='source' is one name"),
    ({"sources": ["a", None]}, "Row 1 has no source"),
    ({"sources": []}, "None of the 0 rows"),
    ({"learnable": [True]}, "learnable has 1 entries, but sources has 4"),
    ({"learnable": [False] * 4}, "None of the 4 rows has a label"),
    ({"temperature": 0}, "temperature=0 must be a finite number above 0"),
    ({"temperature": 2, "shares": {"a": 1}}, "exclude each other"),
    ({"temperature": 2, "order": range(4)}, "order fixes the rows"),
    ({"shares": {"a": 1}}, "shares has no weight for the source 'b'"),
    ({"shares": {"a": 1, "c": 1}}, "shares names 'c', which is not a source"),
    ({"shares": {"a": 0, "b": 0}}, "All shares are 0"),
    ({"shares": {"a": -1, "b": 1}}, r"shares\['a'\]=-1 must be a finite number of at least 0"),
    ({"small_sources": ["c"]}, "small_sources names 'c'"),
    ({"weights": "fitted"}, "weights='fitted' fits gradients"),
    ({"batch_size": 4, "drop_last": True}, "One pass has 4 rows, fewer than a pool of 8"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        MixtureBatchSampler(**{"sources": ["a", "b", "a", "a"], "batch_size": 1, **settings})


def test_an_order_that_does_not_fit_and_a_position_of_other_settings() -> None:
    for order, message in (([0, 1, 7], "indices from 0 to 7"), ([0, 1, 2, -1], "must be from 0 to 3")):
        with pytest.raises((DataError, IndexError), match=message):
            list(MixtureBatchSampler(["a", "b", "a", "a"], 1, order=order))
    sampler = MixtureBatchSampler(["a", "b", "a", "a"], 1)
    with pytest.raises(ConfigError, match="The saved sampler has seed=1, but this one has 0"):
        sampler.load_state_dict(MixtureBatchSampler(["a", "b", "a", "a"], 1, seed=1).state_dict())
    with pytest.raises(DataError, match="The data set has 3 rows, but sources has 4"):
        sampler.loader([1, 2, 3], dict)


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 5.0}, "sources"),
    ({"temperature": None, "shares": {"a": 1, "b": 1}}, "sources"),
    ({"small_sources": ("b",)}, "sources"),
    ({"sources": ["a", "b"] * 20}, "sources"),
    ({"learnable": [True] * 39 + [False]}, "rows|sources"),
    ({"shuffle": False}, "sources"),
    ({"batch_size": 4, "keep": 1.0}, "keep"),
    ({"balance": 0.5}, "balance"),
    ({"weights": "represented"}, "weights"),
    ({"by_source": False}, "by_source"),
]


@pytest.mark.parametrize(("change", "name"), OTHER, ids=lambda value: str(value)[:40])
def test_a_position_under_settings_that_draw_other_rows_is_refused(change: dict[str, Any], name: str) -> None:
    settings = {"sources": ["a"] * 30 + ["b"] * 10, "batch_size": 2, "temperature": 2.0, "small_sources": "none"}
    sampler = MixtureBatchSampler(**settings)  # type: ignore[arg-type]
    next(iter(sampler))
    with pytest.raises(ConfigError, match=rf"^The saved sampler has ({name})=.* resume with the data and settings"):
        MixtureBatchSampler(**(settings | change)).load_state_dict(sampler.state_dict())


def test_a_data_set_without_the_column() -> None:
    with pytest.raises(DataError, match=r"no column 'sorce'.* Did you mean 'source'"):
        MixtureBatchSampler.from_dataset(Dataset.from_dict({"source": ["a"]}), 1, source_column="sorce")
    with pytest.raises(DataError, match="weights names 'b', which has no row"):
        fixed_shares("weights", {"a": 1, "b": 1}, ["a"], {"b": "has no row"})
