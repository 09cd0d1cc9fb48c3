"""However a model is compiled, the selection pass is that of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from colm import CoresetSelector, SelectionConfig
from colm.errors import UnsupportedModelError
from colm.features.exact import value_gradients
from colm.joined import check_joined
from colm.lean import LeanHead
from colm.losses import example_losses
from tests.support.models import ragged_batch, tiny_model

# Both are torch.compile's own.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The .grad attribute of a Tensor")

BATCH = ragged_batch([13, 9, 16, 7])


def wrapped(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def by_its_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def layers_wrapped(model: Any) -> Any:
    for place, layer in enumerate(model.model.layers):
        model.model.layers[place] = wrapped(layer)
    return model


def layers_in_place(model: Any) -> Any:
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


WHOLE = [wrapped, in_place, by_its_forward]
LAYERS = [layers_wrapped, layers_in_place]


def run(model: Any) -> Any:
    """Run the model, so that it is compiled without hooks."""
    return model(**{key: value for key, value in BATCH.items() if key != "labels"})


@pytest.mark.parametrize("compiled", WHOLE + LAYERS)
def test_gradients_before_and_after_the_model_has_run(compiled: Callable[[nn.Module], nn.Module]) -> None:
    torch._dynamo.reset()
    expected = value_gradients(tiny_model(), BATCH)
    model = compiled(tiny_model())
    torch.testing.assert_close(value_gradients(model, BATCH), expected, rtol=0, atol=0)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run(model)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs  # outside the pass it stays compiled
    torch.testing.assert_close(value_gradients(model, BATCH), expected, rtol=0, atol=0)
    check_joined(model)


@pytest.mark.parametrize("compiled", WHOLE)
def test_a_head_in_a_compiled_module_keeps_all_logits(compiled: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UnsupportedModelError, match="is compiled"):
        LeanHead(compiled(tiny_model()))


@pytest.mark.parametrize("compiled", LAYERS)
def test_a_head_outside_the_compiled_layers_is_lean(compiled: Callable[[nn.Module], nn.Module]) -> None:
    torch._dynamo.reset()
    model: Any = tiny_model()
    expected = example_losses(run(model).logits, BATCH["labels"])
    model = compiled(model)
    torch.testing.assert_close(LeanHead(model)(model, BATCH), expected)


@pytest.mark.parametrize("compiled", WHOLE + LAYERS)
def test_no_forward_is_reused(compiled: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(UnsupportedModelError, match="do not compile the model"):
        CoresetSelector(compiled(tiny_model()), SelectionConfig(keep=0.5, reuse_forward=True))
