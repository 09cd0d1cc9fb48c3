from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.models import VOCABULARY, tiny_model

from colm.errors import ConfigError
from colm.lab.evaluate.generate import Completion, end_tokens, generate_batch, plan_batches, prompt_room


def draw_prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize(("family", "lora"), [("llama", False), ("llama", True), ("gpt2", False), ("phi", False)])
def test_a_batch_gives_the_same_completions_as_single_rows(family: str, lora: bool) -> None:
    model = tiny_model(family, lora=lora)
    prompts = draw_prompts([7, 1, 4, 12])
    how: dict[str, Any] = {"pad": 0, "ends": [5], "max_new_tokens": 12}
    together = generate_batch(model, prompts, **how)
    assert together == [generate_batch(model, [prompt], **how)[0] for prompt in prompts]
    for prompt, completion in zip(prompts, together, strict=True):  # and what the likeliest token is, step by step
        ids = list(prompt)
        for token in completion.ids:
            with torch.no_grad():
                assert int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_completions_end_at_the_end_token_or_are_cut_off() -> None:
    model, prompts = tiny_model(), draw_prompts([3, 5])
    how: dict[str, Any] = {"pad": 0, "max_new_tokens": 6}
    free = generate_batch(model, prompts, ends=[], **how)
    assert [len(completion.ids) for completion in free] == [6, 6]
    assert all(completion.cut_off for completion in free)
    end = free[0].ids[2]
    place = free[0].ids.index(end)
    ended = generate_batch(model, prompts, ends=[end], **how)
    assert ended[0] == Completion(free[0].ids[:place], cut_off=False)
    other = free[1].ids
    assert ended[1].ids == (other[: other.index(end)] if end in other else other)


def test_sampling_is_seeded_and_leaves_the_random_state_and_the_mode_alone() -> None:
    model, prompts = tiny_model().train(), draw_prompts([3, 5])
    how: dict[str, Any] = {"pad": 0, "ends": [], "max_new_tokens": 8, "temperature": 1.0}
    state = torch.get_rng_state()
    first = generate_batch(model, prompts, seed=1, **how)
    assert first == generate_batch(model, prompts, seed=1, **how)
    assert first != generate_batch(model, prompts, seed=2, **how)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


@pytest.mark.parametrize("lora", [False, True])
def test_the_models_own_defaults_are_ignored_and_restored(lora: bool) -> None:
    model, prompts = tiny_model(lora=lora), draw_prompts([4])
    how: dict[str, Any] = {"pad": 0, "ends": [], "max_new_tokens": 8}
    plain = generate_batch(model, prompts, **how)
    inner = model.get_base_model() if lora else model
    inner.generation_config.repetition_penalty = 5.0
    inner.generation_config.min_new_tokens = 3
    assert generate_batch(model, prompts, **how) == plain
    assert inner.generation_config.repetition_penalty == 5.0


def test_end_tokens_are_the_tokenizers_and_the_models() -> None:
    class Tokenizer:
        eos_token_id = 3

    model = tiny_model()
    model.generation_config.eos_token_id = [5, 3]
    assert end_tokens(model, Tokenizer()) == [3, 5]
    model.generation_config.eos_token_id = None
    assert end_tokens(model, Tokenizer()) == [3]


def test_room_and_batches() -> None:
    assert prompt_room(tiny_model("gpt2"), 60) == 4
    assert prompt_room(tiny_model(max_position_embeddings=32), 2) == 30
    with pytest.raises(
        ConfigError, match="max_new_tokens=64 leaves no room .* context of 64 tokens; choose a value below 64"
    ):
        prompt_room(tiny_model("gpt2"), 64)
    with pytest.raises(ConfigError, match="max_new_tokens=0 must be at least 1"):
        prompt_room(tiny_model(), 0)
    assert plan_batches([], 3) == []
    assert plan_batches([1, 2, 2, 1], 3) == [[1, 2, 0], [3]]
    with pytest.raises(ConfigError, match="batch_size=0 must be at least 1"):
        plan_batches([1], 0)
