"""Tiny models and ragged batches."""

from __future__ import annotations

from typing import Any

import torch

from colm.features.locate import locate_value_site

VOCABULARY = 64


def tiny_model(family: str = "llama", *, lora: bool = False, seed: int = 0, **changes: Any) -> Any:
    """Build a randomly initialized model with two or three layers; LoRA's B is random, not zero."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Phi3Config,
        Phi3ForCausalLM,
        PhiConfig,
        PhiForCausalLM,
    )

    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        **changes,
    }
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**{"num_key_value_heads": 2, **shape}))
    elif family == "phi":
        model = PhiForCausalLM(PhiConfig(**shape))
    elif family == "phi3":
        model = Phi3ForCausalLM(Phi3Config(**{"num_key_value_heads": 2, **shape}))
    elif family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64))
    else:
        raise ValueError(family)
    if lora:
        from peft import LoraConfig, get_peft_model

        target = {"phi3": "qkv_proj", "gpt2": "c_attn"}.get(family, "v_proj")
        config = LoraConfig(
            r=4, lora_alpha=16, lora_dropout=0.1, target_modules=[target], fan_in_fan_out=family == "gpt2"
        )
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def ragged_batch(lengths: list[int], *, side: str = "right", seed: int = 0, width: int | None = None) -> dict[str, Any]:
    """Draw random rows of the given lengths; the first third of each is a prompt, without labels."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    batch = {
        "input_ids": torch.zeros(len(lengths), width, dtype=torch.int64),
        "attention_mask": torch.zeros(len(lengths), width, dtype=torch.int64),
        "labels": torch.full((len(lengths), width), -100),
    }
    for row, length in enumerate(lengths):
        start = width - length if side == "left" else 0
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator)
        batch["input_ids"][row, start : start + length] = ids
        batch["attention_mask"][row, start : start + length] = 1
        batch["labels"][row, start + length // 3 : start + length] = ids[length // 3 :]
    return batch


def one_row(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """Cut one row out of a batch, without its padding."""
    used = batch["attention_mask"][row].bool()
    return {key: value[row : row + 1, used] for key, value in batch.items()}


def with_lora(model: Any, **options: Any) -> Any:
    """Add LoRA with a nonzero B to the module whose gradients are the features."""
    from peft import LoraConfig, get_peft_model

    site = locate_value_site(model)
    settings = {"r": 4, "target_modules": [site.name], "fan_in_fan_out": type(site.module).__name__ == "Conv1D"}
    model = get_peft_model(model, LoraConfig(**{**settings, **options}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def needs_task(model: Any) -> Any:
    """Make a model's forward need one more argument, as a model of one's own may."""
    forward = model.forward
    model.forward = lambda input_ids, task, **inputs: forward(input_ids, **inputs)
    return model
