"""MixtureBatchSampler in training loops that are not ours."""

from __future__ import annotations

import subprocess
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from datasets import Dataset
from tests.support.models import tiny_model
from tests.support.processes import torchrun
from tests.support.trainers import (
    collate,
    coreset_trainer,
    lines,
    mixture,
    plain_trainer,
    weights,
)
from torch.utils.data import DataLoader

import colm
from colm import ConfigError, DataError, MixtureBatchSampler, SelectionConfig
from colm.models import train_tiny_tokenizer


def rows_of(seen: list[list[list[int]]], data: Dataset) -> list[list[int]]:
    """Return the rows of the data set that have these tokens; equal rows get the first number."""
    number = {tuple(ids): row for row, ids in reversed(list(enumerate(data["input_ids"])))}
    return [[number[tuple(token for token in ids if token)] for ids in batch] for batch in seen]


def test_a_trainer_trains_on_the_rows_of_the_control(tmp_path: Path) -> None:
    data = mixture(90)
    control = coreset_trainer(
        tmp_path / "control",
        train_dataset=data,
        selection=SelectionConfig(features="none"),
        args={"max_steps": 10, "seed": 0},
    )
    control.train()
    trainer = plain_trainer(tmp_path / "plain", data, per_device_train_batch_size=2, max_steps=10, seed=0)
    sampler = colm.use_mixture_sampler(trainer, "source", keep=0.5)
    trainer.train()
    assert sampler.steps_per_epoch == 8
    kept = [
        sorted(data["input_ids"][row] for rows in line["kept"].values() for row in rows)
        for line in lines(tmp_path / "control")
    ]
    first = trainer.seen[: len(sampler)]
    steps = [first[i : i + 3] for i in range(0, len(first), 3)]
    found = [sorted([t for t in ids if t] for batch in step for ids in batch) for step in steps]
    assert found == kept[:8]
    assert trainer.state.epoch == pytest.approx(1 + 2 * 3 / len(sampler))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_trainer_gets_the_batches_it_would_have_had(tmp_path: Path, workers: int) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "dataloader_num_workers": workers}
    changes |= {"max_steps": 12, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    whole = plain_trainer(tmp_path / "whole", **changes)
    sampler = colm.use_mixture_sampler(whole, temperature=2.0)
    whole.train()
    assert 5 < sampler.steps_per_epoch < 10  # checkpoints within the first and the second pass
    for step in (5, 10):
        resumed = plain_trainer(tmp_path / f"resumed-{step}", **changes)
        colm.use_mixture_sampler(resumed, temperature=2.0)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert resumed.seen == whole.seen[2 * step :]
        assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def test_rows_without_a_label_and_sources_beside_the_data(tmp_path: Path) -> None:
    data = mixture(40)
    silent = [{**row, "labels": [-100] * len(row["labels"])} if n % 4 == 0 else row for n, row in enumerate(data)]
    trainer = plain_trainer(tmp_path, Dataset.from_list(silent), max_steps=5, dataloader_drop_last=True)
    sampler = colm.use_mixture_sampler(trainer, ["x"] * 40, keep=1.0)
    assert sampler.sizes == {"x": 30}
    assert len(sampler) == 6  # of two full pools of 12
    trainer.train()
    assert not any(row % 4 == 0 for batch in rows_of(trainer.seen, data) for row in batch)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"train_sampling_strategy": "group_by_length"}, {}, "train_sampling_strategy='group_by_length' would be ignored"),
    ({"accelerator_config": {"split_batches": True}}, {}, "split_batches=True in accelerator_config"),
    ({"accelerator_config": {"dispatch_batches": True}}, {}, "dispatch_batches=True in accelerator_config"),
    ({"auto_find_batch_size": True}, {}, "auto_find_batch_size=True"),
    ({}, {"balance": 1.0}, "balance=1.0 need weights in the loss"),
    ({}, {"sources": "sorce"}, r"no column 'sorce' for the source. Did you mean 'source'"),
    ({}, {"keep": 0}, "keep=0 must be a number above 0"),
]


