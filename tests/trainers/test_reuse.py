"""`reuse_forward` in the two trainers: what is trained is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.support.models import tiny_model
from tests.support.sft import sft_settings
from tests.support.trainers import arguments, coreset_trainer, lines, mixture, weights
from transformers import TrainerCallback

from colm import ConfigError, CoresetSFTTrainer, SelectionConfig
from colm.models import train_tiny_tokenizer
from colm.reuse.known import KnownForward

REUSE = SelectionConfig(reuse_forward=True)


class Gradients(TrainerCallback):
    """Keeps the gradient of every step."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self.found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the layers whose forward was not run."""
    numbers: list[int] = []
    run = KnownForward.run

    def counted(self: KnownForward, number: int, *args: Any) -> Any:
        numbers.append(number)
        return run(self, number, *args)

    monkeypatch.setattr(KnownForward, "run", counted)
    return numbers


@pytest.mark.parametrize("bf16", [False, True])
def test_the_trainer_trains_the_same(tmp_path: Path, known: list[int], bf16: bool) -> None:
    runs = []
    for reuse in (False, True):
        folder = tmp_path / str(reuse)
        trainer = coreset_trainer(
            folder,
            selection=SelectionConfig(reuse_forward=reuse, warmup_steps=1),
            args={"gradient_checkpointing": True, "bf16": bf16, "max_steps": 4, "learning_rate": 0.0},
        )
        trainer.add_callback(gradients := Gradients())
        torch.manual_seed(0)
        trainer.train()
        runs.append((gradients.found, lines(folder), weights(trainer)))
    assert len(known) == 3 * 3 * 2  # steps after the warm-up, micro-batches, layers
    assert [line["kept"] for line in runs[0][1]] == [line["kept"] for line in runs[1][1]]
    for a, b in zip(runs[1][0], runs[0][0], strict=True):
        assert float((a - b).norm() / b.norm()) < (3e-2 if bf16 else 1e-4)
    assert "_gradient_checkpointing_func" in vars(trainer.model.model.layers[0])
    assert not trainer.selector._reuse._waiting


def test_trl_trains_the_same(tmp_path: Path, known: list[int]) -> None:
    runs = []
    for reuse in (False, True):
        folder = tmp_path / str(reuse)
        trainer = CoresetSFTTrainer(
            tiny_model("llama", num_hidden_layers=2),
            sft_settings(folder, gradient_checkpointing=True, max_steps=2, learning_rate=0.0),
            train_dataset=mixture(60),
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
            selection=SelectionConfig(reuse_forward=reuse),
            processing_class=train_tiny_tokenizer(["a"]),
        )
        trainer.add_callback(gradients := Gradients())
        torch.manual_seed(0)
        trainer.train()
        runs.append((gradients.found, lines(folder)))
    assert len(known) == 2 * 3 * 2
    assert [line["kept"] for line in runs[0][1]] == [line["kept"] for line in runs[1][1]]
    for a, b in zip(runs[1][0], runs[0][0], strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-4


def test_checkpointing_that_is_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gradient checkpointing, which is off; set gradient_checkpointing=True"):
        coreset_trainer(tmp_path, selection=REUSE)


def test_compilation_is_refused(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, selection=REUSE, args={"gradient_checkpointing": True})
    trainer.args.torch_compile = True
    with pytest.raises(ConfigError, match=r"torch_compile=True inlines"):
        trainer.train()
    assert arguments(tmp_path).torch_compile is False
