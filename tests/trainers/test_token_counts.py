"""Tokens, operations and rates are counted over the trained micro-batches, by the plain Trainer's rules."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import tiny_model
from tests.support.trainers import arguments, collate, mixture
from transformers import Trainer

from colm import CoresetTrainer, SelectionConfig
from colm.models import train_tiny_tokenizer
from colm.trainers.columns import without_codes


class Kept(CoresetTrainer):
    """Stores copies of the batches it trains on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.steps: list[list[dict[str, Any]]] = []
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, *args: Any) -> Any:
        kept, count = super().get_batch_samples(*args)
        self.steps.append([{key: value.clone() for key, value in without_codes(batch).items()} for batch in kept])
        return kept, count


class Fed(Trainer):
    """The plain Trainer on given micro-batches."""

    steps: list[list[dict[str, Any]]]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches = self.steps[self.state.global_step]
        return batches, self._get_num_items_in_batch(batches, device)


def without_mask(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in collate(rows).items() if key != "attention_mask"}


def to_eights(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = collate(rows)
    more = -batch["input_ids"].shape[1] % 8
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {key: torch.nn.functional.pad(value, (0, more), value=fill[key]) for key, value in batch.items()}


RATES = ("num_input_tokens_seen", "total_flos", "loss", "train_loss", "epoch", "learning_rate", "grad_norm")
COLLATORS = {"a mask": collate, "no mask": without_mask, "to eights": to_eights}


def figures(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the logged values except times; rates must at least be present."""
    return [
        {key: value for key, value in log.items() if key in RATES}
        | {"rates": sorted(k for k in log if "_per_second" in k)}
        for log in trainer.state.log_history
    ]


@pytest.mark.parametrize(
    ("counts", "collator"),
    [*product(["all", "non_padding"], COLLATORS), ("no", "a mask"), (True, "a mask"), (False, "a mask")],
)
def test_counts_are_those_of_the_plain_trainer_on_the_same_micro_batches(
    tmp_path: Path, counts: Any, collator: str
) -> None:
    tokenizer = train_tiny_tokenizer(["a"])  # its padding token is 0
    common: dict[str, Any] = {
        "train_dataset": mixture(40),
        "data_collator": COLLATORS[collator],
        "processing_class": tokenizer,
    }
    args = {"include_num_input_tokens_seen": counts, "max_steps": 4}
    ours = Kept(
        model=tiny_model("llama", num_hidden_layers=2),
        args=arguments(tmp_path / "ours", **args),
        selection=SelectionConfig(loss="token", train_head="all"),  # to the bit
        **common,
    )
    ours.train()
    plain = Fed(model=tiny_model("llama", num_hidden_layers=2), args=arguments(tmp_path / "plain", **args), **common)
    plain.steps = ours.steps
    plain.train()
    assert figures(ours) == figures(plain)
    held = [batch for step in ours.steps for batch in step]
    padded = sum(batch["input_ids"].numel() for batch in held)
    real = sum(int((batch["input_ids"] != 0).sum()) for batch in held)
    expected = {"all": padded, True: padded, "non_padding": real}.get(counts, 0)
    assert ours.state.num_input_tokens_seen == plain.state.num_input_tokens_seen == expected
    assert ours.state.total_flos == plain.state.total_flos


@pytest.mark.parametrize("counts", ["all", "non_padding"])
def test_a_resumed_run_continues_the_counts(tmp_path: Path, counts: str) -> None:
    args = {"include_num_input_tokens_seen": counts, "save_strategy": "steps", "save_steps": 3}
    found = []
    for resume in (False, str(tmp_path / "checkpoint-3")):
        trainer = CoresetTrainer(
            model=tiny_model("llama", num_hidden_layers=2),
            args=arguments(tmp_path, **args),
            train_dataset=mixture(40),
            data_collator=collate,
        )
        trainer.train(resume_from_checkpoint=resume)
        found.append((trainer.state.num_input_tokens_seen, trainer.state.total_flos))
    assert found[0] == found[1]
