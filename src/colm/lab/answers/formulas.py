"""Normalize formulas so that they can be compared as text."""

from __future__ import annotations

import re

from colm.lab.answers.clean import closing_brace

_MATHEMATICS = re.compile(r"[\\^_=+*/<>≤≥≠±√π\u00d7·÷∞]|\d\s?[-,]|[(\[]\s?-?\d|\bpi\b|\d\s[A-Za-z]\b")
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:times|cdot)\b|[\u00d7·⋅]|(?<=[0-9)])\s?\*\s?", "*"),
        (r"\\div\b|÷", "/"),
        (r"\\pi\b|(?<![A-Za-z])pi(?![A-Za-z])", "π"),
        (r"\\infty\b|(?<![A-Za-z])(?:inf|infinity|oo)(?![A-Za-z])", "∞"),
        (r"\\cup\b", "\u222a"),
        (r"\\([{}])", r"\1"),
        (r"\\(sin|cos|tan|log|ln|exp|max|min|gcd)\b", r"\1"),
        (r"(?<![A-Za-z])sqrt\s?(?=[({])|\\sqrt\s?(?=[{0-9a-zA-Z])", "√"),
        (r"([√_^])\s?(?:\{(-?[0-9]+)\}|\((-?[0-9]+)\))(?![0-9])", r"\1\2\3"),
        (r"([√_^])\s?(?:\{(-?\w+)\}|\((-?\w+)\))(?!\w)", r"\1\2\3"),
        (r"\s*([-+*/^_=<>≤≥≠±√(),\[\]{}|\u222a])\s*", r"\1"),
        (r"(?<=[0-9)πA-Za-z])\*(?=[A-Za-zπ√(])", ""),
        (r"(?<=[0-9])\s(?=[a-zπ√]\b|π|√)", ""),
    )
)


def normalise_formula(text: str) -> str:
    """Return a formula without spaces and with one sign per operation; other clean texts are returned unchanged.

    Terms keep their order, so ``x + 1`` and ``1 + x`` differ.

    >>> normalise_formula(r"\\frac{x}{2} + 3 \\pi"), normalise_formula("x/2+3*pi"), normalise_formula("well-known")
    ('x/2+3π', 'x/2+3π', 'well-known')
    """
    if not _MATHEMATICS.search(text):
        return text
    text = _write_fractions(re.sub(r"\s{2,}", " ", text))
    for rule, replacement in _RULES:
        text = rule.sub(replacement, text)
    return text


def _write_fractions(text: str) -> str:
    for _ in range(8):  # nested fractions
        start = text.find("\\frac{")
        if start < 0:
            break
        middle = closing_brace(text, start + 5)
        if middle is None or text[middle + 1 : middle + 2] != "{":
            break
        end = closing_brace(text, middle + 1)
        if end is None:
            break
        top, bottom = text[start + 6 : middle], text[middle + 2 : end]
        text = f"{text[:start]}{_atom(top)}/{_atom(bottom)}{text[end + 1 :]}"
    return text


def _atom(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"-?\w+|\\?[a-z]+", text) else f"({text})"
