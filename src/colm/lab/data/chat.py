"""Conversations: turns as chat templates expect them, rendered with the row's extras, and which tokens are learned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np

from colm.errors import ConfigError, DataError
from colm.lab.data.encode import Encoder, Ids
from colm.step.pool import IGNORE
from colm.step.values import text_of_value

Turn = dict[str, Any]

ARGUMENTS = "chat_template_kwargs"
SEEN = ("tools", "documents", ARGUMENTS)
"""Columns other than the conversation that the template receives."""

ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
ROLES = {
    **dict.fromkeys(("human", "prompter", "user"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bot", "bing", "bard", "ai", "model", "assistant", "function_call"), "assistant"
    ),
    **dict.fromkeys(("tool", "function", "function_response", "observation", "tool_response", "ipython"), "tool"),
    "system": "system",
}
"""The roles of ShareGPT and its relatives, in lower case, as templates name them; others are unchanged."""

OWN_ARGUMENTS = ("conversation", "tools", "documents", "tokenize", "add_generation_prompt", "continue_final_message")
"""Arguments of the template call that a row cannot set through `ARGUMENTS`."""


DATE = date(2024, 7, 26)
"""The date that templates write: the one that Llama's fall back on. Today's would make tokens depend on the day."""

_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


@lru_cache(maxsize=8)  # each row is rendered several times
def fix_date(template: str) -> str:
    """Return a chat template that writes `DATE` where it would write the current date.

    >>> fix_date("Today: {{ strftime_now('%d %b %Y') }}")
    'Today: {{ "26 Jul 2024" }}'
    """
    return _DATE_CALL.sub(lambda call: json.dumps(DATE.strftime(call[2])), template)


def read_turns(cell: Any) -> list[Turn]:
    """Return the turns of a conversation, each with role, content as text, and any other keys.

    Args:
        cell: a list of mappings, or the same as JSON text; None for no turns. Content may be a list of text parts.
            Roles and contents may have the keys and names of ShareGPT (``from``, ``value``, ``human``, ``gpt``).

    Raises:
        DataError: the cell is something else, or a turn has no role or no content.

    >>> read_turns([{"role": "user", "content": [{"type": "text", "text": "2 + 3?"}], "name": None}])
    [{'role': 'user', 'content': '2 + 3?'}]
    """
    turns = _from_json(cell, "A conversation")
    if turns is None or turns == []:
        return []
    if not isinstance(turns, list):
        raise DataError(f"A conversation is a {type(turns).__name__}, {str(turns)[:80]!r}; it must be a list of turns.")
    return [_read_turn(number, turn) for number, turn in enumerate(turns)]


def read_extras(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's inputs from a row, other than the conversation, as keyword arguments.

    Raises:
        DataError: a cell has the wrong type, and is not JSON text of the right type.
    """
    extras: dict[str, Any] = {}
    for column in SEEN:
        cell = _from_json(row.get(column), f"The column {column!r}")
        kind = dict if column == ARGUMENTS else list
        if cell is None or cell == kind():
            continue
        if not isinstance(cell, kind):
            raise DataError(
                f"The column {column!r} contains a {type(cell).__name__}, {str(cell)[:80]!r}; it must contain a "
                f"{'mapping' if kind is dict else 'list'}, or the same as JSON text."
            )
        extras |= cell if isinstance(cell, dict) else {column: [_from_json(item, f"{column!r}") for item in cell]}
    for name in OWN_ARGUMENTS:
        if name in extras and name not in SEEN:
            raise DataError(f"{ARGUMENTS} sets {name!r}, which colm sets itself; remove it from the row.")
    return extras


def _from_json(cell: Any, what: str) -> Any:
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell) if cell.strip() else None
    except ValueError as error:
        raise DataError(f"{what} is a text that is not JSON ({error}): {cell[:80]!r}.") from error


