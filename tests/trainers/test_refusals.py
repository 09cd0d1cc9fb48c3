"""What CoresetTrainer rejects, before training or as soon as it goes wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from tests.support.models import tiny_model
from tests.support.trainers import arguments, collate, coreset_trainer, example_mean_of_outputs, mixture

from colm import ConfigError, CoresetTrainer, DataError, SelectionConfig
from colm.choosing import Step
from colm.mixing import facts_of
from colm.step.record import StepLog, to_dict
from colm.trainers.replay import Replayed
from colm.types import StepRecord


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 would be ignored"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes the pool"),
        ({"gradient_accumulation_steps": 12, "per_device_train_batch_size": 1}, "keeps 6, fewer than its 12"),
    ],
)
def test_settings_that_would_change_the_training_silently(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        coreset_trainer(tmp_path, args=args)


def test_more_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from colm.trainers.checks import check_trainer

    trainer = coreset_trainer(tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(ConfigError, match="2 GPUs in one process mean DataParallel"):
        check_trainer(trainer, SelectionConfig())
    trainer.args._n_gpu = 1
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
        with pytest.raises(ConfigError, match="2 processes were started, but the Trainer trains on 1.*use_cpu=True"):
            check_trainer(trainer, SelectionConfig())
    trainer.args.loss_type = "dft"
    with pytest.raises(ConfigError, match="loss_type='dft'"):
        check_trainer(trainer, SelectionConfig())
    del trainer.args.loss_type
    trainer.args.use_liger_kernel = True
    with pytest.raises(ConfigError, match=r"use_liger_kernel=True needs liger-kernel: pip install 'colm\[fused\]'"):
        check_trainer(trainer, SelectionConfig())
    trainer.args.use_liger_kernel = False
    trainer.args.fsdp = True  # accelerate ignores it on a CPU
    with pytest.raises(ConfigError, match="FSDP shards nothing here"):
        check_trainer(trainer, SelectionConfig())
    trainer.args.fsdp = None
    with monkeypatch.context() as patch:
        patch.setattr(trainer.accelerator.state, "fsdp_plugin", SimpleNamespace(fsdp_version=1), raising=False)
        with pytest.raises(ConfigError, match="FSDP1 has not been tested with selection"):
            check_trainer(trainer, SelectionConfig())
    for kind, name in (("tp", "Tensor"), ("cp", "Context"), ("sp", "Sequence")):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, f"get_{kind}_size", lambda: 2)
            with pytest.raises(ConfigError, match=f"{name} parallelism of 2 ranks"):
                check_trainer(trainer, SelectionConfig())
    with pytest.raises(ConfigError, match=r"compute_loss_func would replace the example mean"):
        coreset_trainer(tmp_path, compute_loss_func=example_mean_of_outputs)
    from peft import PromptTuningConfig, get_peft_model

    prompted = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match="'default' learns a prompt"):
        coreset_trainer(tmp_path, model=prompted)
    trainer.model.config.output_router_logits = True
    with pytest.raises(ConfigError, match="output_router_logits=True"):
        check_trainer(trainer, SelectionConfig())


def adalora(**options: Any) -> Any:
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["v_proj"], **options)
    return get_peft_model(tiny_model(), config)


def test_an_adapters_extra_loss_is_refused_if_it_would_be_ignored(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"AdaLoRA's orth_reg_weight=0.5 adds a loss .* set it to 0, or use loss='token'"
    ):
        coreset_trainer(tmp_path, model=adalora())
    coreset_trainer(tmp_path, model=adalora(orth_reg_weight=0.0))
    coreset_trainer(tmp_path, model=adalora(), selection=SelectionConfig(loss="token"))


@pytest.mark.parametrize("kind", ["OFT", "AdaLoRA"])
def test_adapters_without_a_linear_map_of_their_own_train(tmp_path: Path, kind: str) -> None:
    from peft import OFTConfig, get_peft_model

    oft = OFTConfig(oft_block_size=4, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny_model(), oft) if kind == "OFT" else adalora(orth_reg_weight=0.0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = coreset_trainer(tmp_path, model=model)
    trainer.train()
    for name, weight in model.named_parameters():
        assert weight.requires_grad == (("oft_R" if kind == "OFT" else "lora_") in name)
        assert weight.requires_grad or weight.equal(before[name])  # the projection gives the features, and stays
        assert not ("oft_R" in name or "lora_E" in name) or not weight.equal(before[name])


def test_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'sorce' for the source. Did you mean 'source'"):
        coreset_trainer(tmp_path, source_column="sorce")
    with pytest.raises(DataError, match="train_dataset is empty"):
        CoresetTrainer(tiny_model(), arguments(tmp_path), train_dataset=mixture(2).select([]), data_collator=collate)
    with pytest.raises(DataError, match="is a DatasetDict with the splits 'train'; pass one of them"):
        coreset_trainer(tmp_path, train_dataset=DatasetDict({"train": mixture()}))
    with pytest.raises(DataError, match="needs a train_dataset"):
        CoresetTrainer(tiny_model(), arguments(tmp_path), data_collator=collate)
    with pytest.raises(DataError, match="Expected a map-style dataset"):
        coreset_trainer(tmp_path, train_dataset=iter(mixture()))
    trainer = coreset_trainer(tmp_path)
    trainer.data_collator = collate
    with pytest.raises(DataError, match="lost 'colm_source'"):
        trainer.train()


def test_a_model_that_takes_no_count_of_tokens_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(num_hidden_layers=1)
    forward = model.forward
    model.forward = lambda input_ids, attention_mask=None, labels=None: forward(
        input_ids, attention_mask, labels=labels
    )
    reported = "does not take num_items_in_batch, so the loss of a step is the mean of its micro-batches' means"
    for loss, micro_batches, expected in (("example", 3, 0), ("token", 1, 0), ("token", 3, 1)):
        selection = SelectionConfig(loss=loss, features="none")  # type: ignore[arg-type]
        coreset_trainer(tmp_path, model=model, selection=selection, args={"gradient_accumulation_steps": micro_batches})
        assert caplog.text.count(reported) == expected


def test_a_replay_of_another_run_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    coreset_trainer(tmp_path / "run").train()
    record = tmp_path / "run" / "selection.jsonl"
    other = coreset_trainer(tmp_path / "other", replay=record, args={"seed": 1})
    torch.manual_seed(1)
    with pytest.raises(DataError, match=r"The pool of step 0 is not the recorded one: row \d+ of '\w' is only here"):
        other.train()
    record.write_bytes(record.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"selection.jsonl, line \d+, is incomplete"):
        coreset_trainer(tmp_path / "cut", replay=record)
    record.write_text("")
    with pytest.raises(ConfigError, match="holds no step to replay"):
        coreset_trainer(tmp_path / "none", replay=record)


def test_a_replay_of_rows_that_share_a_number_is_refused(tmp_path: Path) -> None:
    """As those of a stream that several workers read."""
    record = StepRecord(0, {"a": [0, 0, 1]}, {"a": [0, 1]}, {}, 0, 0, 0, 0.0)
    log = StepLog(tmp_path / "selection.jsonl")
    log.write(to_dict(record))
    step = Step(0, None, facts_of(["a"] * 3, [0, 0, 1], slots=1), SelectionConfig(), frozenset(), {})
    with pytest.raises(DataError, match="Rows of step 0 share a number"):
        Replayed(log.path).choose(step)
