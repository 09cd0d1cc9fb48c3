"""Interpret the words and signs right after a number: units, powers of ten, or factors."""

from __future__ import annotations

import re

SCALES = {
    **{"dozen": 12, "hundred": 10**2, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7},
    **{"billion": 10**9, "trillion": 10**12, "quadrillion": 10**15},
}
"""Words that multiply the number before them."""

LETTER_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}

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
