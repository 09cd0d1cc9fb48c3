"""`value_gradients` against the oracle: one forward and backward per example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.gradients import FAMILIES, Interrupted, one_backward_per_example
from tests.support.models import ragged_batch, tiny_model
from torch import Tensor

from colm.features.capture import run_to_losses
from colm.features.exact import exact_features, value_gradients
from colm.features.factors import gradient_piece, multiply_factors
from colm.features.locate import locate_value_site
from colm.step.pool import Pool


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_one_backward_per_example(family: str, lora: bool, side: str) -> None:
    model, batch = tiny_model(family, lora=lora), ragged_batch([13, 5, 9, 2], side=side)
    expected = one_backward_per_example(model, batch)
    found = value_gradients(model, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_micro_batches_do_not_matter(family: str) -> None:
    model = tiny_model(family)
    lengths = [13, 5, 9, 2, 7, 11]
    whole = value_gradients(model, ragged_batch(lengths))
    padded = value_gradients(model, ragged_batch(lengths, width=20))
    left = value_gradients(model, ragged_batch(lengths, side="left", width=17))
    pool = Pool(ragged_batch(lengths))
    features = exact_features(model, locate_value_site(model), pool, [[3, 0], [5, 1, 4], [2]])
    scale = 1e-6 * float(whole.abs().max())
    for other in (padded, left, features.rows(torch.arange(6))):
        torch.testing.assert_close(other, whole, rtol=1e-4, atol=scale)


def test_a_row_without_labels_has_a_zero_gradient() -> None:
    batch = ragged_batch([6, 8])
    batch["labels"][0] = -100
    gradients = value_gradients(tiny_model(), batch)
    assert gradients[0].abs().max() == 0
    assert gradients[1].abs().max() > 0


def test_factors_and_matrix_are_the_same_gradient() -> None:
    delta, inputs = torch.randn(3, 2, 16), torch.randn(3, 2, 16)  # 256 entries against 64 in factors
    piece = gradient_piece(delta, inputs)
    assert piece.whole is None
    torch.testing.assert_close(piece.rows(torch.tensor([2, 0])), multiply_factors(delta, inputs)[[2, 0]])
    delta, inputs = torch.randn(3, 40, 4), torch.randn(3, 40, 4)
    piece = gradient_piece(delta, inputs)
    assert piece.delta is None
    torch.testing.assert_close(
        piece.rows(torch.tensor([1])), torch.einsum("to,ti->oi", delta[1], inputs[1]).reshape(1, -1)
    )


@pytest.mark.parametrize("raising", [False, True], ids=["returns", "raises"])
def test_the_model_is_unchanged_afterwards(raising: bool) -> None:
    model = tiny_model(lora=True)
    model.train()
    frozen = model.base_model.model.model.layers[1]
    frozen.eval()  # a user's own mode of one layer must survive too
    site = locate_value_site(model)
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    handle = None
    if raising:

        def interrupt(module: Any, args: Any) -> None:
            raise Interrupted

        handle = model.base_model.model.model.norm.register_forward_pre_hook(interrupt)
    state = torch.random.get_rng_state()
    if raising:
        with pytest.raises(Interrupted):
            exact_features(model, site, Pool(ragged_batch([4, 6])), [[0, 1]])
    else:
        value_gradients(model, ragged_batch([4, 6]))
    if handle is not None:
        handle.remove()
    assert torch.is_grad_enabled()
    assert torch.equal(state, torch.random.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert wanted == [parameter.requires_grad for parameter in model.parameters()]
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())


class MergesForInference(torch.nn.Linear):
    """As loralib's layers and transformers' kernels, does more in `eval` than to set a flag."""

    merged = False

    def train(self, mode: bool = True) -> MergesForInference:
        self.merged = not mode
        return super().train(mode)


def test_what_a_module_does_for_inference_is_not_done() -> None:
    """Else only its own `train` could undo it, which a loop need not call in every step."""
    model = tiny_model()
    model.model.layers[1].mlp.up_proj = MergesForInference(32, 48, bias=False)
    model.train()
    value_gradients(model, ragged_batch([4, 6]))
    assert not model.model.layers[1].mlp.up_proj.merged


def test_a_batch_that_cannot_be_repeated_leaves_no_hook() -> None:
    model = tiny_model()
    batch = {**ragged_batch([4, 6]), "name": ["a", "b"]}
    with pytest.raises(AttributeError):
        run_to_losses(model, locate_value_site(model)._replace(layers=()), batch, copies=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_head_that_was_replaced_since_is_not_used() -> None:
    model, batch = tiny_model(), ragged_batch([4, 6])
    site = locate_value_site(model)
    model.resize_token_embeddings(80, mean_resizing=False)
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    found = exact_features(model, site, Pool(batch), [[0, 1]]).rows(torch.arange(2))
    torch.testing.assert_close(found, one_backward_per_example(model, batch), rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, batch = tiny_model(), ragged_batch([7, 4])
    plain = value_gradients(model, batch)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    model.train()
    torch.testing.assert_close(value_gradients(model, batch), plain)


def test_only_labeled_positions_reach_the_head_in_chunks() -> None:
    model, batch = tiny_model(), ragged_batch([12, 6])
    labelled = int((batch["labels"][:, 1:] != -100).sum())
    site, pool = locate_value_site(model), Pool(batch)
    seen: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel() // 64))
    exact_features(model, site, pool, [[0, 1]], head_chunk_tokens=5)
    assert seen == [1, 5, 5, labelled - 10]  # the model's own call of the head, whose result is unused, has one token
    seen.clear()
    exact_features(model, site._replace(head=None), pool, [[0, 1]])
    assert seen == [labelled]
    handle.remove()


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_of_the_head_change_nothing(chunk: int) -> None:
    model, pool = tiny_model(), Pool(ragged_batch([12, 6, 9]))
    site = locate_value_site(model)
    assert site.head is not None
    index = torch.arange(3)
    whole = exact_features(model, site._replace(head=None), pool, [[0, 1, 2]]).rows(index)
    parts = exact_features(model, site, pool, [[0, 1, 2]], head_chunk_tokens=chunk).rows(index)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_bfloat16_against_a_bfloat16_backward_per_example(lora: bool) -> None:
    model, batch = tiny_model(lora=lora).to(torch.bfloat16), ragged_batch([13, 5, 9, 7])
    found = value_gradients(model, batch)
    assert found.dtype == torch.float32
    assert cosine(found, one_backward_per_example(model, batch)).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_followed(dtype: torch.dtype) -> None:
    """A training forward in the same autocast region must still give gradients afterwards."""
    model, batch = tiny_model(), ragged_batch([13, 5, 9, 7])
    plain = value_gradients(model, batch)
    kinds: list[torch.dtype] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    with torch.autocast("cpu", dtype=dtype):
        found = value_gradients(model, batch)
        model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
    handle.remove()
    assert set(kinds) == {dtype}
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert cosine(found, plain).min() > 0.99


def test_the_trunk_keeps_no_activations() -> None:
    model, batch = tiny_model(), ragged_batch([12, 6])
    inside: list[bool] = []
    first = model.model.layers[0].register_forward_hook(
        lambda module, args, output: inside.append(output.requires_grad)
    )
    value_gradients(model, batch)
    first.remove()
    assert set(inside) == {False}
