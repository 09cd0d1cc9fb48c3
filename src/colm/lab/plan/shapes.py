"""Build a model as shapes only, from its configuration, without reading or creating weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from colm.errors import ConfigError
from colm.lab.plan.attention import set_planned_attention
from colm.lab.run.adapters import add_lora
from colm.lab.run.checkpointing import enable_checkpointing
from colm.models import load_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelSpec(NamedTuple):
    """The model to train."""

    name: str  # see `colm.models.load_config`
    dtype: str = "auto"  # of the weights; auto: as saved
    lora: dict[str, Any] | None = None  # fields of peft.LoraConfig; None for full training
    autocast: torch.dtype | None = None  # dtype of the forward pass, if it differs from the weights
    checkpointing: dict[str, Any] | None = None  # the Trainer's checkpointing arguments, or None
    cast: torch.dtype | None = None  # dtype in which an engine computes with all weights, if it differs
    attention: str = "auto"  # see `colm.lab.plan.attention`


class Shapes(NamedTuple):
    """A model of fake tensors, in train mode."""

    model: Any
    fake: FakeTensorMode
    vocabulary: int
    parameters: int  # bytes of all parameters and buffers
    trained: tuple[Tensor, ...]  # the trained parameters
    loaded: tuple[Tensor, ...]  # meta tensors: all parameters in the dtypes in which they are loaded
    buffers: int  # bytes
    cast: torch.dtype | None  # see `ModelSpec`

    @property
    def layer_inputs(self) -> int:
        """Bytes of one token's states at all layer inputs and the last layer's output."""
        config = self.model.config.get_text_config()
        size = next(self.model.parameters()).element_size()
        return int((config.num_hidden_layers + 1) * config.hidden_size * size)

    @property
    def gradients(self) -> int:
        """Bytes of the gradients, which have the dtype of their parameters."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.trained)


def build_shapes(spec: ModelSpec, config: Any = None) -> Shapes:
    """Build the model that a run would train, as the Trainer prepares it.

    Args:
        spec: the model to build.
        config: the model's configuration (default: that of ``spec.name``.

    Raises:
        ConfigError: there is no such model, it is not a causal language model, its weights are quantized, the dtype is
            unknown or not one for the attention, or LoRA's settings do not fit the model.
    """
    config = load_config(spec.name) if config is None else config
    if getattr(config, "quantization_config", None) and not spec.name.endswith(".gguf") and spec.name != "demo":
        raise ConfigError(
            f"The model {spec.name!r} has quantized weights ({_kind(config.quantization_config)}), whose layout is "
            "unknown before loading; plan with the model that it was quantized from, which needs more memory."
        )
    with _quiet(), torch.device("meta"):
        model = _from_config(config, spec)
        set_planned_attention(model, spec.attention)
        if spec.lora is not None:
            model = add_lora(model, spec.lora)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    loaded = tuple(model.parameters())
    _make_fake(model, fake, spec.cast)
    if spec.checkpointing is not None:
        _checkpoint(model, spec)
    if spec.autocast is not None:
        _autocast(model, spec.autocast)
    model.train()
    weights, buffers = ({tensor.untyped_storage() for tensor in held} for held in (model.parameters(), model.buffers()))
    return Shapes(
        model=model,
        fake=fake,
        vocabulary=int(config.get_text_config().vocab_size),
        parameters=sum(storage.nbytes() for storage in weights | buffers),
        trained=tuple(parameter for parameter in model.parameters() if parameter.requires_grad),
        loaded=loaded,
        buffers=sum(storage.nbytes() for storage in buffers - weights),
        cast=spec.cast,
    )


def _from_config(config: Any, spec: ModelSpec) -> Any:
    from transformers import AutoModelForCausalLM

    if spec.dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype={spec.dtype!r} is not one of auto, {', '.join(DTYPES)}.")
    saved = None if spec.name.endswith(".gguf") or spec.name == "demo" else getattr(config, "dtype", None)
    dtype = DTYPES.get(spec.dtype) or (saved if isinstance(saved, torch.dtype) else torch.float32)
    config.__dict__.pop("quantization_config", None)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, ImportError, AttributeError, TypeError) as error:  # from arbitrary modeling code
        raise ConfigError(
            f"The model {spec.name!r} ({type(config).__name__}) cannot be planned, since it cannot be built from its "
            f"configuration as a causal language model ({type(error).__name__}: {error}). Use a model that "
            "AutoModelForCausalLM supports."
        ) from error


def _make_fake(model: nn.Module, fake: FakeTensorMode, cast: torch.dtype | None) -> None:
    """Replace all parameters and buffers with fake CPU tensors, cast parameters; shared tensors stay shared."""
    made: dict[int, Tensor] = {}

    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with fake:
                weight = isinstance(tensor, nn.Parameter)
                dtype = cast if cast is not None and weight and tensor.is_floating_point() else tensor.dtype
                empty = torch.empty(tensor.shape, dtype=dtype)
                made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if weight else empty
        return made[id(tensor)]

    originals = [*model.parameters(), *model.buffers()]  # keep references, so that ids stay unique
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = twin(tensor)  # type: ignore[assignment]
    del originals


def _checkpoint(model: Any, spec: ModelSpec) -> None:
    """Enable checkpointing as the Trainer and `colm train` do."""
    assert spec.checkpointing is not None
    with _quiet():
        enable_checkpointing(model, spec.checkpointing)
        if spec.lora is not None:
            model.enable_input_require_grads()


def _autocast(model: Any, dtype: torch.dtype) -> None:
    """Run the forward pass in autocast and return float32, as accelerate does."""
    from accelerate.utils import convert_outputs_to_fp32

    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=dtype)(model.forward))


def _kind(quantisation: Any) -> str:
    values = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    return str(values.get("quant_method", "unknown"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress library messages about a model without weights."""
    noisy = [logging.getLogger(name) for name in ("transformers", "peft")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
