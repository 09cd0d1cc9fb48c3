"""The output head on labeled positions only gives the losses and gradients of all logits."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from colm import SelectionConfig
from colm.errors import UnsupportedModelError
from colm.lean import LeanHead, lean_head
from colm.losses import example_losses, token_losses
from tests.support.architectures import LAYOUTS, build_architecture
from tests.support.models import needs_task, ragged_batch, tiny_model, with_lora

CHUNKS = [None, 3]


def gradients(model: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (losses * torch.linspace(0.5, 1.5, len(losses))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def plain(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The losses from all logits."""
    return example_losses(
        model(**{key: value for key, value in batch.items() if key != "labels"}).logits, batch["labels"]
    )


def assert_same(model: Any, batch: dict[str, Tensor], chunk: int | None = None, *, tolerance: float = 1e-5) -> None:
    head = LeanHead(model, chunk_tokens=chunk)
    expected, found = plain(model, batch), head(model, batch)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    wanted, ours = gradients(model, expected), gradients(model, head(model, batch))
    assert set(ours) == set(wanted)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest) or 1.0  # a key's bias has no gradient but rounding
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize(("lora", "chunk"), [(False, 3), (True, None)], ids=["full, chunked", "lora"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_every_weight(layout: str, lora: bool, chunk: int | None) -> None:
    model_type, changes = LAYOUTS[layout]
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    model = build_architecture(model_type, **changes)
    assert_same(with_lora(model) if lora else model, ragged_batch([13, 9, 16, 7]), chunk, tolerance=1e-4)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["lm_head", "v_proj"], "use_dora": True},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["v_proj", "embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=str,
)
def test_adapters_on_the_head(options: dict[str, Any], chunk: int | None) -> None:
    tied = "ensure_weight_tying" in options
    model = get_peft_model(tiny_model(tie_word_embeddings=tied), LoraConfig(r=4, **options))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(weight, std=0.05)
    assert_same(model, ragged_batch([5, 9, 3]), chunk)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_with_checkpointing_tied_weights_biases_and_autocast(chunk: int | None) -> None:
    model = tiny_model("phi", tie_word_embeddings=True)  # its head has a bias
    model.train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert_same(model, ragged_batch([5, 9, 3]), chunk)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(model, ragged_batch([5, 9, 3]), chunk, tolerance=3e-2)


@given(data=st.data())
def test_any_labels(data: st.DataObject) -> None:
    batch = ragged_batch(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    kept = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=batch["labels"].numel(), max_size=batch["labels"].numel()))
    ).view_as(batch["labels"])
    batch["labels"] = batch["labels"].masked_fill(~kept, -100)
    assert_same(MODEL, batch, data.draw(st.sampled_from(CHUNKS)))


MODEL = tiny_model(num_hidden_layers=1)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_rows_without_a_label_have_a_loss_of_zero_and_a_graph(chunk: int | None) -> None:
    batch = ragged_batch([5, 3])
    batch["labels"][:] = -100
    losses = LeanHead(MODEL, chunk_tokens=chunk)(MODEL, batch)
    assert losses.tolist() == [0.0, 0.0]
    assert all(not gradient.any() for gradient in gradients(MODEL, losses).values())


def test_chunks_hold_no_logits() -> None:
    model, batch = tiny_model(vocab_size=4000, num_hidden_layers=1), ragged_batch([40, 40])

    weight = model.lm_head.weight.data_ptr()

    def held(head: LeanHead) -> int:
        sizes = [0]

        def note(tensor: Tensor) -> Tensor:
            logits = tensor.dim() and tensor.shape[-1] == 4000 and tensor.dtype == torch.float32
            if logits and tensor.data_ptr() != weight:
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            head(model, batch).sum()
        return max(sizes)

    assert held(LeanHead(model)) == 4000 * 54  # two thirds of the rows have labels
    assert held(LeanHead(model, chunk_tokens=8)) == 0


class Shifting(nn.Module):
    """A head whose output depends on other positions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.inner(hidden)
        return found + found.mean(1, keepdim=True)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # of torch.compile
def test_a_head_that_mixes_positions_is_refused() -> None:
    model = tiny_model()
    model.lm_head = Shifting(model.lm_head)
    with pytest.raises(UnsupportedModelError, match="differ from those among all positions"):
        LeanHead(model)
    with pytest.raises(UnsupportedModelError, match="is compiled"):
        LeanHead(torch.compile(MODEL))
    model.get_output_embeddings = lambda: None
    with pytest.raises(UnsupportedModelError, match="names no output head"):
        LeanHead(model)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_model_that_does_not_run_on_made_up_rows_is_refused(chunk: int | None) -> None:
    with pytest.raises(UnsupportedModelError, match=r"does not run on made-up rows \(TypeError: .*'task'\)"):
        LeanHead(needs_task(tiny_model(num_hidden_layers=1)), chunk_tokens=chunk)


def test_what_a_selection_asks_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "colm")
    assert lean_head(MODEL, SelectionConfig(train_head="all")) is None
    assert caplog.text == ""
    assert isinstance(lean_head(MODEL, SelectionConfig()), LeanHead)
    assert caplog.text.count("The output head runs on labeled positions only.") == 1
    with monkeypatch.context() as patch:
        patch.setattr("colm.lean.find_head", lambda model: None)
        found = lean_head(MODEL, SelectionConfig(train_head="chunked"))
    assert found is not None
    assert found._head is None
    assert (
        "labeled positions only, not in chunks: the output head alone does not give the model's logits." in caplog.text
    )
    model = tiny_model(num_hidden_layers=1)
    model.get_output_embeddings = lambda: None
    for head in ("labeled", "chunked"):
        assert lean_head(model, SelectionConfig(train_head=head), check=False) is None
    assert caplog.text.count("runs on all positions in training: the model names no output head.") == 2


def test_token_losses_and_what_a_forward_leaves_behind() -> None:
    batch, head = ragged_batch([5, 9, 3]), LeanHead(MODEL)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    expected = MODEL(**inputs).logits
    mask = batch["labels"][:, 1:] != -100
    with head.reading(batch["labels"]):
        found = head.token_losses(MODEL(**inputs))
    torch.testing.assert_close(found, token_losses(expected[:, :-1][mask], batch["labels"][:, 1:][mask]))
    assert head._wanted is None
    assert not MODEL.lm_head._forward_pre_hooks
    torch.testing.assert_close(MODEL(**inputs).logits, expected)


def test_a_chunk_may_have_the_shape_of_the_batch() -> None:
    """Two labeled tokens of 32 numbers each, of two rows of 32 tokens."""
    model, batch = tiny_model(), ragged_batch([32, 32])
    assert model.config.hidden_size == 32
    batch["labels"][:, :-1] = -100
    assert_same(model, batch, chunk=2)
