"""All of colm's hooks: watch the uses of one weight, and the output head, during a forward pass.

The model is restored after each pass, even if the forward raises: train mode, requires_grad, hooks,
weights and random state are as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from colm.errors import UnsupportedModelError
from colm.features.head import NO_HIDDEN_STATES, chunked_losses, output_module
from colm.features.precision import Precision
from colm.features.site import ValueSite, is_compiled, unwrap
from colm.losses import find_labelled, mean_by_row
from colm.types import Batch

FP16_LOSS_SCALE = 2.0**12
"""Loss scale that keeps float16 gradients of a mean over many tokens from underflowing."""

CPU_REPACKING = "support_avx512bf16_for_cpu"
"""The attribute by which bitsandbytes' Linear4bit decides to repack its weight for inference."""


class Captured(NamedTuple):
    """What was captured in one forward pass of a micro-batch."""

    losses: Tensor  # (copies * n,) float32, mean loss over the row's labeled tokens; 0 without any
    inputs: Tensor  # (copies * n, uses * T, d_in), the site's inputs, concatenated over the uses of its weight
    outputs: list[Tensor]  # the site's output per use, (copies * n, T, fused outputs); the first is a graph leaf
    hidden: Tensor | None  # (1, M, d), the head's input, if the head ran in chunks
    hidden_gradient: Tensor | None  # gradient of the summed losses, times the float16 scale


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode without gradients, then restore modes and random state.

    Compiled modules run uncompiled within it: compiled ones would not call their modules' hooks.
    """
    training = [module for module in model.modules() if module.training]
    # On such a CPU, bitsandbytes repacks 4-bit weights in the first eval-mode forward, for a kernel that has no
    # backward and rounds the scales: training could not continue after it.
    repacking = [module for module in model.modules() if getattr(module, CPU_REPACKING, False)]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    compiled = any(is_compiled(module) for module in unwrap(model).modules())
    uncompiled = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with uncompiled, torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        try:
            for module in training:  # not `eval`: it may merge an adapter, or take kernels that have no backward
                module.training = False
            for module in repacking:
                setattr(module, CPU_REPACKING, False)
            yield
        finally:
            for module in training:
                module.training = True
            for module in repacking:
                setattr(module, CPU_REPACKING, True)
            # A training forward in the same autocast region would reuse weights cast under no_grad,
            # and these would get no gradient.
            torch.clear_autocast_cache()


def run_to_losses(
    model: nn.Module,
    site: ValueSite,
    batch: Batch,
    *,
    start_graph: bool = False,
    change_output: Callable[[Tensor, Tensor], Tensor] | None = None,
    copies: int = 1,
    head_chunk_tokens: int | None = None,
) -> Captured:
    """Run the model on one micro-batch and return each row's loss and the site's inputs and outputs.

    Call it inside `undisturbed`. The trunk keeps no activations. Only labeled positions reach the
    output head, in chunks if the head can run separately.

    Args:
        model: as trained; may be wrapped in DistributedDataParallel or compiled.
        site: the linear map to watch.
        batch: right-padded, on the model's device.
        start_graph: start the autograd graph at the site's output, so that the losses can be
            differentiated with respect to it; gradients stay enabled until `undisturbed` ends.
        change_output: maps the site's input and output to another output of the same shape.
        copies: number of times to repeat the batch at the input of the site's layer, as consecutive
            copies, so that the trunk before the layer runs only once; at the input of the model if
            the site has no layers.
        head_chunk_tokens: labeled tokens that go through the head at a time.
    """
    caller: Any = unwrap(model)
    head = output_module(caller)
    apart = site.head if site.head is not None and site.head.module is head else None  # a resized model has another
    labels = batch["labels"]
    rows, width = copies * len(labels), labels.shape[1]
    labelled = find_labelled(labels.repeat(copies, 1))
    _, targets, row = labelled
    seen: dict[str, Tensor] = {}
    uses: list[tuple[Tensor, Tensor]] = []
    precision: list[Precision] = []

    def watch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        inputs: Tensor = args[0]
        if (inputs.dim() == 2) != site.flat or inputs.shape[0] != (rows * width if site.flat else rows):
            return output  # DoRA also runs B on the identity, for the weight's norm
        if change_output is not None:
            output = change_output(inputs, output)
        if start_graph and not output.requires_grad:
            torch.set_grad_enabled(True)
            output = output.detach().requires_grad_()
        uses.append((inputs.detach(), output))
        return output.clone() if site.adapted and output.requires_grad else output

    def repeat(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return _repeat(args, len(labels), copies), _repeat(kwargs, len(labels), copies)

    def keep_labeled(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = args[0]
        if hidden.shape[:2] != (rows, width):
            return args
        labeled = labelled.of(hidden)[None]  # (1, M, d)
        if apart is None:
            return (labeled, *args[1:])
        seen["hidden"] = labeled
        precision.append(Precision.of(hidden.device.type))
        return (hidden[:1, :1].detach(), *args[1:])  # the model's own logits are not needed

    handles: list[RemovableHandle] = []
    try:
        handles += [use.register_forward_hook(watch) for use in site.uses]
        if copies > 1 and not site.layers:
            batch = {key: value.repeat(copies, *[1] * (value.dim() - 1)) for key, value in batch.items()}
        elif copies > 1:
            # Layers after the first receive repeated hidden states, but masks and positions that are not repeated yet.
            handles += [layer.register_forward_pre_hook(repeat, with_kwargs=True) for layer in site.layers]
        if head is not None:
            handles.append(head.register_forward_pre_hook(keep_labeled))
        output = caller(**model_inputs(caller, batch))
    finally:
        for handle in handles:
            handle.remove()
    if not uses:
        raise UnsupportedModelError(
            f"{site.name} did not run on the rows of the batch. Name another Linear with value_module."
        )
    inputs = _join([read.reshape(rows, -1, read.shape[-1]) for read, _ in uses])
    outputs = [written for _, written in uses]
    if apart is not None and "hidden" in seen:
        scale = _loss_scale(outputs[0]) if start_graph else None
        chunk = apart.chunk_tokens(head_chunk_tokens)
        with precision[0].context():
            losses, gradient = chunked_losses(apart, seen["hidden"][0], targets, row, rows, chunk, scale)
        return Captured(losses, inputs, outputs, seen["hidden"], gradient)
    logits = logits_of(output)
    if logits.shape[:2] == (rows, width):  # the head was not found, or saw all positions
        logits = labelled.of(logits)
    losses = mean_by_row(logits.reshape(-1, logits.shape[-1]), targets, row, rows)
    return Captured(losses, inputs, outputs, None, None)


def _join(parts: list[Tensor]) -> Tensor:
    """Concatenate the uses of a weight along the token dimension; a single use is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _loss_scale(outputs: Tensor) -> float:
    return FP16_LOSS_SCALE if outputs.dtype == torch.float16 else 1.0


