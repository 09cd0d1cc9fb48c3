"""Text to token ids, with exactly one beginning-of-text token and a learned end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from colm.step.pool import IGNORE

logger = logging.getLogger(__name__)

Ids = list[int]


class Encoder:
    """A tokenizer, with the special tokens that it adds to a text.

    Attributes:
        tokenizer: the Hugging Face tokenizer.
        bos: the token that the tokenizer puts before every text, or None.
        eos: the end-of-text token, or None.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.eos: int | None = tokenizer.eos_token_id
        framed = tokenizer("a", add_special_tokens=True)["input_ids"]
        bos = tokenizer.bos_token_id
        self.bos: int | None = bos if bos is not None and framed[:1] == [bos] else None
        self._closing = _count_behind(framed, self.plain("a"))
        self._said: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out state that changes with use: `datasets` recognizes tokenized rows by the rest."""
        return {**self.__dict__, "_said": set()}

    def say(self, message: str, *values: Any) -> None:
        """Log a warning once."""
        if message not in self._said:
            self._said.add(message)
            logger.warning(message, *values)

    def plain(self, text: str) -> Ids:
        """Return the tokens of a text without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def one_bos(self, ids: Ids) -> Ids:
        """Return ids with exactly one beginning-of-text token, if the tokenizer uses one."""
        if self.bos is None:
            return ids
        own = next((place for place, token in enumerate(ids) if token != self.bos), len(ids))
        return [self.bos, *ids[own:]]

    def heads(self, prompts: Sequence[str]) -> list[Ids]:
        """Return the tokens of prompts, each with a beginning of text and without an end."""
        if not prompts:
            return []
        framed = self.tokenizer(list(prompts), add_special_tokens=True)["input_ids"]
        return [self.one_bos(list(ids[: len(ids) - self._closing])) for ids in framed]

    def completions(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """Return the token ids and labels of prompts with their completions.

        The two are tokenized separately, so that the boundary is the same as in generation. The completion is learned,
        with its own end or an added one. An empty completion has no labels.
        """
        if not completions:
            return []
        tails = self.tokenizer(list(completions), add_special_tokens=False)["input_ids"]
        rows = []
        for head, tail, text in zip(self.heads(prompts), tails, completions, strict=True):
            own = next((place for place, token in enumerate(tail) if token != self.bos), len(tail)) if head else 0
            if own == len(tail) and self.bos == self.eos:  # the end, not a second beginning
                own = max(own - 1, 0)
            learned = self._with_end(list(tail[own:]), text) if text else []
            rows.append((head + learned, [IGNORE] * len(head) + learned))
        return rows

    def text(self, text: str) -> tuple[Ids, Ids]:
        """Return the token ids and labels of a text that is learned in full; empty for an empty text."""
        if not text:
            return [], []
        ids = self._with_end(self.heads([text])[0], text)
        return ids, list(ids)

    def _with_end(self, ids: Ids, text: str) -> Ids:
        if self.eos is None:
            self.say("The tokenizer has no end-of-text token, so the model does not learn to stop.")
            return ids
        return ids if text.rstrip().endswith(self.tokenizer.eos_token) else [*ids, self.eos]


def _count_behind(framed: Ids, plain: Ids) -> int:
    """Return how many tokens a tokenizer appends to a text by default."""
    starts = (place for place in range(len(framed)) if framed[place : place + len(plain)] == plain)
    start = next(starts, None)
    return 0 if start is None else len(framed) - start - len(plain)
