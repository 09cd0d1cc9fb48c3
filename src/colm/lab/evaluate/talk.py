"""A conversation with a model, rendered as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from colm.errors import DataError
from colm.lab.evaluate.generate import Completion, end_tokens, generate_batch, prompt_room
from colm.models import check_vocabulary


class Conversation:
    """The turns so far.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        prompt: turns to token ids, see `data.formats.prompt_of_format`.
        remembers: False if prompts are raw text, which has no turns: each is answered by itself.
        max_new_tokens: maximum tokens of an answer.
        temperature: 0 for greedy decoding.
        seed: random seed of the first answer; the next one has the next seed.

    Raises:
        ConfigError: see `generate.prompt_room`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompt: Callable[[list[Mapping[str, str]]], list[int]],
        *,
        remembers: bool,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._model, self._tokenizer, self._prompt = model, tokenizer, prompt
        self._remembers, self._seed = remembers, seed
        self._options: dict[str, Any] = {
            "pad": tokenizer.pad_token_id,
            "ends": end_tokens(model, tokenizer),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
        }
        self._room = prompt_room(model, max_new_tokens)
        self.turns: list[Mapping[str, str]] = []

    def answer(self, text: str, streamer: Any = None) -> Completion:
        """Answer a message, and remember both; the oldest turns are forgotten once they do not fit the context.

        Args:
            text: the message.
            streamer: receives the tokens as they are generated, see `transformers.TextStreamer`.

        Raises:
            DataError: the message alone does not fit the context, or the chat template rejects it.
            ConfigError: the message has a token that the model does not know.
        """
        turns = [*(self.turns if self._remembers else []), {"role": "user", "content": text}]
        ids = self._prompt(turns)
        while self._room is not None and len(ids) > self._room:
            if len(turns) == 1:
                raise DataError(
                    f"The message has {len(ids):,} tokens, but the model's context has room for {self._room:,} and an "
                    "answer; shorten it, or lower --max-new-tokens."
                )
            turns = turns[2:]
            ids = self._prompt(turns)
        check_vocabulary(self._model, max(ids), "The message has")
        (completion,) = generate_batch(self._model, [ids], seed=self._seed, streamer=streamer, **self._options)
        said = self._tokenizer.decode(completion.ids, skip_special_tokens=True)
        self.turns = [*turns, {"role": "assistant", "content": said}]
        self._seed += 1
        return completion

    def forget(self) -> None:
        """Start over."""
        self.turns = []
