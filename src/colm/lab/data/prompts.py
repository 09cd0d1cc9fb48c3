"""Identify prompts by their content, regardless of format, file or source."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from colm.errors import DataError
from colm.lab.data.chat import Turn, read_extras, read_turns
from colm.lab.data.schemas import SYSTEM
from colm.step.values import text_of_value

Keys = tuple[bytes, ...]
"""Digests of the prompts whose answers a row teaches, its own prompt first."""

SIZE = 16
"""Bytes of a digest."""

SHOWN = ("role", "content", "name", "tool_calls")
"""The keys of a turn that identify it. Other keys in data sets, such as identifiers, times and weights, do not."""


def prompt_keys(name: str, row: Mapping[str, Any]) -> Keys:
    """Return 16-byte digests of the prompts whose answers a row teaches.

    The first is the row's own prompt: the text before its completion, or the turns before the assistant's last turn.
    The others are the turns before the assistant's other turns, which are also learned, and a conversation that ends
    with a question. Plain text, and a completion without a prompt, are identified by the whole text.

    Texts are compared as is, except for leading and trailing whitespace, which formats use to join a prompt and its
    answer. So a prompt, an instruction and a conversation with one question are equal if their text is. System turns,
    tools and documents are part of a prompt.

    Args:
        name: a key of `schemas.COLUMNS`.
        row: its columns.

    >>> same = [("text", {"text": "2 + 3?"}), ("messages", {"messages": [{"role": "user", "content": "2 + 3?"}]})]
    >>> len({prompt_keys(name, row) for name, row in same})
    1
    """
    try:
        return _keys(name, row)
    except DataError:  # tokenization reports the row
        return (_digest(str(row)),)


class HeldPrompts:
    """The prompts of held-out rows.

    Args:
        keys: the prompts of each held-out row.
    """

    def __init__(self, keys: Iterable[Keys]) -> None:
        self._own: set[bytes] = set()
        self._taught: set[bytes] = set()
        for held in keys:
            self._own.add(held[0])
            self._taught.update(held)

    def meet(self, keys: Keys) -> bool:
        """Return whether the row teaches a held-out prompt, or a held-out row teaches the row's own prompt."""
        return keys[0] in self._taught or not self._own.isdisjoint(keys)


class PromptRows:
    """The rows that have or teach a prompt, in arrays of about 30 bytes a row.

    Args:
        keys: the prompts of each row, of at most `SIZE` bytes each.
    """

    def __init__(self, keys: Iterable[Keys]) -> None:
        own, later, rows = bytearray(), bytearray(), array("q")
        for row, (first, *others) in enumerate(keys):
            own += first.ljust(SIZE, b"\0")
            for key in others:
                later += key.ljust(SIZE, b"\0")
                rows.append(row)
        self._own, self._later = _Sorted(own), _Sorted(later)
        self._rows = np.frombuffer(rows, dtype=np.int64)  # of the later prompts, ascending

    def of_row(self, row: int) -> bytes:
        """Return a row's own prompt."""
        return self._own.key(row)

    def taught_by(self, row: int) -> list[bytes]:
        """Return the other prompts whose answers a row teaches."""
        return [self._later.key(place) for place in range(*np.searchsorted(self._rows, [row, row + 1]).tolist())]

    def asked(self, key: bytes) -> list[int]:
        """Return the rows that have a prompt as their own, ascending."""
        return list(map(int, self._own.find(key)))

    def taught(self, key: bytes) -> list[int]:
        """Return the rows that teach the answer to a prompt besides their own, ascending."""
        return list(map(int, self._rows[self._later.find(key)]))


class _Sorted:
    """Keys of `SIZE` bytes, one after the other, and the order in which they ascend."""

    def __init__(self, keys: bytearray) -> None:
        self._keys = np.frombuffer(keys, dtype=f"S{SIZE}")
        self._order = np.argsort(self._keys, kind="stable")

    def key(self, place: int) -> bytes:
        """Return the key at a place."""
        return bytes(self._keys[place])

    def find(self, key: bytes) -> npt.NDArray[np.int64]:
        """Return the places of a key, ascending."""
        first, end = (np.searchsorted(self._keys, np.bytes_(key), side, self._order) for side in ("left", "right"))
        return self._order[first:end]


def _keys(name: str, row: Mapping[str, Any]) -> Keys:
    system = _text(row.get(SYSTEM))
    before = [{"role": "system", "content": system}] if system else []
    if name == "messages":
        turns = read_turns(row["messages"])
        turns = turns if not turns or turns[0]["role"] == "system" else [*before, *turns]
        digests = _of_beginnings(turns, row)
        answered = [digests[place] for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        ends = [] if answered and turns[-1]["role"] == "assistant" else digests[-1:]
        return (*reversed(answered), *ends)
    if name == "text":
        return (_digest(_text(row["text"])),)
    if name == "instruction":
        asked = "\n".join(filter(None, (_text(row["instruction"]), _text(row.get("input")))))
        return (_of_prompt(before, asked, row.get("output"), row),)
    prompt, completion = row["prompt"], row.get("completion")
    if not isinstance(prompt, list):
        return (_of_prompt(before, _text(prompt), completion, row),)
    asked_turns = read_turns(prompt)
    asked_turns = asked_turns if [turn["role"] for turn in asked_turns[:1]] == ["system"] else [*before, *asked_turns]
    said = read_turns(completion) if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    digests = _of_beginnings([*asked_turns, *said], row)[len(asked_turns) :]
    later = [digests[place] for place, turn in enumerate(said) if place and turn["role"] == "assistant"]
    return (digests[0], *later)


def _of_prompt(before: Sequence[Turn], asked: str, completion: Any, row: Mapping[str, Any]) -> bytes:
    """Return the digest of a prompt that is text, as of a conversation with it; an empty one has the completion's."""
    if before and asked:
        return _of_beginnings([*before, {"role": "user", "content": asked}], row)[-1]
    return _digest(asked or _text(completion))


def _of_beginnings(turns: Sequence[Turn], row: Mapping[str, Any]) -> list[bytes]:
    """Return the digest of the first n turns for every n from 0; for n = 0, the rest of the row identifies it."""
    extras = read_extras(row)
    context = _filled([extras.get("tools"), extras.get("documents")])
    hasher = blake2b(_write(context), digest_size=SIZE)
    digests = [hasher.digest()]
    for turn in turns:
        hasher.update(b"\n" + _write(_shown(turn)))
        digests.append(hasher.digest())
    if turns and not any(context) and turns[0]["role"] in ("user", "assistant"):
        digests[1] = _digest(_text(turns[0]["content"]))
    if turns and turns[0]["role"] == "assistant":
        digests[0] = digests[1]
    return digests


def _shown(turn: Turn) -> Turn:
    held = {name: turn.get(name) for name in SHOWN}
    calls = held["tool_calls"]
    if isinstance(calls, list):
        held["tool_calls"] = [{**call, "id": None} if isinstance(call, Mapping) else call for call in calls]
    filled: Turn = _filled({**held, "content": _text(held["content"])})
    return filled


def _text(cell: Any) -> str:
    try:
        return (text_of_value(cell) or "").strip()
    except TypeError as error:
        raise DataError(str(error)) from error


def _filled(value: Any) -> Any:
    """Drop empty fields: some files give every turn the fields of all turns."""
    if isinstance(value, Mapping):
        filled = {str(name): _filled(inner) for name, inner in value.items()}
        return {name: inner for name, inner in filled.items() if inner not in (None, "", [], {})}
    if isinstance(value, list | tuple):
        return [_filled(inner) for inner in value]
    return value


def _write(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=SIZE).digest()
