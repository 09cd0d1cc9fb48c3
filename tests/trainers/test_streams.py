"""The trainer on streams: codes added on the fly, sizes given or estimated and updated."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.support.commands import write_run
from tests.support.processes import torchrun
from tests.support.sft import sft_settings
from tests.support.trainers import coreset_trainer, lines, mixture
from torch.utils.data import IterableDataset

from colm import ConfigError, CoresetSFTTrainer, CoresetTrainer, DataError
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.trainers.columns import INDEX_KEY, SOURCE_KEY
from colm.trainers.streams import NumberedPasses, RunningSizes, encode_stream


class Stream(IterableDataset[dict[str, Any]]):
    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def turning(rows: int = 400) -> Dataset:
    """Make a stream in which "a" is big for the first 48 rows, and "b" after that."""
    made = []
    for i in range(rows):
        few = i % 8 == 0
        source = ("b" if few else "a") if i < 48 else ("a" if few else "b")
        made.append({"source": source, "input_ids": [1 + i % 9, 2, 3, 4], "attention_mask": [1] * 4})
        made[-1]["labels"] = made[-1]["input_ids"]
    return Dataset.from_list(made)


class AddedEpoch(IterableDataset[int]):
    """A stream that sets its epoch like a Hub stream, in memory shared by its readers, but slowly."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        difference = epoch - self.epoch
        time.sleep(0.05)
        self.epoch += difference

    def __iter__(self) -> Iterator[int]:
        yield self.epoch


def test_readers_that_start_a_pass_together_read_the_same_pass() -> None:
    stream = NumberedPasses(AddedEpoch())
    for epoch in (2, 5, 0):
        stream.set_epoch(epoch)
        with ThreadPoolExecutor(3) as readers:
            assert [rows for [rows] in readers.map(list, [stream] * 3)] == [epoch] * 3


