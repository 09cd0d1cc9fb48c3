"""Numbers as people and models write them, parsed exactly, and the units or factors after them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from math import factorial
from typing import NamedTuple

from colm.lab.answers.clean import clean_mathematics, without_remarks

LONGEST = 300
"""Maximum characters of a number, and maximum power of ten; anything longer is text."""

NOISE = Fraction(1, 10**6)
"""Two decimals, or a decimal and a whole number, are equal within this tolerance relative to the larger."""

SCALES = {
    **{"dozen": 12, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7},
    **{"billion": 10**9, "trillion": 10**12, "quadrillion": 10**15},
}
"""Words that multiply the number before them."""

LETTER_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}

_GROUPED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?: [0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3})(?![0-9])"
_PLAIN = rf"(?:{_GROUPED}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_EXPONENT = r"(?:\{[+-]?[0-9]{1,4}\}|[+-]?[0-9]{1,4})"
_POWER = rf"(?:[eE][+-]?[0-9]{{1,4}}|\s?(?:\\times|\\cdot|[x\u00d7*\u00b7])\s?10\s?(?:\^|\*\*)\s?{_EXPONENT})"
_SCALE = rf"(?:[ -]?(?i:{'|'.join(SCALES)})(?i:s?)\b){{1,3}}"
_CURRENCY = r"(?:(?:US|AU|CA|HK|NZ)?[$€£¥₹₩₽]\s?|(?:Rs\.?|USD|EUR|GBP|INR|CAD|AUD|CHF|JPY|CNY|RMB)\s?)?"
_NUMBER = re.compile(
    # Not within a word, another number, an index or a power; a minus set off by spaces is a dash.
    rf"(?<![0-9A-Za-z_^])(?P<sign>[+-]?)(?P<currency>{_CURRENCY})(?P<inner>[+-]?)"
    rf"(?:(?:(?P<whole>[0-9]+)\s?)?\\frac\{{(?P<top>{_PLAIN})\}}\{{(?P<bottom>{_PLAIN})\}}"
    rf"|10\s?\^\s?(?P<ten>{_EXPONENT})"
    rf"|(?:(?P<mixed>[0-9]+)\s{{1,3}}(?=[0-9]+\s?/\s?[0-9]))?(?P<plain>{_PLAIN})"
    rf"(?:\s?/\s?(?P<over>{_PLAIN})|(?P<power>{_POWER}))?)"
    rf"(?:(?P<scale>{_SCALE})|(?P<letter>(?<=[0-9])(?:k|K|M|mn|B|bn))(?![A-Za-z0-9/^]))?"
    r"(?P<percent>\s?(?:%|percent\b|per cent\b))?"
)
_APPROXIMATELY = re.compile(
    r"^(?:≈|~|(?:about|approximately|approx\.?|around|roughly|exactly|precisely|ca\.)(?![A-Za-z]))\s*", re.IGNORECASE
)
_LIST = re.compile(r",\s|;|\bor\b|\band\b")
_POWER_OR_FACTORIAL = re.compile(r"(-?)([0-9]{1,4})(?:\s?\^\s?(?:\{([0-9]{1,3})\}|([0-9]{1,3}))|(!))")
_UNIT = re.compile(
    r"\s{0,3}(?:[$€£¥₹°]|[A-Za-z°µ²³][A-Za-z²³]*(?:\^\{?[23]\}?)?(?:\s?[/·]\s?[A-Za-z²³]+(?:\^\{?[23]\}?)?)?)"
    r"(?:\s{1,3}[A-Za-z'-]{2,}){0,4}"
)
_LONE_UNITS = frozenset("mgslhLCFKVWJN$€£¥₹°")
_SHORT = """
km cm mm nm pm dm kg mg ug lb lbs oz ft in yd mi ml dl cl kl hr hrs min mins sec secs ms ns us kmh mph kph rpm fps am
st nd rd th hz khz mhz ghz kw mw gw kj mj kv mv kn pa kpa mpa atm bar mol cal kcal ev gb mb tb kb usd eur gbp inr cad
aud rs pts pt pcs pc yr yrs wk wks day sqft sq gal qt cup tsp ct cts deg rad ha ppm db px dpi °c °f °
"""
_SHORT_UNITS = frozenset(_SHORT.split())
_FACTORS = """
pi e i and or to plus minus times sqrt x squared cubed factorial choose mod modulo divided multiplied raised over point
root sin cos tan cot sec csc log ln exp half halves third thirds fifth fifths sixth sixths seventh sevenths eighth
eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths millionth millionths
"""
_NO_UNITS = frozenset(_FACTORS.split())
_WORD_AFTER = re.compile(r"(\s?)([A-Za-z°]+)(\s[A-Za-z]+)?")


class Number(NamedTuple):
    """A number as written; 50% has the value 50 and `percent`."""

    value: Fraction
    percent: bool
    places: int | None  # decimal places of a number written as a decimal, None for integers and fractions
    digits: int  # significant digits of a decimal


def parse_number(text: str) -> Number | None:
    """Return the number that the whole text represents, or None.

    Supported are integers, decimals, thousands separators (``1,234``, ``1 234``), fractions (``3/4``, ``1 1/2``,
    ``\\frac{3}{4}``), percent, scientific notation (``1.5e3``, ``1.5 x 10^3``, ``10^3``), words and letters for powers
    of ten (``5 million``, ``20k``) and signs. A currency, a word such as ``about``, text before an equals sign, up to
    five words of unit after the number and a remark (``42 (40 + 2)``, ``42, not 43``) are ignored:
    ``x = $12.50 an hour`` is 12.5. Units are not converted. Number words (``five``), roots, constants and sums count as
    text.

    >>> parse_number("1,234.50 km").value
    Fraction(2469, 2)
    >>> parse_number("1 1/2").value, parse_number("50%").percent, parse_number("5 million").value
    (Fraction(3, 2), True, Fraction(5000000, 1))
    >>> parse_number("3 and 4"), parse_number("2x"), parse_number("1/0"), parse_number("5!")
    (None, None, None, None)
    """
    text = clean_mathematics(text)
    for part in dict.fromkeys((text, without_remarks(text))):
        head, equals, part = part.rpartition("=")
        if equals and "=" in head and _LIST.search(head.rpartition("=")[2]):  # x = 3, y = 4
            return None
        part = _APPROXIMATELY.sub("", part.strip())
        negative = re.match(r"(?:minus|negative)\s(?=[0-9.$])", part, re.IGNORECASE)
        part = "-" + part[negative.end() :] if negative else part
        match = _NUMBER.match(part)
        if match is not None and is_unit(part[match.end() :]):
            return _read(match)
    return None


def iterate_numbers(text: str) -> Iterator[re.Match[str]]:
    """Yield matches in a clean text that look like numbers (`is_number`); the group ``sign`` is the number's sign.

    >>> [match[0] for match in iterate_numbers("He paid $1,200 for 3/4 of it, 50% off.")]
    ['$1,200', '3/4', '50%']
    """
    return _NUMBER.finditer(text)


def is_number(match: re.Match[str]) -> bool:
    """Return whether a match that looks like a number has a value: no division by 0, and not too long."""
    return _read(match) is not None


def numbers_match(first: Number, second: Number) -> bool:
    """Return whether two numbers are equal.

    Integers and fractions are compared exactly. Decimals have a tolerance of `NOISE`. If the coarser one has at least
    two decimal places and two significant digits, the tolerance is half a unit in its last place: ``0.67`` equals
    ``2/3`` and ``0.6667``, but not ``0.66``. ``50%`` equals 50 and 0.5, but not 0.5 percent.
    """
    if first.percent and second.percent:
        return _close(first, second)
    return any(_close(a, b) for a in _readings(first) for b in _readings(second))


def parse_power(text: str) -> Number | None:
    """Return the value of a power or a factorial of an integer, or None.

    >>> parse_power("2^{10}").value, parse_power("5!").value, parse_power("9^{9^9}")
    (Fraction(1024, 1), Fraction(120, 1), None)
    """
    match = _POWER_OR_FACTORIAL.fullmatch(clean_mathematics(text).rpartition("=")[2].strip())
    if match is None or (match[5] and (match[1] or int(match[2]) > 100)):
        return None
    base, exponent = int(match[2]), int(match[3] or match[4] or 0)
    value = factorial(base) if match[5] else base**exponent
    return Number(Fraction(-value if match[1] else value), False, None, 0)


def _read(match: re.Match[str]) -> Number | None:
    if len(match.group()) > LONGEST:
        return None
    part = match.groupdict()
    percent = part["percent"] is not None
    if part["sign"] and part["inner"]:
        return None
    sign = Fraction(-1 if "-" in (part["sign"], part["inner"]) else 1)
    for word in re.findall(r"[a-z]+?(?=s?\b)", (part["scale"] or "").lower()):
        sign *= SCALES.get(word, 1)
    sign *= LETTER_SCALES[part["letter"]] if part["letter"] else 1
    if part["ten"]:
        exponent = int(part["ten"].strip("{}"))
        return None if abs(exponent) > LONGEST else Number(sign * Fraction(10) ** exponent, percent, None, 0)
    if part["top"] or part["over"]:
        top, bottom = _decimal(part["top"] or part["plain"]), _decimal(part["bottom"] or part["over"])
        if bottom == 0:
            return None
        whole = int(part["whole"] or part["mixed"] or 0)
        return Number(sign * (whole + top / bottom), percent, None, 0)
    value, text = _decimal(part["plain"]), re.sub(r"[,\s]", "", part["plain"])
    exponent = 0
    if part["power"]:
        exponent = int(re.sub(r"[{}]", "", re.split(r"[eE]|\^|\*\*", part["power"])[-1]))
        if abs(exponent) > LONGEST:
            return None
        value *= Fraction(10) ** exponent
    if "." not in text and not part["power"]:
        return Number(sign * value, percent, None, 0)
    places = len(text.partition(".")[2]) - exponent
    if part["scale"] or part["letter"]:
        places = 0
    return Number(sign * value, percent, places, len(text.replace(".", "").lstrip("0")))


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[,\s]", "", text))


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


def is_unit(rest: str) -> bool:
    """Return whether the text after a number is empty or a unit of up to five words.

    >>> is_unit(" km/h"), is_unit("km"), is_unit(" red apples"), is_unit("xy"), is_unit(" and 3")
    (True, True, True, False, False)
    """
    if not rest.strip():
        return True
    if not _UNIT.fullmatch(rest):
        return False
    words = re.sub(r"\s?([/·])\s?", r"\1", rest).split()
    if any(word.lower() in _NO_UNITS for word in words):
        return False
    first = re.split(r"[/·^]", words[0])[0]
    if len(first) == 1:
        return first in _LONE_UNITS or (first == "a" and len(words) > 1)  # $5 a day
    if rest[0].isspace():
        return not _is_product(first.lower())
    return len(first) > 3 or first.lower() in _SHORT_UNITS or first[-1] in "²³"


def is_factor_word(after: str) -> bool:
    """Return whether a text begins with a word that makes the number before it part of an expression.

    >>> is_factor_word(" pi"), is_factor_word("xy"), is_factor_word(" apples"), is_factor_word("km")
    (True, True, False, False)
    """
    word = _WORD_AFTER.match(after)
    if word is None:
        return False
    apart, name = bool(word[1]), word[2].lower()
    if name == "times":
        return False
    if name in ("and", "or", "to", "in"):
        return not apart and name != "in"
    if name in _NO_UNITS:
        return True
    if len(name) == 1:
        return word[2] not in _LONE_UNITS and not (apart and (word[2] == "I" or (name == "a" and bool(word[3]))))
    return _is_product(name) if apart else len(name) < 4 and name not in _SHORT_UNITS


def _is_product(word: str) -> bool:
    """Return whether a word is a product of variables, such as xy."""
    return len(word) < 4 and set(word) <= set("abcxyz") and word != "cab"
