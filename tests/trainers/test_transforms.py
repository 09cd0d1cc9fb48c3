"""Our trainers treat a dataset with a transform, or in another format, like the plain trainers do."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.support.models import tiny_model
from tests.support.sft import sft_settings, text_rows
from tests.support.trainers import arguments, collate, lines, mixture, weights
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer
from trl import SFTTrainer

from colm import CoresetSFTTrainer, CoresetTrainer, SelectionConfig
from colm.models import build_tiny_model, train_tiny_tokenizer


def add_labels(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "labels": [list(ids) for ids in batch["input_ids"]]}


def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
    ids = [[ord(c) % 60 + 2 for c in text] for text in batch["text"]]
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": ids}


def fail(batch: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("the transform fails")


def texts() -> Dataset:
    return Dataset.from_list([{"source": "ab"[i % 4 == 0], "text": f"row {i} {'x' * (i % 5)}"} for i in range(24)])


class Rows(TorchDataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 24:
            raise IndexError
        return dict(mixture(24)[index])


class BatchedRows(Rows):
    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [
            self[index] | {"labels": [index % 60 + 1] * 4, "input_ids": [len(indices)] * 4, "attention_mask": [1] * 4}
            for index in indices
        ]


DATA: dict[str, Callable[[], Any]] = {
    "as it is": lambda: mixture(24).with_transform(lambda batch: batch),
    "labels made": lambda: mixture(24).remove_columns("labels").with_transform(add_labels),
    "set in place": lambda: in_place(mixture(24)),
    "the source left out": lambda: mixture(24).with_transform(
        lambda batch: {k: v for k, v in batch.items() if k != "source"}
    ),
    "some columns": lambda: mixture(24).with_transform(add_labels, columns=["input_ids", "attention_mask"]),
    "and all others": lambda: mixture(24).with_transform(
        lambda batch: {"labels": batch["input_ids"]}, columns=["input_ids"], output_all_columns=True
    ),
    "tensors": lambda: mixture(24).with_transform(
        lambda b: {k: [torch.tensor(v) for v in b[k]] for k in ("input_ids", "attention_mask", "labels")}
    ),
    "text": lambda: texts().with_transform(tokenize),
    "fails": lambda: mixture(24).with_transform(fail),
    "a list": lambda: mixture(24).with_transform(lambda batch: [1, 2]),
    "no tokens": lambda: mixture(24).with_transform(lambda batch: {"labels": batch["labels"]}),
    "the source used": lambda: mixture(24).with_transform(
        lambda batch: {**batch, "n": [len(name) for name in batch["source"]]}
    ),
    "torch": lambda: mixture(24).with_format("torch"),
    "numpy": lambda: mixture(24).with_format("numpy"),
    "pandas": lambda: mixture(24).with_format("pandas"),
    "torch, some columns": lambda: mixture(24).with_format("torch", columns=["input_ids", "attention_mask", "labels"]),
    "torch, a type": lambda: mixture(24).with_format("torch", dtype=torch.int32),
    "plain, some columns": lambda: mixture(24).with_format(None, columns=["input_ids", "labels"]),
    "one's own": Rows,
    "one's own, in batches": BatchedRows,
    "nothing for the model": texts,
}


def in_place(data: Dataset) -> Dataset:
    data.set_transform(add_labels)
    return data


def told(make: Callable[[], Trainer]) -> list[str] | list[torch.Tensor]:
    """Return the words of the training error, which may be in any order, or the weights."""
    try:
        trainer = make()
        trainer.train()
    except Exception as error:
        return sorted(re.findall(r"\w+", f"{type(error).__name__}: {error}"))
    return weights(trainer)


NEED_ALL_COLUMNS = ["text", "the source used", "no tokens", "one's own"]


@pytest.mark.parametrize(("name", "removes"), [*product(DATA, [True]), *product(NEED_ALL_COLUMNS, [False])])
def test_the_trainer_accepts_and_refuses_like_the_plain_one(tmp_path: Path, name: str, removes: bool) -> None:
    def as_lists(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return collate(
            [{key: getattr(value, "tolist", lambda v=value: v)() for key, value in row.items()} for row in batch]
        )

    def make(kind: Any, **more: Any) -> Callable[[], Trainer]:
        args = {"remove_unused_columns": removes, "max_steps": 1, "gradient_accumulation_steps": 1}
        return lambda: kind(
            model=tiny_model("llama", num_hidden_layers=2).double(),
            args=arguments(tmp_path / kind.__name__, **args),
            train_dataset=DATA[name](),
            data_collator=as_lists,
            **more,
        )

    plain = told(make(Trainer))
    whole = SelectionConfig(
        keep=1.0, loss="token", train_head="all"
    )  # nothing is left out: the plain trainer's weights
    ours = told(make(CoresetTrainer, selection=whole))
    if isinstance(plain[0], str):
        assert ours == plain
        return
    assert not isinstance(ours[0], str), ours
    for one, other in zip(plain, ours, strict=True):
        torch.testing.assert_close(one, other)
    assert [line["pool_count"] for line in lines(tmp_path / "CoresetTrainer")] == [4]


def made(tokenizer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    ids = tokenizer(batch["prompt"])["input_ids"]
    return {"input_ids": ids, "labels": ids}


TRL: dict[str, Callable[[Any], Dataset]] = {
    "as it is": lambda _: Dataset.from_list(text_rows()).with_transform(lambda batch: batch),
    "tokens": lambda tokenizer: Dataset.from_list(text_rows()).with_transform(
        lambda batch: dict(tokenizer(batch["prompt"]))
    ),
    "fails": lambda _: Dataset.from_list(text_rows()).with_transform(fail),
    "torch": lambda _: Dataset.from_list(text_rows()).with_format("torch"),
    "numpy": lambda _: Dataset.from_list(text_rows()).with_format("numpy"),
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize(("name", "prepares"), [*product(TRL, [True]), ("tokens", False)])
def test_so_does_the_sft_trainer(tmp_path: Path, name: str, prepares: bool) -> None:
    tokenizer = train_tiny_tokenizer([f"{row['prompt']}{row['completion']}" for row in text_rows()])

    def make(kind: Any) -> Callable[[], Trainer]:
        torch.manual_seed(0)
        args = {
            "max_steps": 1,
            "dataset_kwargs": {"skip_prepare_dataset": not prepares},
            "remove_unused_columns": prepares,
        }
        return lambda: kind(
            build_tiny_model(tokenizer),
            sft_settings(tmp_path / kind.__name__, **args),
            train_dataset=TRL[name](tokenizer),
            processing_class=tokenizer,
        )

    plain, ours = told(make(SFTTrainer)), told(make(CoresetSFTTrainer))
    if isinstance(plain[0], str):
        assert ours == plain
    else:
        assert not isinstance(ours[0], str), ours