def _read_turn(number: int, turn: Any) -> Turn:
    role_key = next((key for key in ROLE_KEYS if key in turn), "role") if isinstance(turn, Mapping) else ""
    if not isinstance(turn, Mapping) or not isinstance(turn.get(role_key), str):
        has = f"the keys {', '.join(map(str, turn))}" if isinstance(turn, Mapping) else f"{str(turn)[:80]!r}"
        raise DataError(f"Turn {number} of a conversation has {has}; each turn must have a role and a content.")
    content_key = next((key for key in CONTENT_KEYS if key in turn), "content")
    given, content = turn[role_key].strip().lower(), _read_content(number, turn.get(content_key))
    held = {key: value for key, value in turn.items() if value is not None and key not in (role_key, content_key)}
    if given == "function_call" and content and (calls := _read_calls(number, content)):
        held["tool_calls"], content = calls, ""
    if content is None:
        if not set(held) - {"name"}:
            raise DataError(f"Turn {number} of a conversation ({turn[role_key]}) has no content.")
        content = ""  # the turn calls a tool
    return {"role": ROLES.get(given, turn[role_key]), **held, "content": content}


def _read_calls(number: int, content: str) -> list[dict[str, Any]]:
    """Return the tool calls that a turn of ShareGPT writes as JSON: one call, or a list of them."""
    calls = _from_json(content, f"Turn {number} of a conversation (function_call)")
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(
            f"Turn {number} of a conversation (function_call) is {content[:80]!r}; it must be a call such as "
            '{"name": "add", "arguments": {"a": 1}}, or a list of calls.'
        )
    return [{"type": "function", "function": dict(call)} for call in calls]


def _read_content(number: int, content: Any) -> str | None:
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            kinds = sorted({str(part.get("type")) for part in content if isinstance(part, Mapping)})
            raise DataError(
                f"Turn {number} of a conversation has content in parts of the types {', '.join(kinds)}; all parts must "
                "be text."
            )
        return "".join(map(str, texts))
    try:
        return text_of_value(content)
    except TypeError as error:
        raise DataError(
            f"The content of turn {number} of a conversation is a {type(content).__name__}, {str(content)[:80]!r}; it "
            "must be text."
        ) from error


