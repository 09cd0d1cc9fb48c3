"""Batched generation whose answers do not depend on the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from colm.errors import ConfigError
from colm.features.capture import base_model
from colm.models import count_positions


class Completion(NamedTuple):
    """A model's completion."""

    ids: list[int]  # tokens after the prompt, without the end token
    cut_off: bool  # reached the maximum number of tokens without an end token


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group prompts of similar length into batches, the longest first, so that any out-of-memory error occurs early.

    Args:
        lengths: tokens of each prompt.
        batch_size: prompts per batch.

    Raises:
        ConfigError: `batch_size` is below 1.

    >>> plan_batches([3, 9, 5], 2)
    [[1, 2], [0]]
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1.")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def prompt_room(model: Any, max_new_tokens: int) -> int | None:
    """Return how many tokens a prompt may have, with room for its answer; None if the context is unlimited.

    Raises:
        ConfigError: `max_new_tokens` is below 1, or fills the whole context.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    context = count_positions(model)
    if context is None:
        return None
    if max_new_tokens >= context:
        raise ConfigError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's context of {context} tokens; "
            f"choose a value below {context}."
        )
    return context - max_new_tokens


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, which training appends, and the model's own."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return sorted(end for end in ends if end is not None)


@torch.no_grad()
def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad: int,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    streamer: Any = None,
) -> list[Completion]:
    """Return the model's completion of each prompt.

    Prompts are padded on the left and masked, so that in exact arithmetic a greedy completion is the same in any
    batch. The model's own sampling defaults and penalties are ignored.

    Args:
        model: a causal LM of transformers, or a PEFT model of one; its train or eval mode is restored.
        prompts: token ids, at least one each.
        pad: the padding token.
        ends: tokens that end a completion.
        max_new_tokens: maximum tokens of a completion.
        temperature: 0 for greedy decoding; above 0 to sample tokens.
        seed: random seed of this batch.
        streamer: receives the tokens of a single prompt and then of its completion as they are generated.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
        use_cache=True,
    )
    training = model.training
    model.eval()
    try:
        with _own_config(model, config), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            written = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config, streamer=streamer
            ).cpu()
    finally:
        model.train(training)
    return [_cut(row[width:].tolist(), frozenset(ends)) for row in written]


@contextmanager
def _own_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Remove the model's generation defaults, which `generate` would use for unset options."""
    held = [
        (holder, holder.generation_config)
        for holder in (model, base_model(model))
        if hasattr(holder, "generation_config")
    ]
    for holder, _ in held:
        holder.generation_config = config
    try:
        yield
    finally:
        for holder, own in held:
            holder.generation_config = own


def _cut(ids: list[int], ends: frozenset[int]) -> Completion:
    for place, token in enumerate(ids):
        if token in ends:
            return Completion(ids[:place], cut_off=False)
    return Completion(ids, cut_off=True)