@contextmanager
def changed_output(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, apply `change` to the output of every call of the module."""
    handle = module.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changed_input(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, apply `change` to the first argument of every call of the module."""
    handle = module.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched_calls(
    modules: Sequence[nn.Module],
    called: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None],
    returned: Callable[[nn.Module, Any], None],
) -> Iterator[None]:
    """Within the block, `called` observes the modules' calls and `returned` their outputs; neither changes them."""
    handles = [module.register_forward_pre_hook(called, with_kwargs=True) for module in modules]
    handles += [
        module.register_forward_hook(lambda module, args, output: returned(module, output)) for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def output_gradient(captured: Captured) -> Tensor:
    """Return the gradient of each row's loss at the site's output, (n, uses * T, fused outputs).

    Rows do not share positions, so one backward of the summed losses gives every row its own gradient.
    If the losses do not depend on one of several uses of the weight, its gradient is zero.

    Raises:
        UnsupportedModelError: the losses do not depend on any use.
    """
    rows, scale = len(captured.inputs), _loss_scale(captured.outputs[0])
    if captured.hidden is not None and captured.hidden_gradient is not None:
        ends, gradients = captured.hidden, captured.hidden_gradient[None]
    else:
        ends, gradients = captured.losses.sum() * scale, None
    found: Sequence[Tensor | None] = [None]
    if ends.requires_grad:
        found = torch.autograd.grad(ends, captured.outputs, gradients, allow_unused=True)
    if all(part is None for part in found):
        raise UnsupportedModelError(
            "The losses do not depend on the linear map chosen for the gradients. Name another with value_module."
        )
    deltas = [
        torch.zeros_like(output) if part is None else part for part, output in zip(found, captured.outputs, strict=True)
    ]
    delta = _join([part.reshape(rows, -1, part.shape[-1]) for part in deltas])
    return delta if scale == 1.0 else delta.float() / scale


def read_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Run the model on one micro-batch and return its output head's input, (n, T, d). Call it inside `undisturbed`.

    The head itself runs on one token only.

    Raises:
        UnsupportedModelError: the model has no head, or the head does not read one state per token.
    """
    caller: Any = unwrap(model)
    head = output_module(caller)
    read: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        read.append(hidden)
        return hidden[:1, :1]

    if head is not None:
        with changed_input(head, keep):
            caller(**model_inputs(caller, batch))
    if len(read) != 1 or read[0].shape[:2] != batch["input_ids"].shape:
        raise UnsupportedModelError(NO_HIDDEN_STATES)
    return read[0]


def run_one_token(model: Any, hooks: Mapping[nn.Module, Callable[..., Any]]) -> Tensor:
    """Run the model on one token with a forward hook on each module; the logits keep any graph that a hook started."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        device = model.get_input_embeddings().weight.device
        ids = torch.full((1, 1), 3, device=device)  # usually neither a padding nor an end-of-text token
        inputs = model_inputs(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with undisturbed(model), sdpa_kernel(SDPBackend.MATH):  # its softmax of one score is exactly 1
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return logits_of(output)


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: a mapping, an object, or a tuple that begins with them."""
    if isinstance(output, Mapping):
        logits: Tensor = output["logits"]
    else:
        logits = output.logits if hasattr(output, "logits") else output[0]
    return logits


def base_model(model: Any) -> Any:
    """Return the model inside PEFT, otherwise unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Return the batch without labels, and with the generation cache off."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    parameters = inspect.signature(base_model(model).forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "use_cache" in parameters or takes_any:
        inputs["use_cache"] = False
    return inputs


def _repeat(value: Any, rows: int, copies: int) -> Any:
    """Repeat every tensor with at least two dimensions whose first is the row."""
    if isinstance(value, Tensor):
        if value.dim() >= 2 and value.shape[0] == rows:
            return value.repeat(copies, *[1] * (value.dim() - 1))
        return value
    if isinstance(value, tuple):
        return tuple(_repeat(item, rows, copies) for item in value)
    if isinstance(value, list):
        return [_repeat(item, rows, copies) for item in value]
    if isinstance(value, dict):
        return {key: _repeat(item, rows, copies) for key, item in value.items()}
    return value
