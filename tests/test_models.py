"""Only complete causal language models can be loaded for a run, with tokenizers whose tokens they know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as tr

from colm.errors import ConfigError
from colm.lab.run.adapters import load_adapted
from colm.models import check_vocabulary, load_config, load_model, load_tokenizer, pad_within, train_tiny_tokenizer
from tests.support.models import tiny_model

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def llama(**changes: Any) -> Any:
    return tr.LlamaConfig(**SHAPE, **changes)


def bert(**changes: Any) -> Any:
    return tr.BertConfig(**SHAPE, **changes)


def bart() -> Any:
    sides = ("encoder", "decoder")
    sizes = {f"{side}_{name}": value for side in sides for name, value in (("layers", 1), ("attention_heads", 4))}
    return tr.BartConfig(vocab_size=64, d_model=32, **sizes, **{f"{side}_ffn_dim": 48 for side in sides})


def t5() -> Any:
    return tr.T5Config(vocab_size=64, d_model=32, d_ff=48, num_layers=1, num_heads=4, d_kv=8)


def vision() -> Any:
    shape = {key: SHAPE[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    return tr.ViTConfig(**shape, num_attention_heads=4, image_size=32)


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "sequences to classes": (
        lambda: tr.LlamaForSequenceClassification(llama()),
        "is LlamaForSequenceClassification, not",
    ),
    "tokens to classes": (lambda: tr.LlamaForTokenClassification(llama()), "is LlamaForTokenClassification, not"),
    "answers in a text": (lambda: tr.LlamaForQuestionAnswering(llama()), "is LlamaForQuestionAnswering, not"),
    "no head": (lambda: tr.LlamaModel(llama()), r"lacks 1 of its weights \(lm_head.weight\)"),
    "an encoder without a head": (lambda: tr.BertModel(bert()), "lacks 6 of its weights"),
    "an encoder": (lambda: tr.BertForMaskedLM(bert()), "is BertForMaskedLM, not a causal language model"),
    "a pretrained encoder": (lambda: tr.BertForPreTraining(bert()), "is BertForPreTraining, not"),
    "an encoder with a causal head": (
        lambda: tr.BertLMHeadModel(bert()),
        "whose tokens attend to later tokens",
    ),
    "a decoder's encoder": (lambda: tr.T5ForConditionalGeneration(t5()), r"an encoder-decoder model \(T5Config\)"),
    "an encoder-decoder": (lambda: tr.BartForConditionalGeneration(bart()), "an encoder-decoder model"),
    "half of one": (lambda: tr.T5EncoderModel(t5()), "could not be loaded"),
    "pictures": (lambda: tr.ViTModel(vision()), "could not be loaded"),
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Silence transformers' loading reports."""
    tr.logging.set_verbosity_error()
    yield
    tr.logging.set_verbosity_warning()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OTHERS)
def test_models_of_other_kinds_are_refused(tmp_path: Path, case: str) -> None:
    make, message = OTHERS[case]
    make().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tr.LlamaForCausalLM(llama()),
        lambda: tr.LlamaModel(llama(tie_word_embeddings=True)),  # its head is the embeddings
        lambda: tr.GPTNeoXForCausalLM(tr.GPTNeoXConfig(**SHAPE)),  # is_decoder says nothing about it
        lambda: tr.BertLMHeadModel(bert(is_decoder=True)),
        lambda: tr.BartForCausalLM(bart()),
    ],
)
def test_complete_causal_models_are_loaded(tmp_path: Path, make: Callable[[], Any]) -> None:
    made = make()
    made.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path)).state_dict()
    shared = {key: value for key, value in made.state_dict().items() if key in loaded}
    assert all(value.equal(loaded[key]) for key, value in shared.items())


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 of its weights \(model.layers.1.mlp.up_proj.weight\)"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(ConfigError, match="could not be loaded"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["/nonexistent", "no/such-model", "a/b/c", "..", "5", "x" * 300, "\0", "ü", "a.gguf"])
def test_names_that_do_not_exist(name: str) -> None:
    for load in (load_model, load_config, load_tokenizer):
        with pytest.raises(ConfigError) as caught:
            load(name)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1500
    with pytest.raises(ConfigError, match="The adapter in .* could not be loaded"):
        load_adapted(tiny_model(), name)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "nothing"}', '{"model_type": 5}', "\0"])
def test_invalid_configurations(tmp_path: Path, content: str) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="could not be (read|loaded)"):
        load_model(str(tmp_path))


def test_every_token_has_a_row() -> None:
    model = tiny_model(vocab_size=64)
    check_vocabulary(model, 63, "The data has")  # a padded vocabulary may be larger than the tokenizer's
    for token in (64, 1000):
        with pytest.raises(
            ConfigError, match=rf"The data has the token {token}, but the model has embeddings for only 64 tokens"
        ):
            check_vocabulary(model, token, "The data has")
    model.resize_token_embeddings(65, mean_resizing=False)  # as the message advises
    check_vocabulary(model, 64, "The data has")


def test_a_padding_token_without_a_row_is_replaced() -> None:
    tokenizer = train_tiny_tokenizer(["some text"])
    pad_within(tokenizer, tiny_model(vocab_size=1024))
    assert tokenizer.pad_token == "<pad>"
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # as many guides say, without rows in the model
    model = tiny_model(vocab_size=tokenizer.pad_token_id)
    pad_within(tokenizer, model)
    assert tokenizer.pad_token == tokenizer.eos_token
    tokenizer.add_special_tokens({"pad_token": "[PAD2]", "eos_token": "[EOS]"})
    with pytest.raises(ConfigError, match="The tokenizer pads with the token"):
        pad_within(tokenizer, model)


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    train_tiny_tokenizer(["some text"]).save_pretrained(tmp_path)
    held = json.loads((tmp_path / "tokenizer.json").read_text())
    for content in ("{", "[]", "{}", json.dumps({**held, "model": 5})):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ConfigError, match="could not be loaded"):
            load_tokenizer(str(tmp_path))