class Chat:
    """Renders conversations with a tokenizer's template.

    Args:
        encoder: the tokenizer's encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer = encoder.tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._dated = "strftime_now" in str(getattr(tokenizer, "chat_template", None))
        self._marks = {*tokenizer.all_special_ids, *(token for token, held in added.items() if held.special)}

    def require_template(self) -> None:
        """Raise ConfigError if the tokenizer has no chat template."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise ConfigError(
                "The data has messages but the tokenizer has no chat template; use an instruction-tuned model's "
                "tokenizer, or give the data as prompt and completion."
            )

    def prompt(self, turns: Sequence[Turn], extras: Mapping[str, Any]) -> Ids:
        """Return the token ids of the prompt that `turns` form; empty without turns."""
        if not turns:
            return []
        return self._encoder.one_bos(self._encoder.plain(self._render(turns, extras, ask=True)))

    def conversation(self, turns: Sequence[Turn], extras: Mapping[str, Any], *, first: int = 0) -> tuple[Ids, Ids]:
        """Return token ids and labels; the assistant's turns from turn `first` on are learned.

        A turn's tokens are those of the text that it adds to the rendering. If nothing in the template ends the last
        turn, the end-of-text token is added.

        Raises:
            DataError: the template rejects the conversation, or renders the last turn differently with its answer.
        """
        if not turns:
            return [], []
        text = self._render(turns, extras)
        spans: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant" or number < first:
                continue
            begin = self._begin(turns[:number], extras, text)
            after = text if number == len(turns) - 1 else self._render(turns[: number + 1], extras)
            if not text.startswith(after):  # some templates close every conversation
                after = after.removesuffix(self._tokenizer.eos_token or "")
            if begin is not None and text.startswith(after):
                spans.append((begin, len(after)))
            elif number == len(turns) - 1:
                raise DataError(
                    "The chat template renders the last assistant turn differently with its own answer, so its tokens "
                    f"cannot be separated from the prompt's (conversation of {len(turns)} turns). Give the data as "
                    "prompt and completion."
                )
            else:
                self._encoder.say(
                    "The chat template renders earlier assistant turns differently when others follow (for example, "
                    "without their reasoning), so such turns are read but not learned; the last turn is."
                )
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        starts, ends = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        learned = np.zeros(len(ids), dtype=bool)
        for begin, stop in spans:
            learned |= (starts < stop) & (ends > begin)
        labels = np.where(learned, ids, IGNORE).tolist()
        if turns[-1]["role"] == "assistant" and spans:
            content = turns[-1]["content"].strip()
            ids, labels = self._with_end(ids, labels, text.rpartition(content)[2] if content else text)
        opened = self._encoder.one_bos(ids)
        more = len(opened) - len(ids)
        return opened, [IGNORE] * more + labels if more >= 0 else labels[-more:]

    def _begin(self, asked: Sequence[Turn], extras: Mapping[str, Any], text: str) -> int | None:
        """Return the character position in a rendering where the answer to its first turns begins, or None."""
        if not asked:
            return 0
        prompt = self._render(asked, extras, ask=True)
        if text.startswith(prompt):
            return len(prompt)
        shared = next((at for at, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
        if shared > len(self._render(asked, extras)):  # the answer's header is the same
            self._encoder.say(
                "The chat template's generation prompt has %r, which rendered conversations lack before an answer (it "
                "may open a thought). Text after the rest of the prompt is learned; colm eval uses the full prompt.",
                prompt[shared:],
            )
            return shared
        return None

    def _with_end(self, ids: Ids, labels: Ids, behind: str) -> tuple[Ids, Ids]:
        """Add the end of text, unless the last token is that, or is a token after the content that ends turns."""
        last = next((token for token in reversed(ids) if self._tokenizer.decode([token]).strip()), None)
        if last is not None and (
            last == self._encoder.eos or (last in self._marks and self._tokenizer.decode([last]).strip() in behind)
        ):
            return ids, labels
        eos = self._encoder.eos
        if eos is None:
            self._encoder.say(
                "Neither the chat template nor the tokenizer has a token that ends a turn, so no end is learned."
            )
            return ids, labels
        self._encoder.say(
            "The chat template does not end the assistant's turns, so the end-of-text token %r is added to the last "
            "turn and learned.",
            self._tokenizer.eos_token,
        )
        return [*ids, eos], [*labels, eos]

    def _render(self, turns: Sequence[Turn], extras: Mapping[str, Any], *, ask: bool = False) -> str:
        self.require_template()
        given = [dict(turn) for turn in turns]
        try:
            if self._dated:
                extras = {**extras, "chat_template": self._fixed_template(extras)}
            text: str = self._tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=ask, **extras)
        except Exception as error:  # templates raise errors of any kind, from Jinja and Python
            roles = ", ".join(turn["role"] for turn in turns)
            said = " ".join(str(error).split())
            raise DataError(
                f"The chat template rejects a conversation of {roles}: {said}. Change the row or leave it out."
            ) from error
        return text

    def _fixed_template(self, extras: Mapping[str, Any]) -> str:
        template = self._tokenizer.get_chat_template(extras.get("chat_template"), extras.get("tools"))
        fixed = fix_date(template)
        if fixed != template:
            self._encoder.say(
                "The chat template writes the current date. Rows have %s, so that tokens do not depend on the day.",
                DATE.strftime("%d %B %Y"),
            )
        if "strftime_now(" in fixed:
            self._encoder.say(
                "The chat template computes a date, so tokens depend on the day: a run resumed on another day may be "
                "refused because its data differs."
            )
        return fixed
