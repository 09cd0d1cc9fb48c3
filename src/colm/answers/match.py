"""Whether two final answers say the same."""

from __future__ import annotations

import re
from typing import Literal

from colm.answers.numbers import clean_mathematics, numbers_match, parse_number

Kind = Literal["number", "letter", "truth", "text"]

TRUTHS = {"yes": True, "true": True, "no": False, "false": False}

_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?:\(\s?([A-J])\s?\)|([A-J])(?:\)|[.:](?=\s|$)|$))", re.IGNORECASE
)
_TRUTH = re.compile(r"(yes|no|true|false)(?:\s*[,.;:!]|\s*$|\s+(?:because|since|as)\b)", re.IGNORECASE)


def answers_match(predicted: str, expected: str) -> bool:
    """Return whether two final answers are the same; symmetric, and never an error.

    Numbers are compared as numbers (`numbers.numbers_match`), options by their letter (``B``, ``(b)``, ``B) 12 km``),
    yes and no as truths (yes is true), all else as text without regard to case, spaces, quotes, a leading article and
    marks of LaTeX and Markdown. An empty answer matches nothing.

    >>> answers_match("$1,234.50", "1234.5"), answers_match("(b) the second", "B"), answers_match("True.", "yes")
    (True, True, True)
    >>> answers_match("0.67", "2/3"), answers_match("12", "13"), answers_match("", "")
    (True, False, False)
    """
    first, second = normalise_text(predicted), normalise_text(expected)
    if not first or not second:
        return False
    if first == second:
        return True
    numbers = parse_number(predicted), parse_number(expected)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers_match(numbers[0], numbers[1])
    letters = parse_letter(predicted), parse_letter(expected)
    if letters[0] is not None and letters[1] is not None:
        return letters[0] == letters[1]
    truths = parse_truth(predicted), parse_truth(expected)
    return truths[0] is not None and truths[0] == truths[1]


def kind_of(answer: str) -> Kind:
    """Return what an answer is.

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
    """
    match = _LETTER.match(clean_mathematics(text))
    if match is None:
        return None
    return next(letter for letter in match.groups() if letter).upper()


def parse_truth(text: str) -> bool | None:
    """Return what a yes, no, true or false says that the text is or begins with; None for other text.

    >>> parse_truth("Yes, it is."), parse_truth("false"), parse_truth("No solution")
    (True, False, None)
    """
    match = _TRUTH.match(clean_mathematics(text))
    return None if match is None else TRUTHS[match.group(1).lower()]


def normalise_text(text: str) -> str:
    """Return the text as answers that are only text are compared.

    >>> normalise_text(' "The  Eiffel tower." ')
    'eiffel tower'
    """
    cleaned = " ".join(clean_mathematics(text).casefold().split())
    without = re.sub(r"^(?:the|an|a)\s+", "", cleaned)
    return without or cleaned
