"""Balanced order in the trainers."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tests.support.sft import sft_settings
from tests.support.trainers import check_resumes, coreset_trainer, lines, mixture, plain_trainer, same_weights
from torch.utils.data import SequentialSampler

import colm
from colm import ConfigError, CoresetSFTTrainer, DataError, MixtureBatchSampler, SelectionConfig
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.row_features import read_features
from colm.token_features import token_features


def balanced(**changes: Any) -> SelectionConfig:
    return SelectionConfig(**{"features": "none", "order": "balanced", "seed": 3, **changes})


def silence(data: Dataset, every: int) -> Dataset:
    """Take the labels of every so many rows."""
    return data.map(
        lambda row, n: {"labels": [-100] * len(row["labels"])} if n % every == 0 else row, with_indices=True
    )


def kept_of(folder: Path) -> list[list[int]]:
    return [sorted(row for rows in line["kept"].values() for row in rows) for line in lines(folder)]


def steps_of(sampler: MixtureBatchSampler, passes: int) -> list[list[int]]:
    found = []
    for _ in range(passes):
        batches = list(sampler)
        for start in range(0, len(batches), sampler.accumulation):
            found.append(sorted(row for batch in batches[start : start + sampler.accumulation] for row in batch))
    return found


@pytest.mark.parametrize(("by", "drop_last"), [("tokens", False), ("sources", True)])
def test_a_trainer_and_the_sampler_train_the_same_rows_in_the_same_steps(
    tmp_path: Path, by: str, drop_last: bool
) -> None:
    data = silence(mixture(98), 14)  # 91 with labels
    trainer = coreset_trainer(
        tmp_path,
        train_dataset=data,
        selection=balanced(order_by=by),
        args={"max_steps": 11, "data_seed": 3, "dataloader_drop_last": drop_last},
    )
    trainer.train()
    found = kept_of(tmp_path)
    sampler = MixtureBatchSampler.from_dataset(data, 2, 0.5, accumulation=3, seed=3, order="balanced", features=by)
    expected = steps_of(sampler, 2)
    if drop_last:  # a Trainer drops a micro-batch, the sampler a pool
        assert [len(step) for step in found] == [6, 6, 6, 6, 6, 6, 6, 2] + [6] * 3
    else:
        assert found == expected[:11]
    of_pools = [row for line in lines(tmp_path)[:8] for rows in line["pool"].values() for row in rows]
    assert len(of_pools) == len(set(of_pools)) == (88 if drop_last else 91)
    assert not any(row % 14 == 0 for row in of_pools)


def test_a_plain_trainer_has_the_same_rows(tmp_path: Path) -> None:
    data = mixture(90)
    trainer = plain_trainer(tmp_path, data, per_device_train_batch_size=2, max_steps=10, seed=0)
    sampler = colm.use_mixture_sampler(trainer, "source", keep=0.5, order="balanced", features="tokens")
    trainer.train()
    again = MixtureBatchSampler.from_dataset(data, 2, 0.5, accumulation=3, order="balanced", features="tokens")
    expected = [sorted(data["input_ids"][row]) for batch in again for row in batch]
    found = [sorted(token for token in ids if token) for batch in trainer.seen[: len(sampler)] for ids in batch]
    assert found == expected


@pytest.mark.parametrize("features", ["exact", "none"])
def test_with_all_rows_kept_every_row_comes_once_in_a_pass(tmp_path: Path, features: str) -> None:
    trainer = coreset_trainer(
        tmp_path,
        train_dataset=mixture(30),
        selection=balanced(keep=1.0, features=features),
        args={"max_steps": 6, "data_seed": 3},
    )
    trainer.train()
    sampler = MixtureBatchSampler.from_dataset(
        mixture(30), 4, 1.0, accumulation=3, seed=3, order="balanced", features="tokens"
    )
    assert kept_of(tmp_path) == steps_of(sampler, 2)
    assert sorted(row for step in kept_of(tmp_path)[:3] for row in step) == list(range(30))


def test_a_resumed_run_is_the_run_that_was_never_killed(tmp_path: Path) -> None:
    selection = balanced(weights="represented", keep_schedule=[[0, 1.0], [6, 0.25]])

    def make(folder: Path) -> Any:
        torch.manual_seed(len(folder.name))  # the state before a resume must not matter
        return coreset_trainer(
            folder,
            train_dataset=mixture(45),  # of 4 steps
            selection=selection,
            args={"max_steps": 7, "save_strategy": "steps", "save_steps": 1},
        )

    whole = make(tmp_path / "whole")
    whole.train()
    found = [len(rows) for rows in kept_of(tmp_path / "whole")]
    assert found == [selection.kept_rows(9 if step == 3 else 12, 3, step=step) for step in range(7)]
    check_resumes(make, whole, (4, 6))  # between the passes, and within the second one


def test_another_order_within_a_pass_is_refused(tmp_path: Path) -> None:
    def make(selection: SelectionConfig, **changes: Any) -> Any:
        args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, **changes}
        return coreset_trainer(tmp_path, selection=selection, args=args)

    make(balanced()).train()
    for other in (balanced(order_by="sources"), balanced(order="random")):
        with pytest.raises(ConfigError, match=r"another order than now \(order='.*so rows would come twice or never"):
            make(other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    make(balanced(order_by="sources"), ignore_data_skip=True).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )


def test_a_record_of_it_can_be_replayed(tmp_path: Path) -> None:
    args = {"max_steps": 3}
    first = coreset_trainer(tmp_path / "first", selection=balanced(), args=args)
    first.train()
    again = coreset_trainer(
        tmp_path / "again", selection=balanced(), replay=tmp_path / "first" / "selection.jsonl", args=args
    )
    again.train()
    assert kept_of(tmp_path / "again") == kept_of(tmp_path / "first")
    assert same_weights(again, first)


def test_trl_with_packing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = [{"source": "ab"[i % 5 == 0], "prompt": f"What of {i}?", "completion": f" {i * i}."} for i in range(30)]
    made[7]["prompt"] = " ".join(map(str, range(60)))  # truncated to no label
    tokenizer = train_tiny_tokenizer(f"{row['prompt']}{row['completion']}" for row in made)
    with caplog.at_level(logging.INFO, "colm"):
        trainer = CoresetSFTTrainer(
            build_tiny_model(tokenizer),
            sft_settings(tmp_path, packing=True, max_length=24, max_steps=4),
            train_dataset=Dataset.from_list(made),
            processing_class=tokenizer,
            selection=balanced(),
        )
        trainer.train()
    assert caplog.text.count("The order of the rows is balanced by tokens: ") == 1
    pools = Counter(row for line in lines(tmp_path) for rows in line["pool"].values() for row in rows)
    assert 7 not in pools
    assert all(step for step in kept_of(tmp_path))


def test_a_file_has_a_vector_for_each_row_that_was_given(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.random.default_rng(0).random((20, 3)))
    trainer = coreset_trainer(tmp_path, train_dataset=mixture(20), selection=balanced(order_by=str(tmp_path / "f.npy")))
    np.testing.assert_array_equal(trainer._features.values, read_features(tmp_path / "f.npy", 20))
    with pytest.raises(DataError, match=r"f.npy has features of 20 rows, but the training data has 21"):
        coreset_trainer(tmp_path, train_dataset=mixture(21), selection=balanced(order_by=str(tmp_path / "f.npy")))
    rows = list(mixture(20))  # any map-style data
    trainer = coreset_trainer(tmp_path, train_dataset=rows, selection=balanced())
    np.testing.assert_array_equal(trainer._features.values, token_features(mixture(20)))
    trainer.train()


def test_refusals(tmp_path: Path) -> None:
    for strategy in ("group_by_length", "sequential"):
        with pytest.raises(
            ConfigError, match=f"train_sampling_strategy='{strategy}' sets the order of the rows, and so"
        ):
            coreset_trainer(tmp_path, selection=balanced(), args={"train_sampling_strategy": strategy})
    dropped = {"dataloader_drop_last": True}
    with pytest.raises(ConfigError, match="leaves out all 3 rows, since they do not fill a batch of 4"):
        coreset_trainer(tmp_path, train_dataset=mixture(3), args=dropped)
    few = mixture(9).map(lambda row, at: {"labels": row["labels"] if at < 3 else [-100] * 12}, with_indices=True)
    with pytest.raises(ConfigError, match="leaves out all 3 rows"):
        coreset_trainer(tmp_path, train_dataset=few, selection=balanced(), args=dropped).train()
    data = mixture(40).rename_column("input_ids", "tokens")
    with pytest.raises(DataError, match="no column 'input_ids'"):
        coreset_trainer(tmp_path, train_dataset=data, selection=balanced())


def test_pools_of_another_data_loader_are_refused(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, selection=balanced())
    order = trainer._get_train_sampler
    trainer._get_train_sampler = lambda *args: order(*args) and SequentialSampler(trainer.train_dataset)
    with pytest.raises(DataError, match="rows of step 0 are not those of one step of the balanced order"):
        trainer.train()
