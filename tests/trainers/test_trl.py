"""CoresetSFTTrainer: TRL's formats and losses, with each example counted the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tests.support.models import tiny_model
from tests.support.sft import sft_settings, text_rows
from tests.support.trainers import collate, lines, mixture, same_weights, weights
from transformers import TrainingArguments
from trl import SFTConfig

from colm import ConfigError, CoresetSFTTrainer, CoresetTrainer, DataError, SelectionConfig
from colm.losses import example_losses
from colm.models import build_tiny_model, train_tiny_tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = train_tiny_tokenizer([f"{row['prompt']}{row['completion']} user: assistant: \n" for row in text_rows()])
    made.chat_template = TEMPLATE
    return made


def as_format(name: str) -> Dataset:
    made: list[dict[str, Any]] = []
    for row in text_rows():
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        fields: dict[str, Any] = {
            "text": {"text": row["prompt"] + row["completion"]},
            "completion": {"prompt": row["prompt"], "completion": row["completion"]},
            "chat": {"messages": chat},
            "assistant": {"messages": chat},
            "chat completion": {"prompt": chat[:1], "completion": chat[1:]},
        }[name]
        made.append({"source": row["source"], **fields})
    return Dataset.from_list(made)


def seen_batches(trainer: Any) -> list[list[dict[str, Any]]]:
    """Collect what the trainer trains on, step by step."""
    steps: list[list[dict[str, Any]]] = []
    fetch = trainer.get_batch_samples

    def keep(*args: Any) -> Any:
        found = fetch(*args)
        steps.append([dict(batch) for batch in found[0]])
        return found

    trainer.get_batch_samples = keep
    return steps


def mean_over_examples(model: Any, batches: list[dict[str, Any]]) -> float:
    """Compute the mean from one forward per row, each without its padding."""
    losses = []
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            used = batch["attention_mask"][row].bool()
            ids, labels = batch["input_ids"][row][used][None], batch["labels"][row][used][None]
            with torch.no_grad():
                losses.append(float(example_losses(model(input_ids=ids).logits, labels)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", ["text", "completion", "chat", "assistant", "chat completion"])
def test_every_format_is_trained_on_the_mean_over_examples(tmp_path: Path, tokenizer: Any, name: str) -> None:
    trainer = CoresetSFTTrainer(
        build_tiny_model(tokenizer),
        sft_settings(tmp_path, max_steps=1, assistant_only_loss=name == "assistant"),
        train_dataset=as_format(name),
        processing_class=tokenizer,
        selection=SelectionConfig(keep=0.5),
    )
    steps = seen_batches(trainer)
    before = build_tiny_model(tokenizer)
    before.load_state_dict(trainer.model.state_dict())
    trainer.train()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    assert log["loss"] == pytest.approx(mean_over_examples(before.eval(), steps[0]), rel=1e-4)
    assert 0 <= log["mean_token_accuracy"] <= 1
    assert log["coreset_kept"] == 6
    by_source = [log[f"kept/{s}"] * log[f"loss/{s}"] for s in ("adding", "naming", "rare") if f"loss/{s}" in log]
    assert sum(by_source) / 6 == pytest.approx(log["loss"], rel=1e-4)
    (line,) = lines(tmp_path)
    kept = [i for found in line["kept"].values() for i in found]
    data = text_rows()
    assert all(data[i]["source"] == source for source, found in line["kept"].items() for i in found)
    assert len(kept) == 6
    labelled = sum(int((batch["labels"] != -100).sum()) for batch in steps[0])
    everything = sum(int(batch["attention_mask"].sum()) for batch in steps[0])
    assert (labelled < everything) == (name not in ("text", "chat"))


@pytest.mark.parametrize("selection", [{}, {"weights": "represented"}, {"loss": "token"}])
def test_it_trains_as_the_trainer_does(tmp_path: Path, selection: dict[str, Any]) -> None:
    config = SelectionConfig(**selection)
    tokens = train_tiny_tokenizer(["a"])
    ours = CoresetSFTTrainer(
        tiny_model("llama", num_hidden_layers=2),
        sft_settings(tmp_path / "sft"),
        train_dataset=mixture(),
        processing_class=tokens,
        selection=config,
    )
    plain = CoresetTrainer(
        tiny_model("llama", num_hidden_layers=2),
        arguments_like(sft_settings(tmp_path), tmp_path / "plain"),
        train_dataset=mixture(),
        data_collator=collate,
        selection=config,
    )
    for trainer in (ours, plain):
        torch.manual_seed(0)
        trainer.train()
    chosen = [[line["kept"] for line in lines(tmp_path / name)] for name in ("sft", "plain")]
    assert chosen[0] == chosen[1]
    logged = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (ours, plain)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)
    for a, b in zip(weights(ours), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def arguments_like(args: SFTConfig, folder: Path) -> TrainingArguments:
    same = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate", "logging_steps")
    return TrainingArguments(
        str(folder),
        **{name: getattr(args, name) for name in same},
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        use_cpu=True,
    )


def test_evaluation_is_the_mean_over_examples_too(tmp_path: Path, tokenizer: Any) -> None:
    trainer = CoresetSFTTrainer(
        build_tiny_model(tokenizer),
        sft_settings(tmp_path, per_device_eval_batch_size=20),
        train_dataset=as_format("completion"),
        eval_dataset=as_format("completion"),
        processing_class=tokenizer,
    )
    found = trainer.evaluate()["eval_loss"]
    batches = list(trainer.get_eval_dataloader())
    assert found == pytest.approx(mean_over_examples(trainer.model.eval(), batches), rel=1e-4)


def test_lora_checkpointing_and_a_resume(tmp_path: Path, tokenizer: Any) -> None:
    def build(name: str) -> CoresetSFTTrainer:
        torch.manual_seed(0)  # the base, which a checkpoint of an adapter does not hold
        return CoresetSFTTrainer(
            build_tiny_model(tokenizer),
            sft_settings(
                tmp_path / name, max_steps=6, save_strategy="steps", save_steps=2, gradient_checkpointing=True
            ),
            train_dataset=as_format("completion"),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1),
        )

    whole = build("whole")
    whole.train()
    assert whole.selector.site is not None
    assert whole.selector.site.module.in_features == 4  # B of LoRA
    build("cut").train()
    resumed = build("cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same_weights(whole, resumed)


def test_rows_that_trl_drops_keep_their_numbers(tmp_path: Path, tokenizer: Any) -> None:
    data = as_format("completion")
    long = {"source": "rare", "prompt": "x" * 400, "completion": "y"}
    trainer = CoresetSFTTrainer(
        build_tiny_model(tokenizer),
        sft_settings(tmp_path, max_length=64, num_train_epochs=1, max_steps=-1),
        train_dataset=Dataset.from_list([long, *data]),
        processing_class=tokenizer,
    )
    trainer.train()
    pooled = {i: source for line in lines(tmp_path) for source, found in line["pool"].items() for i in found}
    assert 0 not in pooled
    assert pooled == {i + 1: row["source"] for i, row in enumerate(data)}


def test_a_mixture_of_experts_keeps_its_router_loss(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, router_aux_loss_coef=0.5, output_router_logits=True, pad_token_id=0,
    )  # fmt: skip
    trainer = CoresetSFTTrainer(
        MixtralForCausalLM(config),
        sft_settings(tmp_path, max_steps=1),
        train_dataset=mixture(),
        processing_class=train_tiny_tokenizer(["a"]),
    )
    steps = seen_batches(trainer)
    before = MixtralForCausalLM(config)
    before.load_state_dict(trainer.model.state_dict())
    trainer.train()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    rows_alone = mean_over_examples(before.eval(), steps[0])
    assert log["loss"] == pytest.approx(rows_alone + 0.5 * log["aux_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_packing": True}, "eval_packing=True joins several examples"),
        ({"loss_type": "dft"}, "loss_type='dft' is not a mean"),
    ],
)
def test_refusals(tmp_path: Path, tokenizer: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CoresetSFTTrainer(
            build_tiny_model(tokenizer),
            sft_settings(tmp_path, **changes),
            train_dataset=as_format("text"),
            processing_class=tokenizer,
        )


def test_refusals_of_data(tmp_path: Path, tokenizer: Any) -> None:
    def build(data: Any, **changes: Any) -> None:
        CoresetSFTTrainer(
            build_tiny_model(tokenizer),
            sft_settings(tmp_path),
            train_dataset=data,
            processing_class=tokenizer,
            **changes,
        )

    data = as_format("text")
    with pytest.raises(ConfigError, match="compute_loss_func would replace the example mean"):
        build(data, compute_loss_func=lambda *_: None)
    with pytest.raises(ConfigError, match="a column 'image', but selection supports only text"):
        build(data.add_column("image", ["x"] * len(data)))
    with pytest.raises(ValueError, match="SFTTrainer cannot prepare a dataset that uses"):
        build(data.with_transform(lambda rows: rows))
    with pytest.raises(DataError, match="no column 'kind' for the source"):
        build(data, source_column="kind")
    build(data.with_format("torch"))


def test_without_trl_the_message_says_what_to_install() -> None:
    code = "import sys; sys.modules['trl'] = None\nfrom colm import CoresetTrainer\nimport colm\ncolm.CoresetSFTTrainer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'colm[trl]'" in done.stderr.splitlines()[-1]
