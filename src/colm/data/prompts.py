"""What a row asks: prompts told apart by their content, whatever format, file or source they stand in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from colm.values import text_of_value

Keys = tuple[bytes, ...]
"""Digests of the prompts whose answers a row teaches, its own prompt first."""

RENDERED = ("role", "content", "name", "tool_calls")
"""What of a turn tells it from others. Identifiers, times and weights, which data sets also keep there, do not."""


def prompt_keys(name: str, row: Mapping[str, Any]) -> Keys:
    """Return digests, of 16 bytes, of the prompts whose answers a row teaches.

    The first is the row's own: what comes before its completion, or before the assistant's last turn. The others are
    what comes before the assistant's other turns, which are learned too, and a conversation that ends with a question.
    Plain text, and a completion without a prompt, are told by their whole text.

    Texts count as they are, but for white space at their ends, which is how formats join a prompt to its answer. So a
    prompt, an instruction and a conversation of one question are the same where their text is. Tools and system turns
    are part of a prompt. Content in parts of text counts as the text.

    Args:
        name: a key of `formats.COLUMNS`.
        row: its columns.

    >>> same = [("text", {"text": "2 + 3?"}), ("messages", {"messages": [{"role": "user", "content": "2 + 3?"}]})]
    >>> len({prompt_keys(name, row) for name, row in same})
    1
    """
    if name == "messages":
        return _of_conversation(row["messages"], row.get("tools"))
    if name == "text":
        return (_digest(_text(row["text"])),)
    if name == "instruction":
        asked = "\n".join(filter(None, (_text(row["instruction"]), _text(row.get("input")))))
        return (_digest(asked or _text(row.get("output"))),)
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(prompt, list):
        said = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        digests = _of_beginnings([*prompt, *said], row.get("tools"))
        later = [
            digests[len(prompt) + place] for place, turn in enumerate(said) if place and _role(turn) == "assistant"
        ]
        return (digests[len(prompt)], *later)
    return (_digest(_text(prompt) or _text(completion)),)


class HeldPrompts:
    """The prompts of held-out rows.

    Args:
        keys: of each held-out row.
    """

    def __init__(self, keys: Iterable[Keys]) -> None:
        self._own: set[bytes] = set()
        self._taught: set[bytes] = set()
        for held in keys:
            self._own.add(held[0])
            self._taught.update(held)

    def meet(self, keys: Keys) -> bool:
        """Return whether a row teaches the answer to a held-out row's prompt, or its own prompt's is taught there."""
        return keys[0] in self._taught or not self._own.isdisjoint(keys)


def _of_conversation(turns: Any, tools: Any) -> Keys:
    if not isinstance(turns, list):
        return (_digest(_text(turns)),)
    digests = _of_beginnings(turns, tools)
    answered = [digests[place] for place, turn in enumerate(turns) if _role(turn) == "assistant"]
    ends = [] if turns and _role(turns[-1]) == "assistant" else digests[-1:]
    return (*reversed(answered), *ends)


def _of_beginnings(turns: Sequence[Any], tools: Any) -> list[bytes]:
    """Return the digest of the first n turns for each n from 0 to all; without a turn, what is said stands for it."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            tools = tools.strip()
    tools = _filled(tools)
    hasher = blake2b(_write(tools), digest_size=16)
    digests = [hasher.digest()]
    for turn in turns:
        hasher.update(b"\n" + _write(_turn(turn)))
        digests.append(hasher.digest())
    if turns and not tools and _role(turns[0]) in ("user", "assistant"):
        digests[1] = _digest(_text(turns[0].get("content")))
    if turns and _role(turns[0]) == "assistant":
        digests[0] = digests[1]
    return digests


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, Mapping) else None


def _turn(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    held = {name: turn.get(name) for name in RENDERED}
    calls = held["tool_calls"]
    if isinstance(calls, list):
        held["tool_calls"] = [
            {name: value for name, value in call.items() if name != "id"} if isinstance(call, Mapping) else call
            for call in calls
        ]
    return _filled({**held, "content": _text(held["content"])})


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        return "".join(str(part.get("text") or "") for part in value).strip()
    try:
        return (text_of_value(value) or "").strip()
    except TypeError:
        return _write(_filled(value)).decode()


def _filled(value: Any) -> Any:
    """Leave out what is empty: tables give every turn the fields that one of them has."""
    if isinstance(value, Mapping):
        filled = {str(name): _filled(inner) for name, inner in value.items()}
        return {name: inner for name, inner in filled.items() if inner not in (None, "", [], {})}
    if isinstance(value, list | tuple):
        return [_filled(inner) for inner in value]
    return value


def _write(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
