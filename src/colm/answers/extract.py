"""The final answer in what a model, or a row of data, says."""

from __future__ import annotations

import re

from colm.answers.match import Kind, kind_of, parse_letter, parse_truth
from colm.answers.numbers import clean_mathematics, find_numbers, parse_number

LONGEST_LINE = 200
"""Characters of a last line that can be an answer; a longer one is a text without a final answer."""

MARKS = 8
"""Marks of a final answer that are looked at, from the last one; a model may write the same mark for ever."""

_MARKER = re.compile(
    r"\banswer\b(?:\s[^\n.:=?!]{0,40}?)?(?:\*\*)?\s*(?:\bis\b\s*:?|\bwould be\b|:|=)(?:\*\*)?|####|\\boxed\s?(?=\{)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"(?:,|\s\(|;)?\s+(?:because|since|given that)\b", re.IGNORECASE)
_STOP = re.compile(r"(?<=[^\s.])(?<!\b[A-Za-z])(?<!\b(?:Mr|Ms|Dr|St|Jr|Sr|vs|No))(?<!\bMrs)[.!?]\s")
_OPTION = re.compile(r"\(([A-J])\)|\b(?:option|choice)\s+([A-J])\b")
_TRUTH_WORD = re.compile(r"\b(?:yes|no|true|false)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z']+")


def extract_answer(text: str, *, kind: Kind | None = None) -> str | None:
    """Return the final answer that a completion ends with, or None where it has none.

    That is what stands after the last ``The answer is``, ``Answer:``, ``####``, or within the last ``\\boxed{}``.
    Without any of these it is the last number, the last option in parentheses, or the last yes or no, by `kind`; else
    the last line. The answer's explanation (``because ...``, a next sentence) is cut off.

    Args:
        text: the completion.
        kind: what the expected answer is (`match.kind_of`); None to take the last line for what it is.

    >>> extract_answer("2 + 3 = 5, so he has 5 apples. The answer is 5.")
    '5'
    >>> extract_answer("So it is \\\\boxed{\\\\frac{3}{4}}.")
    '\\\\frac{3}{4}'
    >>> extract_answer("He has 5 apples and sells 2, which leaves 3 of them.", kind="number")
    '3'
    >>> extract_answer("  ") is None
    True
    """
    marked = extract_marked(text)
    if marked is not None:
        return _as_kind(marked, kind) or marked
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    if kind in (None, "text"):
        line = clean_mathematics(lines[-1])
        if len(line) > LONGEST_LINE or not line:
            return None
        if kind == "text" or kind_of(line) != "text" or len(_WORD.findall(line)) < 3:
            return line
        return next(reversed(list(find_numbers(line))), line)
    return _as_kind(lines[-1], kind, many=True) or _as_kind(text, kind, many=True)


def extract_marked(text: str) -> str | None:
    """Return what stands after the last mark of a final answer, or None where there is no mark or nothing after it."""
    for match in list(_MARKER.finditer(text))[: -MARKS - 1 : -1]:
        rest = text[match.end() :]
        if match.group().startswith("\\boxed"):
            found = _within_braces(rest)
        else:
            line = next((line for line in rest.splitlines() if line.strip(" *\t$")), "")
            if "\\boxed" in line:  # it was cut off before it ended, or would have been found
                continue
            found = _cut(line)
            if match.group() == "####" and kind_of(found) == "text" and "\n" in rest.strip():
                continue  # a heading
        found = clean_mathematics(found)
        if found:
            return found
    return None


def _as_kind(text: str, kind: Kind | None, *, many: bool = False) -> str | None:
    """Return the part of the text that is of this kind; of several, the last one if `many` else none."""
    if kind == "number":
        if parse_number(text) is not None:
            return clean_mathematics(text)
        numbers = list(find_numbers(text))
        return numbers[-1] if numbers and (many or len(numbers) == 1) else None
    if kind == "letter":
        letter = parse_letter(text)
        found = [first or second for first, second in _OPTION.findall(text)]
        return letter or (found[-1] if found and (many or len(found) == 1) else None)
    if kind == "truth":
        words = _TRUTH_WORD.findall(text)
        if parse_truth(text) is not None:
            return str(words[0])
        return words[-1] if words and (many or len(words) == 1) else None
    return None


def _cut(line: str) -> str:
    """Return a line up to the end of its first sentence, without a reason that follows the answer."""
    line = line.strip()
    stop = _STOP.search(line)
    line = line[: stop.start()] if stop else line
    clause = _CLAUSE.search(line)
    return line[: clause.start()] if clause and clause.start() else line


def _within_braces(text: str) -> str:
    depth = 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:place]
    return ""  # cut off before it ended
