"""The rows of the part "does it help", as stored in the archive, and their losses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor

from colm.lab.data.questions import Question
from colm.lab.evaluate.judge import Prompts
from colm.losses import find_labelled, mean_by_row
from colm.step.pool import IGNORE

PLACE = "helps"
"""Folder of this part within the unpacked data."""

Losses = dict[str, float]


class EvalBatch(NamedTuple):
    """Validation rows of similar length, padded on the right."""

    ids: Tensor  # (n, T)
    labels: Tensor  # (n, T)
    mask: Tensor  # (n, T)
    sources: list[str]

    def part(self, rows: int) -> EvalBatch:
        """Return this many rows, of all lengths."""
        some = slice(None, None, max(1, len(self.sources) // rows))
        return EvalBatch(self.ids[some], self.labels[some], self.mask[some], self.sources[some])

    def to(self, device: torch.device) -> EvalBatch:
        """Return the batch on a device."""
        return EvalBatch(self.ids.to(device), self.labels.to(device), self.mask.to(device), self.sources)


class Rows:
    """Training rows, batches of validation rows, and questions.

    Args:
        place: the output folder of `tokenized.write`.
        batch: validation rows per batch.
        pad: the padding token.
    """

    def __init__(self, place: Path, batch: int, pad: int) -> None:
        self.about: dict[str, Any] = json.loads((place / "about.json").read_text(encoding="utf-8"))
        self.model: str = self.about["model"]
        columns = pq.read_table(place / "train.parquet").to_pydict()
        columns["attention_mask"] = [[1] * len(ids) for ids in columns["input_ids"]]
        self.train = Dataset.from_dict(columns)
        self.batches = make_batches(pq.read_table(place / "validation.parquet").to_pylist(), batch, pad)
        lines = [json.loads(line) for line in (place / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
        self.questions = [Question(q["source"], q["number"], "prompt", {}, q["expected"], None) for q in lines]
        self.prompts = Prompts([q["prompt"] for q in lines], [False] * len(lines))

    def losses(self, model: Any, device: torch.device) -> Losses:
        """Return each source's mean over its validation rows of the mean loss over labeled tokens."""
        found: list[Tensor] = [row_losses(model, batch.to(device)) for batch in self.batches]
        values = torch.cat(found).tolist()
        by_source: dict[str, list[float]] = {}
        for name, loss in zip((name for batch in self.batches for name in batch.sources), values, strict=True):
            by_source.setdefault(name, []).append(loss)
        return {name: round(sum(held) / len(held), 6) for name, held in sorted(by_source.items())}


def pad_rows(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Tensor]:
    """Return a batch of rows, padded on the right; ten times as fast as the tokenizer's own padding."""
    shape = (len(rows), max(len(row["input_ids"]) for row in rows))
    batch = {
        "input_ids": torch.full(shape, pad),
        "labels": torch.full(shape, IGNORE),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    for place, row in enumerate(rows):
        length = len(row["input_ids"])
        batch["input_ids"][place, :length] = torch.tensor(row["input_ids"])
        batch["labels"][place, :length] = torch.tensor(row["labels"])
        batch["attention_mask"][place, :length] = 1
    return batch


def make_batches(rows: list[dict[str, Any]], size: int, pad: int) -> list[EvalBatch]:
    """Return batches of the rows, the longest first, so that memory runs out at once or never."""
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    batches = []
    for start in range(0, len(rows), size):
        held = rows[start : start + size]
        batch = pad_rows(held, pad)
        sources = [row["source"] for row in held]
        batches.append(EvalBatch(batch["input_ids"], batch["labels"], batch["attention_mask"], sources))
    return batches


def row_losses(model: Any, batch: EvalBatch) -> Tensor:
    """Return the loss of each row, (n,), running the head only on labeled positions.

    No mask is needed, which avoids a slower attention: no token sees the padding after it.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = inner.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    labelled = find_labelled(batch.labels)
    return mean_by_row(inner.lm_head(labelled.of(hidden)), labelled.targets, labelled.row, len(batch.labels))
