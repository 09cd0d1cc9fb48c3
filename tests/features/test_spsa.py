"""SPSA compared with finite differences on truly perturbed weights, and with the gradient it estimates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.architectures import build_architecture
from tests.support.models import ragged_batch, tiny_model

from colm.features.exact import value_gradients
from colm.features.locate import locate_value_site
from colm.features.spsa import draw_directions, site_for_copies, spsa_features, spsa_gradients
from colm.losses import example_losses
from colm.step.pool import Pool


def losses_with_weight_moved(model: Any, site: Any, batch: dict[str, Any], change: torch.Tensor) -> torch.Tensor:
    """Add `change` (d_out, d_in) to the weight's value rows, run the model, and subtract it again."""
    weight = site.weight
    before = weight.detach().clone()
    view = weight.data.T if type(site.module).__name__ == "Conv1D" else weight.data
    if site.value_rows is None:
        view += change
    else:
        view[site.value_rows] += change
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    weight.data.copy_(before)
    return example_losses(logits, batch["labels"])


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2", "phi3"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_equals_true_finite_differences(family: str, lora: bool) -> None:
    model = tiny_model(family, lora=lora).double().eval()  # float64, where a difference keeps its digits
    site = site_for_copies(model, locate_value_site(model))
    assert len(site.layers) == 1
    check_against_true_differences(model, site, ragged_batch([9, 4, 7]))


@pytest.mark.parametrize("model_type", ["mpt", "bloom", "gemma3n_text", "hrm_text"])
def test_models_where_only_the_input_can_be_repeated(model_type: str) -> None:
    """As many heads as rows, rows in another dimension, layers that run again."""
    model = build_architecture(model_type).double()
    site = site_for_copies(model, locate_value_site(model))
    assert site.layers == ()
    check_against_true_differences(model, site, ragged_batch([9, 4, 7]))


def test_layers_that_mix_up_repeated_rows_are_detected() -> None:
    """A layer repeats a per-row memory row by row, while the copies of the batch are consecutive."""
    model = tiny_model()
    last = model.model.layers[-1]
    memory: dict[str, torch.Tensor] = {}

    def remember(module: Any, args: Any, output: torch.Tensor) -> None:
        memory["state"] = output.mean(1, keepdim=True)

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + memory["state"].repeat_interleave(len(output) // len(memory["state"]), 0)

    model.model.layers[0].register_forward_hook(remember)
    last.register_forward_hook(add)
    site = locate_value_site(model)
    assert site.layers
    assert site_for_copies(model, site).layers == ()


def test_dora_with_as_many_tokens_as_its_rank() -> None:
    """DoRA runs B on the identity of its rank: here that looks like 4 rows of 1 token."""
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(build_architecture("llama"), LoraConfig(r=24, use_dora=True, target_modules=["v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model = model.double()
    site = site_for_copies(model, locate_value_site(model))
    directions = draw_directions(site, 2, torch.Generator().manual_seed(5)).double()
    batch = ragged_batch([3, 3])  # 2 rows x 3 tokens x 2 signs x 2 probes = 24
    eps = 1e-3
    slopes = spsa_features(model, site, Pool(batch), [[0, 1]], directions, eps).slopes
    exact = value_gradients(model, batch).double()
    torch.testing.assert_close(slopes, exact @ directions.flatten(1).T, rtol=1e-3, atol=1e-5)


def check_against_true_differences(model: Any, site: Any, batch: dict[str, Any]) -> None:
    directions = draw_directions(site, 3, torch.Generator().manual_seed(5)).double()
    eps = 1e-2
    found = spsa_features(model, site, Pool(batch), [[0, 1, 2]], directions, eps)
    expected = torch.zeros(3, site.dim, dtype=torch.float64)
    for z in directions:
        plus = losses_with_weight_moved(model, site, batch, eps * z)
        minus = losses_with_weight_moved(model, site, batch, -eps * z)
        expected += ((plus - minus) / (2 * eps))[:, None] * z.flatten() / 3
    torch.testing.assert_close(
        found.rows(torch.arange(3)), expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max())
    )


def test_error_falls_like_one_over_the_root_of_the_probes() -> None:
    model, batch = tiny_model(lora=True), ragged_batch([9, 4, 7, 11])
    exact = value_gradients(model, batch)
    errors = {}
    for probes in (64, 1024):
        estimate = spsa_gradients(model, batch, probes=probes, eps=1e-3, generator=torch.Generator().manual_seed(0))
        errors[probes] = float((estimate - exact).norm() / exact.norm())
        expected = (exact.shape[1] / probes) ** 0.5  # of P normal probes in D dimensions
        assert 0.6 < errors[probes] / expected < 1.6
    assert 2.5 < errors[64] / errors[1024] < 6.4  # 4 in expectation


def test_groups_do_not_matter_and_the_trunk_runs_once() -> None:
    model, pool = tiny_model(), Pool(ragged_batch([9, 4, 7, 11, 5]))
    site = locate_value_site(model)
    directions = draw_directions(site, 2, torch.Generator().manual_seed(0))
    rows: list[int] = []
    handle = model.model.layers[1].register_forward_hook(lambda module, args, output: rows.append(len(output)))
    one = spsa_features(model, site, pool, [[0, 1, 2, 3, 4]], directions, 1e-2)
    two = spsa_features(model, site, pool, [[3, 0], [2, 4, 1]], directions, 1e-2)
    handle.remove()
    assert rows == [5, 2, 3]  # layer 1 of 3: no copies before the last layer
    whole = one.rows(torch.arange(5))
    torch.testing.assert_close(two.rows(torch.arange(5)), whole, rtol=1e-2, atol=1e-2 * float(whole.abs().max()))


def test_as_many_rows_as_tokens() -> None:
    """A (tokens, d) tensor must not pass for one by row when the two numbers agree."""
    model = tiny_model("llama")
    batch = ragged_batch([4, 4, 3, 4])
    one = spsa_gradients(model, batch, probes=2, eps=1e-2, generator=torch.Generator().manual_seed(0))
    rows = [
        spsa_gradients(
            model,
            {key: value[i : i + 1] for key, value in batch.items()},
            probes=2,
            eps=1e-2,
            generator=torch.Generator().manual_seed(0),
        )
        for i in range(4)
    ]
    torch.testing.assert_close(torch.cat(rows), one, rtol=1e-2, atol=1e-2 * float(one.abs().max()))


@pytest.mark.parametrize("name", ["layers.0.self_attn.v_proj", "layers.1.mlp.down_proj"])
def test_layers_after_the_site_see_as_many_masks_as_rows(name: str) -> None:
    model, batch = tiny_model(), ragged_batch([9, 4, 7])
    exact = value_gradients(model, batch, value_module=name)
    generator = torch.Generator().manual_seed(0)
    found = sum(
        spsa_gradients(model, batch, probes=64, eps=1e-2, generator=generator, value_module=name) for _ in range(8)
    )
    assert (
        torch.nn.functional.cosine_similarity(found, exact, dim=1).min() > 0.3
    )  # of 512 probes in over 512 dimensions


def test_weights_are_not_touched() -> None:
    model = tiny_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    spsa_gradients(model, ragged_batch([5, 6]), probes=2, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_directions_do_not_depend_on_where_a_weight_waits() -> None:
    """An offloaded weight has no values, or is on the CPU."""
    site = locate_value_site(tiny_model())
    expected = draw_directions(site, 2, torch.Generator().manual_seed(0))
    away = site._replace(module=torch.nn.Linear(site.in_features, site.out_features, device="meta"))
    torch.testing.assert_close(draw_directions(away, 2, torch.Generator().manual_seed(0)), expected)
