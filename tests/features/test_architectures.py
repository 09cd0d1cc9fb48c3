"""Every layout family: the right module, the right rows, and the gradient of one backward per example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.support.architectures import LAYOUTS, build_architecture
from tests.support.gradients import one_backward_per_example
from tests.support.models import ragged_batch, with_lora
from transformers import CONFIG_MAPPING

from colm.errors import UnsupportedModelError
from colm.features.exact import exact_features, value_gradients
from colm.features.locate import locate_value_site
from colm.step.pool import Pool


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_exact_for_the_family(family: str, lora: bool) -> None:
    model_type, changes = LAYOUTS[family]
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    model = build_architecture(model_type, **changes)
    if lora:
        model = with_lora(model)
    batch = ragged_batch([13, 9, 16, 7])
    expected = one_backward_per_example(model, batch, own_loss=False)
    found = value_gradients(model, batch)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    pool = Pool(ragged_batch([13, 9, 16, 7], side="left", width=20))
    split = exact_features(model, locate_value_site(model), pool, [[2], [3, 0, 1]]).rows(torch.arange(4))
    assert float((split - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize(
    ("model_type", "changes", "name", "values", "after"),
    [
        ("gpt_neox", {}, "gpt_neox.layers.1.attention.query_key_value", [*range(32, 48), *range(80, 96)], 0),
        ("codegen", {}, "transformer.h.1.attn.qkv_proj", [16 + i + 48 * j for j in range(4) for i in range(16)], 0),
        ("mpt", {}, "transformer.blocks.1.attn.Wqkv", list(range(128, 192)), 0),
        ("falcon", {}, "transformer.h.1.self_attention.query_key_value", list(range(80, 96)), 0),
        (
            "deepseek_v3",
            {},
            "model.layers.1.self_attn.kv_b_proj",
            [8 + i + 24 * j for j in range(4) for i in range(16)],
            0,
        ),
        ("lfm2", {}, "model.layers.1.self_attn.v_proj", None, 2),
        ("jamba", {}, "model.layers.2.self_attn.v_proj", None, 3),
        ("qwen3_next", {}, "model.layers.3.self_attn.v_proj", None, 1),
    ],
)
def test_module_and_value_rows(
    model_type: str, changes: dict[str, Any], name: str, values: list[int] | None, after: int
) -> None:
    if model_type == "gpt_neox":
        changes = {"num_attention_heads": 2, "hidden_size": 32}
    site = locate_value_site(build_architecture(model_type, **changes))
    assert site.name == name
    assert (site.value_rows.tolist() if site.value_rows is not None else None) == values
    assert site.layers_after == after


@pytest.mark.parametrize(
    ("model_type", "factor"), [("gpt2", 300.0), ("gpt2", 0.0), ("gpt_neox", 300.0), ("gpt_neox", 0.0)]
)
def test_outlying_and_pruned_value_channels_are_values(model_type: str, factor: float) -> None:
    model = build_architecture(model_type)
    expected = locate_value_site(model).value_rows
    with torch.no_grad():
        if model_type == "gpt2":
            model.transformer.h[1].attn.c_proj.weight[5] *= factor
        else:
            model.gpt_neox.layers[1].attention.dense.weight[:, 5] *= factor
    found = locate_value_site(model).value_rows
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("model_type", ["mamba", "falcon_mamba"])
def test_models_without_attention_are_refused_unless_a_module_is_named(model_type: str) -> None:
    model = build_architecture(model_type)
    with pytest.raises(UnsupportedModelError, match=r"has no value projection. Name the module to use"):
        locate_value_site(model)
    batch = ragged_batch([13, 9])
    named = "layers.1.mixer.in_proj"
    found = value_gradients(model, batch, value_module=named)
    model.zero_grad()
    model(input_ids=batch["input_ids"][:1], labels=batch["labels"][:1]).loss.backward()
    expected = model.backbone.layers[1].mixer.in_proj.weight.grad.flatten()
    assert float((found[0] - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 0.3}),
        ("cohere", {"logit_scale": 3.0}),
        ("granite", {"logits_scaling": 5.0}),
        ("phi", {}),  # a head with a bias
        ("llama", {"tie_word_embeddings": True}),
    ],
)
def test_the_head_apart_gives_the_models_own_logits(model_type: str, settings: dict[str, Any]) -> None:
    model = build_architecture(model_type, **settings)
    site = locate_value_site(model)
    assert site.head is not None
    assert dict(site.head.finishes).items() >= {k: v for k, v in settings.items() if k != "tie_word_embeddings"}.items()
    batch = ragged_batch([13, 9])
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=batch["input_ids"][:1]).last_hidden_state[0]
        expected = model(input_ids=batch["input_ids"][:1]).logits[0]
        torch.testing.assert_close(site.head.logits(hidden), expected)


def test_a_head_with_unknown_processing_stays_unchunked(caplog: pytest.LogCaptureFixture) -> None:
    model = build_architecture("cohere", logit_scale=3.0)
    model.config.logit_scale = None  # as if it were missing from the table
    with caplog.at_level("INFO"):
        site = locate_value_site(model)
    assert site.head is None
    assert "runs on all labeled tokens at once" in caplog.text
    batch = ragged_batch([13, 9])
    expected = one_backward_per_example(model, batch, own_loss=False)
    assert float((value_gradients(model, batch) - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}], ids=["rslora", "dora"])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_lora_variants(model_type: str, options: dict[str, Any]) -> None:
    model = with_lora(build_architecture(model_type), **options)
    batch = ragged_batch([13, 9, 16, 7])
    expected = one_backward_per_example(model, batch, own_loss=False)
    found = value_gradients(model, batch)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_of_several_adapters_the_active_one_is_taken() -> None:
    from peft import LoraConfig

    model = with_lora(build_architecture("llama"))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    assert locate_value_site(model).in_features == 4
    model.set_adapter("other")
    assert locate_value_site(model).in_features == 2


def test_a_whole_copy_is_taken_where_peft_trains_one() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        build_architecture("llama"), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["v_proj"])
    )
    site = locate_value_site(model)
    assert site.weight.requires_grad
    assert "modules_to_save" in next(name for name, weight in model.named_parameters() if weight is site.weight)
    batch = ragged_batch([13, 9])
    expected = one_backward_per_example(model, batch, own_loss=False)
    assert float((value_gradients(model, batch) - expected).norm() / expected.norm()) < 1e-4


def test_an_untrained_projection_is_replaced_by_the_nearest_trained_map(caplog: pytest.LogCaptureFixture) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build_architecture("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    site = locate_value_site(model)
    assert site.name.endswith("layers.1.self_attn.q_proj")
    assert "v_proj is not trained; the features are gradients of" in caplog.text
    batch = ragged_batch([13, 9])
    expected = one_backward_per_example(model, batch, own_loss=False)
    assert float((value_gradients(model, batch) - expected).norm() / expected.norm()) < 1e-4


def test_all_frozen_falls_back_to_the_projection_itself(caplog: pytest.LogCaptureFixture) -> None:
    model = build_architecture("llama")
    model.requires_grad_(False)
    assert locate_value_site(model).name.endswith("v_proj")
    assert "nor is any other map of its layer" in caplog.text


def test_compiled_and_distributed_wrappers_are_unwrapped() -> None:
    model = build_architecture("llama")
    batch = ragged_batch([13, 9])
    plain = value_gradients(model, batch)
    torch.testing.assert_close(value_gradients(torch.compile(model, backend="eager"), batch), plain)
