"""Find the reasoning of a model before its answer, by the tags around the reasoning."""

from __future__ import annotations

import re

_NAME = (
    r"(?:[a-z]{1,8}[:_-])?(?:think(?:ing)?|thoughts?|reasoning|reason|reflection|scratch[_-]?pad|monologue|analysis)"
    r"(?:[_-]?(?:process|content|block|text))?"
)
_TURN = r"(?:(?P<start>begin|start)|(?P<end>end))[_-](?:of[_-])?"
_ATTRIBUTES = r"(?:\s[^<>\[\]\n]{0,200})?"
TAG = re.compile(
    rf"(?:<|&lt;)\s?\|?\s?(?P<close>/)?\|?\s?(?:{_TURN})?{_NAME}{_ATTRIBUTES}\s?\|?(?P<empty>/)?(?:>|&gt;)"
    r"|\[(?P<close2>/)?think(?:ing)?\]"
    r"|\u25c1(?P<close3>/)?think(?:ing)?\u25b7"
    r"|<\|channel\|>\s?(?P<channel>\w{1,20})[^<>\n]{0,40}(?:<\|constrain\|>\w{0,20})?<\|message\|>",
    re.IGNORECASE,
)
"""A tag that opens or closes a thought: ``<think>``, ``</thinking>``, ``<|begin_of_thought|>``, ``[THINK]``, ...

Of the channels in the output of OpenAI's open models, all but the final one are thoughts.
"""

CHANNEL_TOKENS = ("<|channel|>", "<|message|>", "<|constrain|>")
"""Special tokens that together form a tag."""


def without_reasoning(text: str) -> str:
    """Return a completion without its thoughts.

    An unclosed thought extends to the end. A closing tag without an opening one closes all text before it, since chat
    templates may put the opening tag into the prompt.

    >>> without_reasoning("<think>41? No.</think> It is 42.")
    ' It is 42.'
    >>> without_reasoning("41? No.</think>42"), without_reasoning("42. <thinking>Or was it")
    ('42', '42. ')
    """
    kept: list[str] = []
    inside, closed, place = False, False, 0
    for tag in TAG.finditer(text):
        if _opens(tag):
            kept += [] if inside else [text[place : tag.start()]]
            inside = not tag["empty"]
        elif inside or text[tag.end() :].strip() or not closed:  # a stray tag at the end does not close the answer
            kept = kept if inside else []
            inside, closed = False, True
        else:
            kept.append(text[place : tag.start()])
        place = tag.end()
    return "".join(kept if inside else [*kept, text[place:]])


def ends_in_reasoning(text: str) -> bool:
    """Return whether a text, such as a prompt, ends inside a thought.

    >>> ends_in_reasoning("Assistant: <think>\\n"), ends_in_reasoning("<think>\\n\\n</think>\\n")
    (True, False)
    """
    inside = False
    for tag in TAG.finditer(text):
        inside = _opens(tag) and not tag["empty"]
    return inside


def _opens(tag: re.Match[str]) -> bool:
    if tag["channel"]:
        return tag["channel"].lower() != "final"
    return not (tag["close"] or tag["end"] or tag["close2"] or tag["close3"])
