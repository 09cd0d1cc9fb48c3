"""The prediction compared with the real trainer's allocations in its second step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.allocations import recorded_peak
from torch.profiler import ProfilerActivity, profile

from colm import SelectionConfig
from colm.lab.plan.outlook import Outlook, Request
from colm.lab.plan.shapes import ModelSpec
from colm.lab.plan.steps import Rows

TOKENS, KEEP = 40, 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("lora", "bf16"), [(False, True), (True, False)])
def test_the_trainer_allocates_as_predicted(lora: bool, bf16: bool, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments, default_data_collator

    from colm import CoresetTrainer

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    options = {"r": 4, "target_modules": "all-linear"}
    model: Any = LlamaForCausalLM(config)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    ids = torch.randint(2, 512, (64, TOKENS))
    mask = torch.ones_like(ids)
    mask[::2, -1] = 0
    rows = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=2,
        use_cpu=True,
        bf16=bf16,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = CoresetTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({**{key: value.tolist() for key, value in rows.items()}, "source": ["a"] * 64}),
        data_collator=default_data_collator,
        selection=SelectionConfig(keep=KEEP, small_sources="none"),
    )
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    class SecondStep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                profiler.__enter__()
            else:
                profiler.__exit__(None, None, None)

    trainer.add_callback(SecondStep())
    trainer.train()
    spec = ModelSpec("x", "float32", options if lora else None, torch.bfloat16 if bf16 else None)
    outlook = Outlook(Request(spec, SelectionConfig(keep=KEEP), Rows(TOKENS), 8, 2, device="cpu"), config)
    step = outlook.coreset_step(8, 2)
    predicted = max(step.gradients + step.activations, step.selection)
    assert predicted == pytest.approx(recorded_peak(profiler), rel=0.15)