@pytest.mark.parametrize(("arguments_", "settings", "message"), REFUSED)
def test_refusals(tmp_path: Path, arguments_: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    trainer = plain_trainer(tmp_path, **arguments_)
    with pytest.raises((ConfigError, DataError), match=message):
        colm.use_mixture_sampler(trainer, **settings)


def test_our_trainers_streams_and_replaced_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CoresetTrainer selects rows itself"):
        colm.use_mixture_sampler(coreset_trainer(tmp_path))
    trainer = plain_trainer(tmp_path, mixture(40).to_iterable_dataset())
    with pytest.raises(DataError, match="Expected a map-style dataset"):
        colm.use_mixture_sampler(trainer)
    trainer = plain_trainer(tmp_path)
    colm.use_mixture_sampler(trainer)
    trainer.train_dataset = mixture(20)
    with pytest.raises(ConfigError, match="call use_mixture_sampler again"):
        trainer.train()


def texts() -> Dataset:
    rows = [{"prompt": f"{'abcd'[n % 7 % 4]} {n} =", "completion": f" {n * 7}"} for n in range(120)]
    return Dataset.from_list(rows).add_column("source", ["abcd"[n % 7 % 4] for n in range(120)])


def sft_trainer(folder: Path, **changes: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    data = texts()
    tokenizer = train_tiny_tokenizer([a + b for a, b in zip(data["prompt"], data["completion"], strict=True)])
    settings: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    settings |= {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
    args = SFTConfig(str(folder), **{**settings, "dataloader_pin_memory": False, **changes})
    model = tiny_model("llama", vocab_size=len(tokenizer), num_hidden_layers=2)
    return SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)


def note_batches(trainer: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    collator = trainer.data_collator
    trainer.data_collator = lambda rows: seen.append({"rows": rows}) or collator(rows)
    return seen


def test_an_sft_trainer(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path)
    seen = note_batches(trainer)
    data = trainer.train_dataset
    expected = MixtureBatchSampler(data["source"], 2, accumulation=2, seed=42, rank=0, world_size=1)
    sampler = colm.use_mixture_sampler(trainer)
    assert sampler.sizes == dict(Counter(data["source"]))
    trainer.train()
    batches = [[data[row]["input_ids"] for row in batch] for batch in expected]
    assert [[row["input_ids"] for row in batch["rows"]] for batch in seen[:6]] == batches[:6]


def test_packed_rows_have_one_source_and_are_sampled(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, padding_free=True, max_length=None)
    plain = trainer.train_dataset
    trainer.train_dataset = colm.pack_by_source(plain, 64)
    seen = note_batches(trainer)
    packed = trainer.train_dataset
    assert sum(map(sum, packed["seq_lengths"])) == sum(map(len, plain["input_ids"]))
    assert len(packed) < len(plain) / 2
    of_source = {
        name: Counter(
            tuple(ids) for ids, source in zip(plain["input_ids"], plain["source"], strict=True) if source == name
        )
        for name in "abcd"
    }
    for row in packed:  # every part of a packed row is a row of its source
        start = 0
        for length in row["seq_lengths"]:
            part = tuple(row["input_ids"][start : start + length])
            assert of_source[row["source"]][part]
            of_source[row["source"]][part] -= 1
            start += length
    sampler = colm.use_mixture_sampler(trainer, "source", keep=0.5)
    trainer.train()
    sampler.set_epoch(0)
    batches = [[packed[row]["input_ids"] for row in batch] for batch in [*sampler, *sampler, *sampler]]
    assert len(seen) >= 6
    assert [[row["input_ids"] for row in batch["rows"]] for batch in seen[:6]] == batches[:6]


def test_packing_needs_tokens() -> None:
    with pytest.raises(DataError, match="no column 'input_ids', only prompt, completion, source"):
        colm.pack_by_source(texts(), 64)
    with pytest.raises(DataError, match="no column 'task'"):
        colm.pack_by_source(mixture(8), 64, source_column="task")


def test_a_prepared_loader_in_a_plain_loop() -> None:
    data = mixture(60)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
    sampler = MixtureBatchSampler(data["source"], 2, accumulation=2, rank="all", world_size=accelerator.num_processes)
    loader = accelerator.prepare(DataLoader(data, batch_sampler=sampler, collate_fn=collate))
    found = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        found += [batch["input_ids"].tolist() for batch in loader]
    again = MixtureBatchSampler(data["source"], 2, accumulation=2)
    assert found == [collate([data[row] for row in batch])["input_ids"].tolist() for _ in range(2) for batch in again]


@pytest.mark.slow
def test_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    data = mixture(60)
    seen: list[list[list[int]]] = []

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model("llama", num_hidden_layers=2)

        def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            seen.append(batch["input_ids"].tolist())
            return self.model(**batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), 1e-3)

    sampler = MixtureBatchSampler(data["source"], 2, accumulation=2, rank=0, world_size=1)
    trainer = pl.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers, and about what Lightning itself uses
        trainer.fit(Module(), sampler.loader(data, collate))
    again = MixtureBatchSampler(data["source"], 2, accumulation=2)
    assert seen == [collate([data[row] for row in batch])["input_ids"].tolist() for _ in range(2) for batch in again]


@pytest.mark.slow
def test_two_processes_train_on_the_rows_of_the_control_and_resume(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "sample_on_ranks.py"
    command = [*torchrun(2), script, tmp_path]
    subprocess.run(list(map(str, command)), check=True, timeout=600)
    found = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]
    data = mixture(90)
    kept = [
        sorted(data["input_ids"][row] for rows in line["kept"].values() for row in rows)
        for line in lines(tmp_path / "control")
    ]
    whole = [rank["whole"] for rank in found]
    steps = [[batch for rank in whole for batch in rank[i : i + 2]] for i in range(0, 2 * len(kept), 2)]
    trained = [sorted([t for t in ids if t] for batch in step for ids in batch) for step in steps]
    assert trained[: len(kept)] == kept
    for rank in found:
        assert rank["resumed"] == rank["whole"][8:]
        assert rank["prepared"] == rank["expected"]
