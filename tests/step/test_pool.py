from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.models import one_row, ragged_batch

from colm.errors import DataError
from colm.step.balance import split_evenly
from colm.step.pool import Pool


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 3)), min_size=1, max_size=3),
    st.sampled_from(["left", "right"]),
    st.data(),
)
def test_regrouped_rows_keep_their_tokens_and_labels(
    shapes: list[tuple[list[int], int]], side: str, data: st.DataObject
) -> None:
    batches = [
        ragged_batch(lengths, side=side, seed=i, width=max(lengths) + extra)
        for i, (lengths, extra) in enumerate(shapes)
    ]
    rows = [one_row(batch, row) for batch in batches for row in range(len(batch["input_ids"]))]
    pool = Pool(batches, pad_token_id=7)
    assert len(pool) == len(rows)
    assert pool.lengths == [row["input_ids"].shape[1] for row in rows]
    positions = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, unique=True))
    out_side = data.draw(st.sampled_from(["left", "right"]))
    taken = pool.collate(positions, side=out_side)
    width = taken["input_ids"].shape[1]
    assert width == max(pool.lengths[p] for p in positions)
    for index, position in enumerate(positions):
        length = pool.lengths[position]
        used = slice(width - length, width) if out_side == "left" else slice(0, length)
        padding = torch.ones(width, dtype=torch.bool)
        padding[used] = False
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(taken[key][index, used], rows[position][key][0])
        assert taken["input_ids"][index, padding].eq(7).all()
        assert taken["labels"][index, padding].eq(-100).all()
        assert taken["attention_mask"][index, padding].eq(0).all()


def test_a_whole_pool_in_order_is_the_input() -> None:
    batches = [ragged_batch([5, 3], side="left"), ragged_batch([4, 6], side="left", seed=1)]
    pool = Pool(batches)
    for number, run in enumerate(split_evenly(range(4), 2)):
        for key, expected in batches[number].items():
            assert torch.equal(pool.collate(run)[key], expected)


def test_other_keys_travel_with_their_rows() -> None:
    batch = ragged_batch([3, 5])
    batch |= {
        "position_ids": torch.arange(5).repeat(2, 1),
        "weight": torch.tensor([0.5, 1.5]),
        "name": ["a", "b"],
        "pair": torch.tensor([[1, 2], [3, 4]]),
    }
    row = Pool(batch).collate([1, 0])
    assert row["weight"].tolist() == [1.5, 0.5]
    assert row["name"] == ["b", "a"]
    assert row["pair"].tolist() == [[3, 4], [1, 2]]
    assert row["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 100))
def test_groups_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    pool = Pool(ragged_batch(lengths))
    groups = list(pool.group(range(len(lengths)), limit))
    assert sorted(p for group in groups for p in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[p] for p in group) <= limit


@given(st.integers(0, 40), st.integers(1, 9))
def test_even_runs(count: int, slots: int) -> None:
    runs = split_evenly(range(count), slots)
    assert [p for run in runs for p in run] == list(range(count))
    assert len(runs) == slots
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "has no two-dimensional tensor 'labels'"),
        ({"labels": torch.zeros(2, 3)}, r"input_ids \(2, 4\) but labels \(2, 3\)"),
        ({"attention_mask": torch.ones(2, 1, 4, 4)}, "attention_mask of 4 dimensions.*Turn packing off"),
        ({"cu_seq_lens_q": torch.zeros(3)}, "is packed"),
    ],
)
def test_batches_that_cannot_be_selected_from(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Pool({**ragged_batch([4, 2]), **change})


def test_no_batch_and_keys_that_cannot_be_regrouped() -> None:
    with pytest.raises(DataError, match="no micro-batch"):
        Pool([])
    second = ragged_batch([2])
    del second["attention_mask"]
    with pytest.raises(DataError, match="Micro-batches 0 and 1 differ in 'attention_mask'"):
        Pool([ragged_batch([2]), second])
    for value in (torch.zeros(10, 2), torch.tensor(3.0), ["only one"]):
        with pytest.raises(DataError, match="'images' does not have one entry per row"):
            Pool({**ragged_batch([2, 3]), "images": value})


def test_a_width_that_equals_the_tokens_once_is_not_a_token_axis() -> None:
    batches = [
        {**ragged_batch([6, 2]), "scores": torch.ones(2, 6)},
        {**ragged_batch([4, 3]), "scores": torch.ones(2, 6)},
    ]
    assert Pool(batches).collate([1, 3])["scores"].shape == (2, 6)


@given(
    lengths=st.lists(st.integers(3, 9), min_size=1, max_size=4),  # the first token has no label
    side=st.sampled_from(["left", "right"]),
    targets=st.integers(1, 9),
    masked=st.booleans(),
)
def test_rows_are_truncated_after_a_labeled_token(lengths: list[int], side: str, targets: int, masked: bool) -> None:
    batch = ragged_batch(lengths, side=side)
    whole = Pool(batch)
    if not masked:
        batch.pop("attention_mask")
    cut = Pool(batch).cut_behind(targets)
    for position, length in enumerate(lengths):
        labels = whole.collate([position])["labels"][0].tolist()
        places = [place for place, label in enumerate(labels) if label != -100 and place > 0]
        end = places[targets - 1] + 1 if len(places) >= targets else length
        assert cut.labelled[position] == min(targets, len(places))
        if masked:
            assert cut.lengths[position] == end
            row = one_row(cut.collate([position]), 0)
            assert row["input_ids"].tolist() == whole.collate([position])["input_ids"][:, :end].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_that_arrive_join_the_pool_as_if_handed_over(side: str) -> None:
    batches, arrived = [ragged_batch([5, 3], side=side), ragged_batch([4, 6], side=side)], ragged_batch([2, 7], seed=1)
    whole, joined = Pool([*batches, arrived]), Pool(batches).followed_by(arrived)
    assert (joined.lengths, joined.labelled, joined.side) == (whole.lengths, whole.labelled, whole.side)
    for key, value in whole.collate([5, 0, 3]).items():
        assert torch.equal(joined.collate([5, 0, 3])[key], value)


def test_a_pool_takes_other_keys_for_the_same_tokens() -> None:
    batches = [ragged_batch([5, 3]), ragged_batch([4])]
    pool = Pool(batches)
    weighed = [{**batch, "row_weights": torch.ones(len(batch["labels"]))} for batch in batches]
    assert pool.holds_tokens_of(weighed)
    assert not pool.holds_tokens_of([ragged_batch([5, 3]), ragged_batch([4])])
    assert pool.with_batches(weighed).collate([2])["row_weights"].tolist() == [1.0]
    assert "row_weights" not in pool.collate([2])