@pytest.mark.parametrize("kind", ["hub", "torch"])
def test_a_stream_trains_on_the_same_rows_as_a_dataset_in_that_order(tmp_path: Path, kind: str) -> None:
    rows = mixture(120)
    stream = rows.to_iterable_dataset() if kind == "hub" else Stream(rows)
    sizes = {name: list(rows["source"]).count(name) for name in "abcd"}
    streamed = coreset_trainer(tmp_path / "stream", train_dataset=stream, source_sizes=sizes)
    streamed.train()
    counted = coreset_trainer(tmp_path / "counted", train_dataset=rows, args={"train_sampling_strategy": "sequential"})
    counted.train()
    assert counted.source_sizes == streamed.source_sizes == sizes
    found, right = lines(tmp_path / "stream"), lines(tmp_path / "counted")
    assert [line["kept"] for line in found] == [line["kept"] for line in right]
    assert [line["pool"] for line in found] == [line["pool"] for line in right]
    for mine, other in zip(streamed.model.parameters(), counted.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_small_sources_follow_the_running_counts_and_a_resume(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": turning().to_iterable_dataset(), "window": 16}
    trainer: CoresetTrainer = coreset_trainer(
        tmp_path / "whole", **options, args={"max_steps": 12, "save_strategy": "steps", "save_steps": 6}
    )
    assert trainer.source_sizes == {"a": 14, "b": 2}
    assert trainer.selector.small == {"b"}
    trainer.train()
    assert trainer.selector.small == {"a"}
    found = lines(tmp_path / "whole")
    assert found[0]["kept"]["b"] == found[0]["pool"]["b"]  # while it was small
    assert found[-1]["kept"]["a"] == found[-1]["pool"]["a"]
    seen = {name: sum(len(line["pool"].get(name, ())) for line in found) for name in "ab"}
    assert trainer.source_sizes == {"a": 14 + seen["a"], "b": 2 + seen["b"]}
    again: CoresetTrainer = coreset_trainer(tmp_path / "whole", **options, args={"max_steps": 12})
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert again.source_sizes == trainer.source_sizes
    resumed = lines(tmp_path / "whole")
    assert [line["kept"] for line in resumed] == [line["kept"] for line in found]


def test_trl_trains_on_a_stream_too(tmp_path: Path) -> None:
    made = [{"source": "ab"[i % 5 == 0], "prompt": f"What of {i}?", "completion": f" {i * i}."} for i in range(80)]
    tokenizer = train_tiny_tokenizer(f"{row['prompt']}{row['completion']}" for row in made)
    trainer = CoresetSFTTrainer(
        build_tiny_model(tokenizer),
        sft_settings(tmp_path),
        train_dataset=Dataset.from_list(made).to_iterable_dataset(),
        processing_class=tokenizer,
        window=20,
    )
    assert trainer.source_sizes == {"a": 16, "b": 4}
    trainer.train()
    pools = [line["pool"] for line in lines(tmp_path)]
    assert [sorted(row for rows in pool.values() for row in rows) for pool in pools] == [
        list(range(12 * step, 12 * step + 12)) for step in range(3)
    ]


def test_a_source_that_appears_later_is_small_at_first(tmp_path: Path) -> None:
    rows = [dict(row) for row in turning(120)]
    for number, row in enumerate(rows):
        row["source"] = "a" if number % 8 else ("b" if number < 60 else "c")
    options: dict[str, Any] = {"train_dataset": Dataset.from_list(rows).to_iterable_dataset(), "window": 24}
    saving = {"max_steps": 8, "save_strategy": "steps", "save_steps": 6}
    trainer = coreset_trainer(tmp_path, **options, args=saving)
    assert set(trainer.source_sizes) == {"a", "b"}
    trainer.train()
    assert trainer.source_sizes["c"] == sum(len(line["pool"].get("c", ())) for line in lines(tmp_path)) > 3
    late = [line for line in lines(tmp_path) if "c" in line["pool"]]
    assert all(line["kept"]["c"] == line["pool"]["c"] for line in late)
    assert trainer.figures.pooled["c"] == trainer.source_sizes["c"]
    whole = lines(tmp_path)
    again = coreset_trainer(tmp_path, **options, args={"max_steps": 8})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert again.source_sizes == trainer.source_sizes
    assert [line["kept"] for line in lines(tmp_path)] == [line["kept"] for line in whole]
    workers = coreset_trainer(tmp_path, **options, args={"dataloader_num_workers": 1})
    with pytest.raises(DataError, match="several processes need every source in the first window; enlarge it"):
        list(workers.train_dataset)


@pytest.mark.slow
def test_two_processes_keep_what_one_does(tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        data = {"train": str(folder / "rows.jsonl"), "streaming": True, "window": 40, "max_length": 32}
        training = {"per_device_train_batch_size": 8 // world, "gradient_accumulation_steps": 2, "use_cpu": True}
        config = write_run(folder, data=data, training={**training, "max_steps": 3, "save_strategy": "no"})
        command = torchrun(world)
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        command += ["-m", "colm", "train", config]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append([(line["pool"], line["kept"]) for line in lines(folder / "run")])
        rows = json.loads((folder / "run" / "summary.json").read_text())["sources"]
        assert sum(source["rows"] for source in rows.values()) == 40 + 3 * 16
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_given_sizes_stay(tmp_path: Path) -> None:
    sizes = {"a": 5, "b": 900}
    trainer = coreset_trainer(tmp_path, train_dataset=Stream(turning()), source_sizes=sizes)
    trainer.train()
    assert trainer.source_sizes == sizes
    assert trainer.selector.small == {"a"}


def test_sizes_start_from_the_window_and_are_restored() -> None:
    running = RunningSizes({"a": 3, "b": 1})
    running.add({"a": [0], "b": [1, 2, 3]})
    assert running.sizes == {"a": 4, "b": 4}
    state = running.state_dict()
    running.reset()
    assert running.sizes == {"a": 3, "b": 1}
    running.load_state_dict(state)
    assert running.sizes == {"a": 4, "b": 4}
    assert running.meet(["a", "c"])
    assert not running.meet(["c"])
    assert running.sizes == {"a": 4, "b": 4, "c": 1}


def test_rows_get_codes_and_numbers() -> None:
    encoded = encode_stream(Stream(turning(4)), "source", None, window=4, max_steps=1)
    assert [(row[SOURCE_KEY], row[INDEX_KEY]) for row in encoded.dataset] == [(1, 0), (0, 1), (0, 2), (0, 3)]
    assert encoded.names == ["a", "b"]


def test_requirements_of_a_stream(tmp_path: Path) -> None:
    stream = Stream(turning())
    with pytest.raises(ConfigError, match="max_steps=-1 must be at least 1 for a stream"):
        coreset_trainer(tmp_path, train_dataset=stream, args={"max_steps": -1})
    with pytest.raises(ConfigError, match="source_sizes is {'a': 0}; it must have at least 1 row"):
        coreset_trainer(tmp_path, train_dataset=stream, source_sizes={"a": 0})
    with pytest.raises(ConfigError, match="source_sizes is only for streams; train_dataset has a length"):
        coreset_trainer(tmp_path, source_sizes={"a": 5})
    with pytest.raises(DataError, match="no column 'sorce' for the source. Did you mean 'source'"):
        coreset_trainer(tmp_path, train_dataset=stream, source_column="sorce")
    with pytest.raises(DataError, match="The stream is empty"):
        coreset_trainer(tmp_path, train_dataset=Stream(turning().select([])))
    holes = Dataset.from_list([{**turning(1)[0], "source": " "}])
    with pytest.raises(DataError, match="Row 0 of the stream has no source: its 'source' is ' '"):
        list(encode_stream(Stream(holes), "source", {"a": 1}, window=1, max_steps=1).dataset)
    trainer = coreset_trainer(tmp_path, train_dataset=stream, source_sizes={"a": 5, "c": 1})
    with pytest.raises(DataError, match="Row 0 of the stream has the unknown source 'b'"):
        trainer.train()
