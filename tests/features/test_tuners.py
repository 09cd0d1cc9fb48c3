"""Every PEFT adapter type: features match one backward per row, or an error names the adapter."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tests.support.gradients import one_backward_per_example
from tests.support.models import ragged_batch, tiny_model

from colm.errors import UnsupportedModelError
from colm.features.exact import exact_features, value_gradients
from colm.features.locate import locate_value_site
from colm.losses import example_losses
from colm.step.pool import Pool

PROMPTS = {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM", "target_modules": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "ADAPTION_PROMPT": {"adapter_layers": 1, "adapter_len": 2, "task_type": "CAUSAL_LM", "target_modules": None},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "CPT": {
        "cpt_token_ids": [1, 2],
        "cpt_mask": [1, 1],
        "cpt_tokens_type_mask": [1, 1],
        "task_type": "CAUSAL_LM",
        "target_modules": None,
    },
    "FOURIERFT": {"n_frequency": 10},
    "HRA": {"r": 2},
    "MISS": {"r": 4},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MULTITASK_PROMPT_TUNING": PROMPTS,
    "OFT": {"oft_block_size": 4},
    "PREFIX_TUNING": PROMPTS,
    "PROMPT_TUNING": PROMPTS,
    "PSOFT": {"r": 4},
    "P_TUNING": PROMPTS,
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 2]},
    "VBLORA": {"num_vectors": 4, "vector_length": 4, "topk": 2, "r": 2},
    "WAVEFT": {"n_frequency": 10},
}
MAY_BE_REFUSED = {
    **dict.fromkeys(("CPT", "MULTITASK_PROMPT_TUNING", "PROMPT_TUNING", "P_TUNING"), "learns a prompt"),
    **dict.fromkeys(("FROD", "GLORA", "HRA", "SHIRA", "SUPERTUNING"), "without calling the projection"),
    **dict.fromkeys(("POLY", "SHADOW"), "did not run on one token"),
    "LILY": "averages over the rows",
}
"""Adapters that may be rejected, with text that the message must contain in addition to the adapter's name."""

NOT_BUILT = {"CARTRIDGE", "XLORA"}
"""These start from a key-value cache and from adapters on disk."""

TYPES = sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING if str(kind.value) not in NOT_BUILT)


def adapt(config: Any, *, fill: bool = True) -> Any:
    """Add an adapter to a tiny model and perturb its initial weights, with which many adapters have no effect."""
    model = peft.get_peft_model(tiny_model(), config)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if fill and weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def check_against_one_backward_a_row(model: Any) -> None:
    batch = ragged_batch([9, 7, 11])
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    found = value_gradients(model, batch)
    pool = exact_features(model, locate_value_site(model), Pool(batch), [[2], [1, 0]]).rows(torch.arange(3))
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trained
    expected = one_backward_a_row(model, batch)
    assert float(expected.norm()) > 0
    for features in (found, pool):
        assert float((features - expected).norm() / expected.norm()) < 1e-4


def one_backward_a_row(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the gradient through the projection's product: some adapters also read its weight elsewhere."""
    site = locate_value_site(model)
    if site.weight.requires_grad:
        return one_backward_per_example(model, batch, own_loss=False)
    model.eval()
    offset = torch.zeros(site.out_features, site.in_features, requires_grad=True)
    handle = site.module.register_forward_hook(lambda module, args, output: output + args[0] @ offset.T)
    rows = []
    for row in range(len(batch["input_ids"])):
        used = batch["attention_mask"][row].bool()
        logits = model(input_ids=batch["input_ids"][row : row + 1, used]).logits
        loss = example_losses(logits, batch["labels"][row : row + 1, used]).sum()
        rows.append(torch.autograd.grad(loss, offset)[0].flatten())
    handle.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_every_kind_of_adapter(kind: str) -> None:
    config = next(held for name, held in PEFT_TYPE_TO_CONFIG_MAPPING.items() if str(name.value) == kind)
    options = {"target_modules": ["v_proj"], **OPTIONS.get(kind, {})}
    model = adapt(config(**{key: value for key, value in options.items() if value is not None}))
    said = None
    try:
        check_against_one_backward_a_row(model)
    except UnsupportedModelError as error:
        said = str(error)
    assert said is None or (f"{kind} adapter" in said and MAY_BE_REFUSED[kind] in said and "\n" not in said)


LORA: dict[str, dict[str, Any]] = {
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "bias": {"bias": "all"},
    "bias of LoRA": {"lora_bias": True},
    "without the last layer": {"layers_to_transform": [0, 1]},
    "another projection": {"target_modules": ["o_proj", "up_proj"]},
    "a saved module": {"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "trained tokens": {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    "all": {"target_modules": "all-linear"},
    "ranks that differ": {"target_modules": "all-linear", "rank_pattern": {"v_proj": 2}},
}


@pytest.mark.parametrize("variant", LORA)
@pytest.mark.filterwarnings("ignore")
def test_variants_of_lora(variant: str) -> None:
    check_against_one_backward_a_row(adapt(peft.LoraConfig(**{"r": 4, "target_modules": ["v_proj"], **LORA[variant]})))


@pytest.mark.filterwarnings("ignore")
def test_lora_on_a_weight_itself_is_refused() -> None:
    model = adapt(peft.LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["v_proj.weight"]))
    with pytest.raises(UnsupportedModelError, match="LORA adapter computes .* Use LoRA with target_modules"):
        locate_value_site(model)


@pytest.mark.parametrize("kind", ["OFT", "ADALORA", "IA3"])
@pytest.mark.parametrize("layers", [None, [0, 1]], ids=["all layers", "not the last"])
def test_adapters_without_a_linear_map_of_their_own_leave_the_projection(
    kind: str, layers: list[int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    config = next(held for name, held in PEFT_TYPE_TO_CONFIG_MAPPING.items() if str(name.value) == kind)
    options = {"target_modules": ["v_proj", "down_proj"], **OPTIONS[kind]}
    model = adapt(config(**options | ({"layers_to_transform": layers} if layers and kind != "IA3" else {})))
    with caplog.at_level("INFO"):
        site = locate_value_site(model)
    assert site.name.endswith("layers.2.self_attn.v_proj")
    assert (site.out_features, site.in_features) == (16, 32)
    assert (f"The {kind} adapter has no linear map of its own" in caplog.text) == (layers is None or kind == "IA3")
