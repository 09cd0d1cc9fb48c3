"""Compare two final answers, and write texts and formulas in the form to compare."""

from __future__ import annotations

import re
from typing import Literal

from colm.lab.answers.clean import clean_mathematics, closing_brace, without_remarks
from colm.lab.answers.numbers import Number, numbers_match, parse_number, parse_power

Kind = Literal["number", "letter", "truth", "text"]

TRUTHS = {"yes": True, "true": True, "no": False, "false": False}

_LETTER = re.compile(
    r"(?:(?:the\s)?(?:option|choice|answer)\s{1,3})?"
    r"(?:[(\[{]\s?([A-J])\s?[)\]}]|([A-J])(?:\)|\](?!\w)|(?=[.:,;](?:\s|$))|(?=\s[-\u2014(]|\s(?:is|because|since|as)\b)|$))",
    re.IGNORECASE,
)
_ANOTHER = re.compile(r"\s?(?:[,;&/+|]\s?|\band\s|\bor\s|\bnor\s){1,2}[(\[]?[A-HJ][)\]]?(?![A-Za-z0-9'])", re.ASCII)
REJECTED = re.compile(r"\s(?:is|was|can|must)(?:\s?not|n['\u2019]t|\s(?:wrong|incorrect|false|excluded|out))\b")
"""Text after an option that is not the answer."""
_TRUTH = re.compile(
    r"(yes|no|true|false)(?:\s{0,3}[,.;:!]|\s{0,3}$|\s{1,3}(?:because|since|as)\b|\s{1,3}[-\u2014(])", re.IGNORECASE
)
_SIDE = re.compile(r"^[A-Za-z](?:\([A-Za-z]\))?\s?=")
_MATHEMATICS = re.compile(r"[\\^_=+*/<>≤≥≠±√π\u00d7·÷∞]|\d\s?[-,]|[(\[]\s?-?\d|\bpi\b|\d\s[A-Za-z]\b")
_FORMULA_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
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


def answers_match(predicted: str, expected: str) -> bool:
    """Return whether two final answers are equal. The comparison is symmetric and never raises.

    Numbers are compared as numbers (`numbers.numbers_match`), options by their letter (``B``, ``(b)``, ``B) 12 km``),
    yes and no as truth values (yes is true), and all else as text, ignoring case, spaces, quotes, a leading article and
    LaTeX and Markdown markup. A remark in only one of the answers (``Paris (in France)``) is dropped. An empty answer
    matches nothing.

    >>> answers_match("$1,234.50", "1234.5"), answers_match("(b) the second", "B"), answers_match("True.", "yes")
    (True, True, True)
    >>> answers_match("0.67", "2/3"), answers_match("12", "13"), answers_match("", "")
    (True, False, False)
    >>> answers_match("10^5", "10"), answers_match("5 million", "5"), answers_match(r"\\frac{x}{2}", "x/2")
    (False, False, True)
    """
    first, second = _readings(predicted), _readings(expected)
    if not first or not second:
        return False
    if first[0] in second or second[0] in first:
        return True
    numbers = _value(predicted), _value(expected)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers_match(numbers[0], numbers[1])
    letters = parse_letter(predicted), parse_letter(expected)
    if letters[0] is not None and letters[1] is not None:
        return letters[0] == letters[1]
    truths = parse_truth(predicted), parse_truth(expected)
    return truths[0] is not None and truths[0] == truths[1]


def kind_of(answer: str) -> Kind:
    """Return the kind of an answer.

    >>> [kind_of(answer) for answer in ("3/4", "(C)", "no", "a dog")]
    ['number', 'letter', 'truth', 'text']
    """
    if parse_number(answer) is not None:
        return "number"
    if parse_letter(answer) is not None:
        return "letter"
    return "text" if parse_truth(answer) is None else "truth"


def parse_letter(text: str) -> str | None:
    """Return the upper-case letter, A to J, of the option that the text is or begins with; None for other text.

    >>> parse_letter("(b)"), parse_letter("C. Paris"), parse_letter("option D"), parse_letter("A dog")
    ('B', 'C', 'D', None)
    >>> parse_letter("B (12 km)"), parse_letter("B or C")
    ('B', None)
    """
    text = clean_mathematics(text)
    match = _LETTER.match(text)
    rest = text[match.end() :] if match else ""
    if match is None or _ANOTHER.match(rest) or REJECTED.match(rest):
        return None
    return next(letter for letter in match.groups() if letter).upper()


def parse_truth(text: str) -> bool | None:
    """Return the truth value of the yes, no, true or false that the text is or starts with; None for other text.

    >>> parse_truth("Yes, it is."), parse_truth("false"), parse_truth("No solution")
    (True, False, None)
    """
    match = _TRUTH.match(clean_mathematics(text))
    return None if match is None else TRUTHS[match.group(1).lower()]


def normalise_text(clean: str) -> str:
    """Return a clean text in the form used to compare text answers.

    >>> normalise_text("The  Eiffel tower")
    'eiffel tower'
    """
    cleaned = " ".join(normalise_formula(clean).casefold().split())
    without = re.sub(r"^(?:the|an|a)\s+", "", cleaned)
    return without or cleaned


def _readings(text: str) -> list[str]:
    """Return the forms of a text to compare: as is, then without remarks, then without a leading ``y =``."""
    clean = clean_mathematics(text)
    forms = [clean, without_remarks(clean), _SIDE.sub("", clean)]
    return [found for found in dict.fromkeys(map(normalise_text, forms)) if found]


def _value(text: str) -> Number | None:
    return parse_number(text) or parse_power(text)


def normalise_formula(text: str) -> str:
    """Return a formula without spaces and with one sign per operation; other clean texts are returned unchanged.

    Terms keep their order, so ``x + 1`` and ``1 + x`` differ.

    >>> normalise_formula(r"\\frac{x}{2} + 3 \\pi"), normalise_formula("x/2+3*pi"), normalise_formula("well-known")
    ('x/2+3π', 'x/2+3π', 'well-known')
    """
    if not _MATHEMATICS.search(text):
        return text
    text = _write_fractions(re.sub(r"\s{2,}", " ", text))
    for rule, replacement in _FORMULA_RULES:
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
