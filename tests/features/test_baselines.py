"""Hidden states, losses and gradient norms compared with one forward per example; the pass with every feature."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from tests.support.architectures import build_architecture
from tests.support.gradients import Interrupted, one_backward_per_example
from tests.support.models import one_row, ragged_batch, tiny_model
from torch import Tensor, nn

from colm.config import SelectionConfig
from colm.config_checks import FeatureName
from colm.config_parts import Pass
from colm.errors import UnsupportedModelError
from colm.features.baselines import mean_hidden_features
from colm.features.factors import GradientPiece, gradient_piece, multiply_factors
from colm.features.locate import locate_value_site
from colm.features.selection_pass import FEATURES, run_selection_pass
from colm.losses import example_losses
from colm.step.pool import Pool

LENGTHS = [13, 5, 9, 2, 7, 11]
BASELINES = ["mean_hidden", "last_hidden", "loss", "gradient_norm"]


@torch.no_grad()
def one_forward_per_example(model: Any, batch: dict[str, Any], name: str) -> Tensor:
    model.eval()
    rows = []
    for row in range(len(batch["labels"])):
        alone = one_row(batch, row)
        labels = alone.pop("labels")
        output = model(**alone, output_hidden_states=True)
        last = output.hidden_states[-1][0]
        oracle = {"mean_hidden": last.mean(0), "last_hidden": last[-1], "loss": example_losses(output.logits, labels)}
        rows.append(oracle[name])
    return torch.stack(rows)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "llama with LoRA", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", BASELINES)
def test_equals_one_forward_per_example(name: str, family: str, side: str) -> None:
    base, _, adapter = family.partition(" with ")
    model = build_architecture(base) if base == "gemma2" else tiny_model(base, lora=bool(adapter))
    batch = ragged_batch(LENGTHS, side=side, width=16)
    if name == "gradient_norm":
        expected = one_backward_per_example(model, batch, own_loss=False).norm(dim=1)[:, None]
    else:
        expected = one_forward_per_example(model, batch, name)
    site, pool = locate_value_site(model), Pool(batch)
    for groups in ([list(range(6))], [[3, 0], [5, 1, 4], [2]]):
        features = FEATURES[name](model, site, pool, groups, head_chunk_tokens=5)
        found = features.rows(torch.arange(6))
        assert found.dtype == torch.float32
        assert found.shape == (6, features.dim) == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert features.finite().all()


def test_the_norm_of_factors_equals_the_norm_of_their_product() -> None:
    generator = torch.Generator().manual_seed(0)
    for tokens in (1, 3, 40):
        delta = torch.randn(4, tokens, 16, generator=generator)
        inputs = torch.randn(4, tokens, 8, generator=generator)
        delta[1] = 0
        expected = multiply_factors(delta, inputs).norm(dim=1)
        torch.testing.assert_close(gradient_piece(delta, inputs).norms(), expected)
        torch.testing.assert_close(GradientPiece(None, delta, inputs).norms(), expected)


@pytest.mark.parametrize("name", ["mean_hidden", "last_hidden"])
def test_a_rank_without_rows_has_features_of_equal_size(name: str) -> None:
    model = tiny_model()
    features = FEATURES[name](model, locate_value_site(model), Pool(ragged_batch([4])), [])
    assert (len(features), features.dim) == (0, 32)
    assert features.rows(torch.arange(0)).shape == (0, 32)


def test_the_head_runs_on_one_token_only() -> None:
    model = tiny_model()
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    site = locate_value_site(model)
    seen.clear()
    mean_hidden_features(model, site, Pool(ragged_batch([5, 9])), [[0, 1]])
    assert seen == [(1, 1, 64)]


@pytest.mark.parametrize("name", [name for name in get_args(FeatureName) if name != "none"])
def test_the_pass_leaves_the_model_as_it_was_when_the_forward_raises(name: Any) -> None:
    model = tiny_model(lora=True)
    model.train()
    site, pool = locate_value_site(model), Pool(ragged_batch([4, 6, 5]))

    def state() -> list[Any]:
        modules, parameters = list(model.modules()), list(model.parameters())
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
        kept = [parameter.detach().clone() for parameter in parameters]
        modes = [module.training for module in modules]
        wanted = [(parameter.requires_grad, parameter.grad is None) for parameter in parameters]
        return [hooks, modes, wanted, torch.is_grad_enabled(), torch.random.get_rng_state().tolist(), kept]

    before = state()
    for _ in range(2):
        calls = 0

        def interrupt(module: nn.Module, args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:  # the second micro-batch of the pass
                raise Interrupted

        handle = model.base_model.model.model.layers[-1].mlp.register_forward_pre_hook(interrupt)
        wanted = SelectionConfig(features=name).measured
        assert wanted is not None
        with pytest.raises(Interrupted):
            run_selection_pass(
                model, site, pool, [0, 1, 2], wanted, Pass(tokens=6), generator=torch.Generator().manual_seed(0)
            )
        handle.remove()
    *after, weights = state()
    assert after == before[:-1]
    assert all(torch.equal(found, expected) for found, expected in zip(weights, before[-1], strict=True))


def test_a_model_without_a_head_has_no_hidden_states() -> None:
    model = tiny_model()
    site = locate_value_site(model)
    model.get_output_embeddings = lambda: None
    with pytest.raises(UnsupportedModelError, match="no output head that reads .* per token.*features='exact'"):
        mean_hidden_features(model, site, Pool(ragged_batch([5, 9])), [[0, 1]])
