"""Streams in balanced order: drawn and dealt window by window."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.support.trainers import check_resumes, coreset_trainer, lines, mixture
from torch.utils.data import IterableDataset

from colm import ConfigError, DataError, SelectionConfig
from colm.balanced import PoolSize
from colm.ordering import deal_balanced
from colm.row_features import source_features
from colm.token_features import token_features
from colm.trainers.columns import DEALT_KEY, INDEX_KEY
from colm.trainers.dealt_streams import DealtStream, Sizes
from colm.trainers.streams import encode_stream

POOL, WINDOW = 12, 48


def balanced(**changes: Any) -> SelectionConfig:
    return SelectionConfig(**{"features": "none", "order": "balanced", "seed": 3, **changes})


def rows_of(line: dict[str, Any], kind: str) -> list[int]:
    return sorted(row for rows in line[kind].values() for row in rows)


def changing(rows: int) -> Dataset:
    """Make rows of which every ninth has no label, and of which the last third has a new source."""

    def change(row: dict[str, Any], n: int) -> dict[str, Any]:
        labels = [-100] * len(row["labels"]) if n % 9 == 4 else row["labels"]
        return {"labels": labels, "source": "new" if n > rows * 2 / 3 and n % 4 == 0 else row["source"]}

    return mixture(rows).map(change, with_indices=True)


@pytest.mark.parametrize(("by", "keep"), [("tokens", 0.5), ("sources", 0.5), ("tokens", 1.0)])
def test_each_window_is_drawn_and_dealt_as_a_pass_is(tmp_path: Path, by: str, keep: float) -> None:
    data = changing(125)
    labeled = [n for n in range(125) if n % 9 != 4]  # 111: windows of 48, 48 and 15 rows
    trainer = coreset_trainer(
        tmp_path,
        train_dataset=data.to_iterable_dataset(),
        selection=balanced(order_by=by, keep=keep, small_sources=["c", "d"]),
        window=WINDOW + 5,
        source_sizes=dict.fromkeys(["a", "b", "c", "d", "new"], 9),
        args={"max_steps": 11},
    )
    trainer.train()
    found = lines(tmp_path)
    assert [len(rows_of(line, "pool")) for line in found] == [12] * 9 + [3] + [12]
    for start, steps in ((0, found[:4]), (48, found[4:8]), (96, found[8:10])):
        window = labeled[start : start + WINDOW]
        assert sorted(row for line in steps for row in rows_of(line, "pool")) == window
        if start == 96 and keep < 1:
            assert rows_of(steps[1], "kept") == rows_of(steps[1], "pool")  # a row for each micro-batch
            continue
        kept = sorted(row for line in steps for row in rows_of(line, "kept"))
        sources = [data[row]["source"] for row in window]
        codes = np.unique(sources, return_inverse=True)[1]
        features = token_features(data.select(window)) if by == "tokens" else source_features(codes, len(set(sources)))
        sizes = [len(rows_of(line, "kept")) for line in steps]
        order = deal_balanced(features[[window.index(row) for row in kept]], sizes)
        ends = np.cumsum(sizes)[:-1]
        assert [sorted(kept[at] for at in step) for step in np.split(order, ends)] == [
            rows_of(line, "kept") for line in steps
        ]
        was, now = Counter(sources), Counter(data[row]["source"] for row in kept)
        small = was["c"] + was["d"]
        share = (len(kept) - small) / (len(window) - small)
        for name in was:
            assert now[name] == was[name] if name in "cd" else abs(now[name] - share * was[name]) < 1


def test_small_sources_follow_what_was_read_of_a_pass(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"source": "ab"[(i % 4 == 0) == (i < 24)], "input_ids": [1, i % 7], "labels": [1, 1]} for i in range(96)]
    encoded = encode_stream(Dataset.from_list(rows).to_iterable_dataset(), "source", None, window=24, max_steps=1)
    stream = DealtStream(
        encoded.dataset, encoded.names, balanced(), Sizes(encoded.sizes, True), window=24, pool=PoolSize(12, 3)
    )
    passes = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        passes.append(list(stream))
        kept = [Counter(row["source"] for row in passes[-1][at : at + 24] if row[DEALT_KEY]) for at in (0, 24, 48, 72)]
        # With the first rows, "a" has 36 of 48 rows, then 42 of 72, 48 of 96, and 54 of 120.
        assert [found["a"] for found in kept] == [6, 0, 3, 6]
    assert caplog.text.count("small sources alone have 18 rows in a window of the stream, of which 12") == 1
    assert [row[INDEX_KEY] for row in passes[0]] != [row[INDEX_KEY] for row in passes[1]]  # other draws


@pytest.mark.parametrize(
    "sizes", [None, pytest.param({"a": 50, "b": 30, "c": 7, "d": 3, "new": 9}, marks=pytest.mark.slow)]
)
def test_a_resumed_run_is_the_run_that_was_never_killed(tmp_path: Path, sizes: dict[str, int] | None) -> None:
    def make(folder: Path) -> Any:
        torch.manual_seed(len(folder.name))  # the state before a resume must not matter
        return coreset_trainer(
            folder,
            train_dataset=changing(70).to_iterable_dataset().shuffle(seed=0, buffer_size=9),  # 62 labeled, 6 steps
            selection=balanced(weights="represented"),
            source_sizes=sizes,
            window=24,
            args={"max_steps": 9, "save_strategy": "steps", "save_steps": 1},
        )

    whole = make(tmp_path / "whole")
    whole.train()
    assert len(lines(tmp_path / "whole")) == 9
    check_resumes(make, whole, (3, 6, 8))  # within a window, between the passes, within the second one


class Plain(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Any:
        return iter(mixture(60))


@pytest.mark.slow
def test_a_worker_and_any_kind_of_stream_give_the_same_steps(tmp_path: Path) -> None:
    found = []
    for number, (kind, workers) in enumerate([("hub", 0), ("hub", 1), ("torch", 0), ("torch", 1)]):
        folder = tmp_path / str(number)
        stream = mixture(60).to_iterable_dataset() if kind == "hub" else Plain()
        args = {"max_steps": 7, "dataloader_num_workers": workers}
        options: dict[str, Any] = {"source_sizes": {"a": 5, "b": 4, "c": 2, "d": 1}, "window": 24, "args": args}
        coreset_trainer(folder, train_dataset=stream, selection=balanced(), **options).train()
        found.append(lines(folder))
    assert all(each == found[0] for each in found)


def test_batches_of_several_ranks_are_filled_with_rows_without_labels() -> None:
    encoded = encode_stream(mixture(50).to_iterable_dataset(), "source", None, window=24, max_steps=1)
    options: dict[str, Any] = {"window": 24, "pool": PoolSize(12, 3)}
    for more, rows in (({}, 50), ({"fills": 4}, 52), ({"drops": 4}, 48)):
        stream = DealtStream(encoded.dataset, encoded.names, balanced(), Sizes(encoded.sizes, True), **options, **more)
        numbers = [row[INDEX_KEY] for row in stream]
        assert len(numbers) == rows
        assert sorted(number for number in numbers if number >= 0) == list(range(min(rows, 50)))


def test_another_order_within_a_pass_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make(window: int = 24, **changes: Any) -> Any:
        args = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
        stream = mixture(60).to_iterable_dataset()
        return coreset_trainer(tmp_path, train_dataset=stream, selection=balanced(**changes), window=window, args=args)

    with caplog.at_level(logging.INFO, "colm"):
        make().train()
    assert "The order of the stream's rows is balanced by tokens in windows of 24 rows." in caplog.text
    for other in (make(order_by="sources"), make(order="random"), make(window=36)):
        with pytest.raises(ConfigError, match=r"another order than now \(order='.*so rows would come twice or never"):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_refusals(tmp_path: Path) -> None:
    def make(workers: int = 0, **changes: Any) -> Any:
        options = {"train_dataset": mixture(60).to_iterable_dataset(num_shards=2), "window": 24, **changes}
        return coreset_trainer(
            tmp_path, **{"selection": balanced(), **options}, args={"dataloader_num_workers": workers}
        )

    with pytest.raises(ConfigError, match="order_by='v.npy' is a file with a vector for each row, but the rows of a"):
        make(selection=balanced(order_by="v.npy"))
    with pytest.raises(ConfigError, match="so keep_schedule cannot say how many to keep"):
        make(selection=balanced(keep_schedule=[[0, 1.0], [6, 0.25]]))
    with pytest.raises(ConfigError, match="dataloader_num_workers=2 would read the stream in 2 processes"):
        make(workers=2)
    with pytest.raises(ConfigError, match="window of 23 rows of the stream must hold at least 2 pools of 12 rows"):
        make(window=23)
    trainer = make()
    trainer.train_dataset = trainer.train_dataset.rows
    with pytest.raises(DataError, match="rows of step 0 are not those of one step of the balanced order"):
        trainer.train()
    without = mixture(60).rename_column("input_ids", "tokens").to_iterable_dataset()
    with pytest.raises(DataError, match="no column 'input_ids'"):
        make(train_dataset=without).train()
