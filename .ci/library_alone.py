"""Trains two steps with `CoresetTrainer` where only the library and its dependencies are installed."""

import importlib.util

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from colm import CoresetTrainer, SelectionConfig

assert importlib.util.find_spec("peft") is None
tokens = [[1, 2, 3, 4 + i % 9] for i in range(64)]
rows = Dataset.from_list([{"source": "ab"[i % 3 == 0], "input_ids": x, "labels": x} for i, x in enumerate(tokens)])
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
)


def collate(rows: list) -> dict:
    """Stack rows of the same length; the columns that colm adds are numbers."""
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


args = TrainingArguments(
    "library", max_steps=2, gradient_accumulation_steps=2, report_to="none", use_cpu=True, save_strategy="no"
)
trainer = CoresetTrainer(
    model=model, args=args, train_dataset=rows, data_collator=collate, selection=SelectionConfig(keep=0.5)
)
trainer.train()
assert trainer.state.global_step == 2
