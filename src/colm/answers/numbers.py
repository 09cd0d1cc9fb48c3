"""Numbers as people and models write them, read exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

LONGEST = 300
"""Characters of a number, and its largest power of ten; what is longer is text."""

NOISE = Fraction(1, 10**6)
"""Two decimals, or a decimal and a whole number, agree where they differ by this relative to the larger."""

_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_EXPONENT = r"(?:\{[+-]?[0-9]{1,4}\}|[+-]?[0-9]{1,4})"
_POWER = rf"(?:[eE][+-]?[0-9]{{1,4}}|\s?(?:\\times|\\cdot|[x\u00d7*\u00b7])\s?10\s?(?:\^|\*\*)\s?{_EXPONENT})"
_NUMBER = re.compile(
    # Not within a word, another number, an index or a power; a minus that stands apart is a dash.
    rf"(?<![0-9A-Za-z_^])(?P<sign>[+-]?)(?P<currency>[$€£¥₹]?)(?P<inner>[+-]?)"
    rf"(?:(?P<whole>[0-9]+)?\\frac\{{(?P<top>{_PLAIN})\}}\{{(?P<bottom>{_PLAIN})\}}"
    rf"|(?:(?P<mixed>[0-9]+)\s+(?=[0-9]+\s?/\s?[0-9]))?(?P<plain>{_PLAIN})"
    rf"(?:\s?/\s?(?P<over>{_PLAIN})|(?P<power>{_POWER}))?)"
    r"(?P<percent>\s?(?:%|percent\b|per cent\b))?"
)
_UNIT = re.compile(
    r"\s*(?:[$€£¥₹°]|[A-Za-z°µ²³][A-Za-z²³]*(?:\^[23])?(?:\s?[/·]\s?[A-Za-z²³]+(?:\^[23])?)?)(?:\s+[A-Za-z'-]{2,}){0,4}"
)
_LONE_UNITS = frozenset("mgslhLCFKVWJN$€£¥₹°")
_NO_UNITS = frozenset({"pi", "e", "i", "and", "or", "to", "plus", "minus", "times", "sqrt", "x", "squared", "cubed"})
_APPROXIMATELY = re.compile(r"^(?:≈|~|about|approximately|around|roughly|exactly)\s*", re.IGNORECASE)


class Number(NamedTuple):
    """A number as it was written; 50 % has the value 50 and `percent`."""

    value: Fraction
    percent: bool
    places: int | None  # decimal places of a number written as a decimal, None for integers and fractions
    digits: int  # significant digits of a decimal


def parse_number(text: str) -> Number | None:
    """Return the number that the whole text is, or None.

    Read are integers, decimals, thousands separators (``1,234``), fractions (``3/4``, ``1 1/2``, ``\\frac{3}{4}``),
    percent, scientific notation (``1.5e3``, ``1.5 x 10^3``) and signs. A currency, a word such as ``about``, what
    stands before an equals sign and up to five words of unit after the number are left out: ``x = $12.50 an hour``
    is 12.5. Units are not converted. Number words (``five``), roots, constants and sums are text.

    >>> parse_number("1,234.50 km").value
    Fraction(2469, 2)
    >>> parse_number("1 1/2").value, parse_number("50%").percent
    (Fraction(3, 2), True)
    >>> parse_number("3 and 4"), parse_number("2x"), parse_number("1/0")
    (None, None, None)
    """
    text = clean_mathematics(text).rpartition("=")[2]
    text = _APPROXIMATELY.sub("", text.strip())
    match = _NUMBER.match(text)
    if match is None or not _is_unit(text[match.end() :]):
        return None
    return _read(match)


def find_numbers(text: str) -> Iterator[str]:
    """Yield the numbers that stand in a text, as they are written.

    >>> list(find_numbers("He paid $1,200 for 3/4 of it, 50% off."))
    ['$1,200', '3/4', '50%']
    """
    for match in _NUMBER.finditer(clean_mathematics(text)):
        if _read(match) is not None:
            yield match.group().strip()


def numbers_match(first: Number, second: Number) -> bool:
    """Return whether two numbers are the same.

    Integers and fractions are compared exactly. Decimals have a tolerance of `NOISE`, and where the coarser one has at
    least two decimal places and two significant digits, of half a unit of its last place: ``0.67`` is ``2/3`` and
    ``0.6667``, but not ``0.66``. ``50%`` is 50 and is 0.5, but not 0.5 percent.
    """
    if first.percent and second.percent:
        return _close(first, second)
    return any(_close(a, b) for a in _readings(first) for b in _readings(second))


def clean_mathematics(text: str) -> str:
    """Return the text without the marks of LaTeX and Markdown that do not change what it says."""
    text = text.replace("\u2212", "-").replace("\u2013", "-").replace("\u00a0", " ").replace("\u202f", " ")
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s?\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[dt]frac\b", r"\\frac", text)
    text = re.sub(r"\\frac\s?([0-9])\s?([0-9])(?![0-9])", r"\\frac{\1}{\2}", text)
    text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\;", " ").replace("\\ ", " ")
    text = re.sub(r"\\([%$#&])", r"\1", text)
    text = re.sub(r"\\[()\[\]]", "", text).replace("**", "").replace("`", "")
    text = re.sub(r"\^\{?\\circ\}?", "°", text)
    text = re.sub(r"\$([^$]*)\$", r"\1", text)  # $5$; a single dollar is money
    return text.lstrip("\"'\t\n ").rstrip(".:;,!\"'\t\n ").strip()


def _is_unit(rest: str) -> bool:
    if not rest.strip():
        return True
    if not _UNIT.fullmatch(rest):
        return False
    words = rest.split()
    if words[0].lower() in _NO_UNITS or any(word.lower() in _NO_UNITS for word in words[1:]):
        return False
    return len(words[0]) > 1 or words[0] in _LONE_UNITS or (words[0] == "a" and len(words) > 1)  # $5 a day


def _read(match: re.Match[str]) -> Number | None:
    if len(match.group()) > LONGEST:
        return None
    part = match.groupdict()
    percent = part["percent"] is not None
    if part["sign"] and part["inner"]:
        return None
    sign = -1 if "-" in (part["sign"], part["inner"]) else 1
    if part["top"] or part["over"]:
        top, bottom = _decimal(part["top"] or part["plain"]), _decimal(part["bottom"] or part["over"])
        if bottom == 0:
            return None
        whole = int(part["whole"] or part["mixed"] or 0)
        return Number(sign * (whole + top / bottom), percent, None, 0)
    value, text = _decimal(part["plain"]), part["plain"].replace(",", "")
    exponent = 0
    if part["power"]:
        exponent = int(re.sub(r"[{}]", "", re.split(r"[eE]|\^|\*\*", part["power"])[-1]))
        if abs(exponent) > LONGEST:
            return None
        value *= Fraction(10) ** exponent
    if "." not in text and not part["power"]:
        return Number(sign * value, percent, None, 0)
    places = len(text.partition(".")[2]) - exponent
    return Number(sign * value, percent, places, len(text.replace(".", "").lstrip("0")))


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _readings(number: Number) -> list[Number]:
    if not number.percent:
        return [number]
    places = None if number.places is None else number.places + 2
    return [number, number._replace(value=number.value / 100, places=places)]


def _close(first: Number, second: Number) -> bool:
    difference = abs(first.value - second.value)
    decimals = [number for number in (first, second) if number.places is not None]
    if not decimals or difference == 0:
        return difference == 0
    coarser = min(decimals, key=lambda number: (number.places or 0, number.digits))
    rounded = Fraction(0)
    if coarser.places is not None and coarser.places >= 2 and coarser.digits >= 2:
        rounded = Fraction(1, 2) * Fraction(10) ** -coarser.places
    return difference <= max(rounded, NOISE * max(abs(first.value), abs(second.value)))
