from __future__ import annotations

import pytest
import torch
from tests.support.models import ragged_batch, tiny_model
from torch import nn

from colm.errors import ConfigError, UnsupportedModelError
from colm.features.exact import value_gradients
from colm.features.locate import locate_value_site


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.2.self_attn.v_proj"),
        ("phi", "model.layers.2.self_attn.v_proj"),
        ("gpt2", "transformer.h.2.attn.c_attn"),
        ("phi3", "model.layers.2.self_attn.qkv_proj"),
    ],
)
def test_finds_the_last_one(family: str, name: str) -> None:
    model = tiny_model(family)
    site = locate_value_site(model)
    assert site.name == name
    rows = {"llama": 16, "phi": 32, "gpt2": 32, "phi3": 16}[family]
    assert (site.out_features, site.in_features) == (rows, 32)
    if family in ("gpt2", "phi3"):
        assert site.value_rows is not None
        assert site.value_rows.tolist() == list(range(64, 96) if family == "gpt2" else range(48, 64))


def test_lora_b_is_the_target_with_lora() -> None:
    model = tiny_model(lora=True)
    site = locate_value_site(model)
    assert site.weight is model.base_model.model.model.layers[2].self_attn.v_proj.lora_B["default"].weight
    assert (site.out_features, site.in_features) == (16, 4)


@pytest.mark.parametrize("broken", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_nonfinite_logits_are_reported(broken: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(broken)[0, 0] = float("nan")
    with pytest.raises(UnsupportedModelError, match=f"logits are not finite: .* the weight {broken} is not finite"):
        locate_value_site(model)


def test_overflowing_logits_are_reported() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[:] = 3e38
        model.lm_head.weight[:] = 3e38
    with pytest.raises(UnsupportedModelError, match=r"logits are not finite: .* in torch.float32; all weights are"):
        locate_value_site(model)


def test_a_module_can_be_named() -> None:
    model, batch = tiny_model(), ragged_batch([5, 7])
    site = locate_value_site(model, "layers.0.mlp.down_proj")
    assert site.name == "model.layers.0.mlp.down_proj"
    found = value_gradients(model, batch, value_module="layers.0.mlp.down_proj")
    model.zero_grad()
    model(input_ids=batch["input_ids"][1:], labels=batch["labels"][1:]).loss.backward()
    expected = model.model.layers[0].mlp.down_proj.weight.grad.flatten()
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-7)


def test_names_that_match_nothing_several_modules_or_a_nonlinear_one() -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"does not match any module.*Did you mean 'model.layers.2.self_attn.v_proj'"):
        locate_value_site(model, "model.layers.2.self_attn.w_proj")
    with pytest.raises(ConfigError, match="matches 3 modules"):
        locate_value_site(model, "v_proj")
    with pytest.raises(ConfigError, match="is a LlamaRMSNorm; it must be a Linear"):
        locate_value_site(model, "model.norm")


def test_a_model_without_a_value_projection_lists_the_modules_searched() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(UnsupportedModelError, match=r"among 2 linear modules.*the last ones are 0, 1.*value_module"):
        locate_value_site(model)


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_spread_over_several_gpus_is_refused(lora: bool) -> None:
    model = tiny_model(lora=lora)
    (model.base_model.model if lora else model).hf_device_map = {"model.embed_tokens": 0, "model.layers": 1}
    with pytest.raises(UnsupportedModelError, match=r"over devices 0, 1, and .* features='none'"):
        locate_value_site(model)


def test_a_device_map_of_one_device_is_none() -> None:
    model = tiny_model()
    model.hf_device_map = {"": torch.device("cuda:0"), "lm_head": "cpu", "model.norm": "disk"}
    assert locate_value_site(model).name.endswith("v_proj")


def test_a_map_that_the_losses_do_not_depend_on_is_refused() -> None:
    class WithUnused(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.unused = inner, torch.nn.Linear(32, 8)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            self.unused(hidden)
            return self.inner(hidden)

    model = tiny_model()
    model.model.layers[1].mlp = WithUnused(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match="do not depend on the linear map.*value_module"):
        value_gradients(model, ragged_batch([5, 4]), value_module="layers.1.mlp.unused")


def test_the_check_of_the_head_leaves_random_state_and_finds_it_under_dropout() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=2, lora_dropout=0.5, target_modules=["v_proj", "lm_head"]))
    model.base_model.model.lm_head.lora_B.default.weight.data.normal_()
    model.train()
    state = torch.random.get_rng_state()
    assert locate_value_site(model).head is not None
    assert torch.equal(state, torch.random.get_rng_state())
