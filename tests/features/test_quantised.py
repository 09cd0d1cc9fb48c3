"""A quantized base model: LoRA's features do not need its weights, and it stays unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.gradients import one_backward_per_example
from tests.support.models import ragged_batch, tiny_model

from colm.features.exact import value_gradients
from colm.features.locate import locate_value_site
from colm.losses import example_losses


def quantised_llama(folder: Path, method: str, *, lora: bool = True) -> Any:
    """Return a Llama with a quantized base and LoRA with random B on all its linear maps."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    if method == "torchao int8":
        from torchao.quantization import Int8WeightOnlyConfig

        quantization: Any = TorchAoConfig(Int8WeightOnlyConfig())
    elif method == "bitsandbytes 8-bit":
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = tiny_model("llama", hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2)
    base.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, dtype=torch.float32)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def train_once(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    model.train()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    loss = example_losses(model(**inputs).logits, batch["labels"]).sum()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.quantised
@pytest.mark.parametrize("method", ["torchao int8", "bitsandbytes 8-bit", "bitsandbytes 4-bit"])
def test_lora_on_a_quantised_base(tmp_path: Path, method: str) -> None:
    model, batch = quantised_llama(tmp_path, method), ragged_batch([13, 5, 9])
    trained_before = train_once(model, batch)
    site = locate_value_site(model)
    assert site.name.endswith("layers.2.self_attn.v_proj")
    assert type(site.module) is torch.nn.Linear  # LoRA's B, in float32
    found = value_gradients(model, batch)
    trained_after = train_once(model, batch)
    for before, after in zip(trained_before, trained_after, strict=True):
        assert torch.equal(before, after)  # the pass changed no weight, nor the way it is stored
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # the oracle's own forward would repack the weights
    expected = one_backward_per_example(model, batch, own_loss=False)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
