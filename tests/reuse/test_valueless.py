"""The second run skips only products that are never read, and gradients stay the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.support.reuse_steps import REUSE, SIZES, SOURCES, pool_of_two, trainable
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from colm import CoresetSelector, example_mean
from colm.reuse.valueless import LinearCalls, unread_weights

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]

CASES: dict[str, tuple[Layer, list[int]]] = {
    "added": (lambda x, a, b: x + linear(linear(x, a).relu(), b), [1]),
    "nothing after it": (lambda x, a, b: linear(linear(x, a).tanh(), b), [1]),
    "both added": (lambda x, a, b: x + linear(x, a) + linear(x, b), [0, 1]),
    "sum read by a norm": (lambda x, a, b: (x + linear(x, a)) + linear(layer_norm(x + linear(x, a), (6,)), b), [1]),
    "sum read later": (lambda x, a, b: (lambda y: y + linear(y.tanh(), b))(x + linear(x, a)), [1]),
    "normed": (lambda x, a, b: x + layer_norm(linear(linear(x, a).relu(), b), (6,)), []),
    "gated": (lambda x, a, b: x + linear(x, a).sigmoid() * linear(x, b), []),
    "used twice": (lambda x, a, b: x + linear(linear(x, b).relu(), b), []),
    "in place": (lambda x, a, b: linear(linear(x, a).relu(), b).add_(x), [1]),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_do_not_need_the_skipped_products(case: str, autocast: bool) -> None:
    layer, expected = CASES[case]
    torch.manual_seed(0)
    tensors = [torch.randn(2, 3, 6, requires_grad=True), *(nn.Parameter(torch.randn(6, 6)) for _ in range(2))]
    found = []
    left_out: tuple[Tensor, ...] = ()
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), LinearCalls(left_out) as calls:
            output = layer(*tensors)
        left_out = left_out or unread_weights(output, calls.products)
        weight = torch.linspace(0, 1, output.numel(), dtype=output.dtype).view(output.shape)
        found.append(torch.autograd.grad(output, tensors, weight, allow_unused=True))
    assert [number for number in (0, 1) if any(tensors[1 + number] is w for w in left_out)] == expected
    for plain, ours in zip(*found, strict=True):
        assert (plain is None) == (ours is None)
        if plain is not None:
            torch.testing.assert_close(ours, plain, rtol=2e-2 if autocast else 1e-5, atol=1e-1 if autocast else 1e-6)


def test_a_bias_has_its_gradient() -> None:
    torch.manual_seed(0)
    hidden, module = torch.randn(2, 3, 6), nn.Linear(6, 6)
    with LinearCalls([module.weight]) as calls:
        (hidden + module(hidden)).sum().backward()
    assert calls.products == []
    assert module.bias.grad is not None
    torch.testing.assert_close(module.bias.grad, torch.full((6,), 6.0))


def test_the_last_feed_forward_product_is_skipped_after_the_first_micro_batch() -> None:
    model = trainable()
    selector = CoresetSelector(model, REUSE, SIZES)
    pool = pool_of_two()
    coreset = selector.select(pool, SOURCES)
    computed: list[bool] = []
    layer = model.model.layers[1]
    layer.mlp.down_proj.register_forward_hook(lambda module, args, output: computed.append(bool(output.any())))
    for batch in selector.take(pool, coreset):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        computed.clear()
        example_mean(logits, batch["labels"], num_examples=4).backward()
    assert computed == [False]
    assert selector._reuse is not None
    for name, weights in selector._reuse._checked.items():
        (weight,) = weights
        assert weight is model.get_submodule(name).mlp.down_proj.weight
