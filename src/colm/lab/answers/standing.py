"""Find the numbers of a text that stand on their own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from colm.lab.answers.clean import clean_mathematics, is_factor
from colm.lab.answers.numbers import is_number, iterate_numbers
from colm.lab.answers.words import is_factor_word

NEAR = 40
"""Characters before and after a number that can make it part of an expression."""

MOST = 200
"""Maximum number of numbers to check, from the last one; a model may write numbers forever."""

_NEGATIVE = re.compile(r"\b(?:minus|negative)\s$", re.IGNORECASE)
_JOINED_BEFORE = re.compile(
    "|".join(
        (
            r"[_^/\u00d7÷·√∛∑∏∫±<>≤≥≠+{]\s?$|(?<=\S)\s?\*\s?$",  # an operation, a bound, the argument of a command
            r"[0-9A-Za-z)\]}]-$|(?:[0-9)\]}]|(?<![A-Za-z])[A-Za-z])\s-\s$|(?<![A-Za-z])(?:[0-9)]\s?x|mod)\s?$",
            r"[A-Za-z0-9)}\]][(\[]$|\b(?:log|ln|lg|sin|cos|tan|exp|sqrt|gcd|lcm)\s?$",  # the argument of a function
            r"[0-9][.,:]$",
            r"\\(?!(?:therefore|because|item|newline)\b)[A-Za-z]+(?:_\{?\w{1,3}\}?)?\s?$",
            r"(?:\bnot|n['\u2019]t|\bnever|\bneither|\bnor|\bcannot|\bwithout)\s"
            r"(?:(?:be|been|equals?|equal\sto|exactly|necessarily|always|just|only|simply|the|an?)\s){0,3}$",
            r"\b(?:than|at\s(?:least|most)|up\sto|out\sof|twice|thrice|plus|times|over|under|above|below|exceed(?:s|ing)"
            r"|(?:half|third|quarter|double|triple|square|cube|root|power|factorial|multiples?|reciprocal|percent|%)\sof"
            r"|except|excluding|(?:anything|all)\sbut"
            r"|(?:divided|multiplied)\sby|modulo|choose|plus\sor\sminus)\s(?:the\s)?$",
        )
    ),
    re.IGNORECASE,
)
_JOINED_AFTER = re.compile(
    "|".join(
        (
            r"\s?(?:\\?[)\]}]){0,2}\s?(?:\^|!(?!\s[A-Z]))",  # a power or a factorial, not an exclamation
            r"[({_\[]|\.?\\[A-Za-z]|\s?\\(?:times|cdot|div|pi|sqrt|frac|pm|mod|ln|log|sin|cos|tan|infty)",
            r"\s?[*/\u00d7÷·][^A-Za-z]|\s?[*\u00d7÷·]\s?[A-Za-z(\\]|\s?/\s?[A-Za-z](?![A-Za-z])|\s?[√π∞±<>≤≥≠²³+]",
            r"\s?-\s?(?:[0-9(\\.$]|[A-Za-z](?![A-Za-z]))|\s?x\s?[0-9(]|\stimes\s(?:[A-Za-z]\b|[0-9(\\])",
            r"[.,:][0-9]|[A-Z][0-9]|[\s-](?:squared|cubed)|\sto\sthe\s(?:power|[0-9])",
            r"\s(?:or|and)\s(?:more|less|fewer|higher|above|below|a\s(?:half|third|quarter))\b|\sout\sof\b",
        )
    )
)
_BRACKET_AFTER = re.compile(r"\s\(([^()]*)\)")


def free_numbers(text: str) -> Iterator[str]:
    """Yield the standalone numbers of a text, the last one first: not in a formula, not negated, not a bound.

    >>> list(free_numbers("He had 40 + 2 apples, not 43, which makes 42.")), list(free_numbers("x + 5, 3 pi or not 5"))
    (['42'], [])
    """
    text = clean_mathematics(text)
    for match in list(iterate_numbers(text))[: -MOST - 1 : -1]:
        before, after = text[max(0, match.start() - NEAR) : match.start()], text[match.end() : match.end() + NEAR]
        if is_number(match) and not _is_joined(before, after):
            negative = _NEGATIVE.search(before) is not None and not match["sign"]
            yield "-" * negative + match.group().strip()


def _is_joined(before: str, after: str) -> bool:
    """Return whether the text around a number makes it part of an expression."""
    if _JOINED_BEFORE.search(before) or _JOINED_AFTER.match(after.removeprefix("°")):
        return True
    bracket = _BRACKET_AFTER.match(after)
    if bracket and is_factor(bracket[1]):
        return True
    return is_factor_word(after)
