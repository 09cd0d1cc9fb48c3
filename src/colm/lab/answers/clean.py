"""Clean texts: strip LaTeX, Markdown and HTML markup that does not change the meaning, and drop remarks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2010\u2011\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u202f\u2009\u2007\u2002\u2003\u200a\u3000", " "),
        **dict.fromkeys("\u200b\u2060\ufeff\u200e\u200f", ""),
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_STYLE = "text|textbf|textit|textrm|textsf|texttt|emph|mbox|mathrm|mathbf|mathit|mathsf|operatorname|bm|boldsymbol"

_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # An exclamation mark after a wrapped answer is not a factorial.
        (r"(\*\*|\$|`|\\\)|\\\])!+(?=\s|$)", r"\1"),
        (r"</?[A-Za-z][\w-]{0,30}\s?/?>", " "),
        (r"\\(?:boxed|fbox)\s?\{(?:([^{}]*)\})?", lambda found: f" {found[1] or ''} "),
        (rf"\\(?:{_STYLE})\s?\{{([^{{}}]*)\}}", r" \1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s?([0-9])\s?([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
        (r"\\(?:,|!)|\{,\}(?=[0-9]{3})", lambda found: "," if found[0] == "{,}" else ""),
        (r"\\[;:]|\\ |\\q?quad\b|\\displaystyle\b|~(?=\S)", " "),
        (r"\\(?:left|right|big|Big|bigg|Bigg)\b\s?(?=[^A-Za-z\s])", ""),
        (r"\\([%$#&])", r"\1"),
        (r"\\(?:neq|ne)\b|!=|\\not\s?=", "\u2260"),
        (r"\\(?:leqslant|leq|le)\b|<=", "\u2264"),
        (r"\\(?:geqslant|geq|ge)\b|>=", "\u2265"),
        (r"\\(?:lt)\b", "<"),
        (r"\\(?:gt)\b", ">"),
        (r"=>|\\(?:Rightarrow|implies|Longrightarrow|rightarrow)\b", "\u21d2"),
        (r"\\pm\b|\+/-|\+-", "\u00b1"),
        (r"\\approx\b|\\sim\b", "\u2248"),
        (r"==+|:=", "="),
        (r"(?<=[=$(])\s?-\s(?=[0-9.$\\])", "-"),  # a minus set off by a space
        (r"\\[()\[\]]", " "),
        # Match bold around text first, then the power operator of a program.
        (r"(?<![\w)\]}*])\*\*(?=[^\s*])([^*\n]{1,200})(?<=\S)\*\*(?!\*)", r" \1 "),
        (r"(?<=[\w)])\*\*(?=[\w({-])", "^"),
        (r"\*\*|__(?=\W|$)|(?<!\w)__|`", ""),
        (r"(?<![\w*)\]}])([*_])(?=[^\s*_])([^*_\n]{1,200})(?<=\S)\1(?![\w*])", r"\2"),
        (r"\^\{?\\circ\}?|\\degrees?\b", "°"),
        (r"\$\$?([^$]*)\$\$?", r" \1 "),  # $5$; a single dollar is money
        (r"[ \t]{2,}", " "),
        (r"[ \t](?=[,;:?)]|\.(?:\s|$))", ""),
    )
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s?\{")
_REMARK = re.compile(r"\s{1,3}(?:\(([^()]*)\)|\[([^\[\]]*)\])(?!\s*[\^*/\u00d7·÷+=])")
_PRODUCT = re.compile(r"(?<![A-Za-z])[A-Za-z](?:\s*[-+*/^0-9]|$)|[-+*/^0-9]\s*[A-Za-z](?![A-Za-z])")
_CLAUSE = re.compile(
    r"(?:,|;|\s\(|:)?\s{1,3}(?:because|since|given that|as opposed to|rather than|instead of)\b"
    r"|[,;:]\s{1,3}(?:(?:and|but)\s{1,3})?(?:not|which|i\.e\.|that is|meaning|so|thus|hence|where)(?=[\s,])"
    r"|;\s{1,3}(?!or\b|and\b)(?=[A-Za-z]{2})"
    r"|\s(?:-{1,3}|\u2014)\s+(?=[A-Za-z]{2})"
    r"|\s?\u2014\s?(?=[A-Za-z]{2})",
    re.IGNORECASE,
)


def clean_mathematics(text: str) -> str:
    """Return the text without LaTeX, Markdown and HTML markup that does not change the meaning.

    >>> clean_mathematics("**42**"), clean_mathematics(r"$\\text{Paris}$."), clean_mathematics("2**3")
    ('42', 'Paris', '2^3')
    """
    text = unicodedata.normalize("NFC", text.translate(_CHARACTERS))  # a letter and its accent are one character
    text = re.sub(r"\s{3,}", lambda found: "\n" if "\n" in found[0] else " ", text)
    text = _unbox(text)
    for rule, replacement in _RULES:
        text = rule.sub(replacement, text)
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", _write_fraction, text)
    text = re.sub(r"(?<=[0-9)])[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = text.strip("\"'\t\n ").rstrip(".:;,\"'\t\n ")
    if text.endswith("!") and not re.search(r"(?:[0-9)}]|(?<![A-Za-z])[A-Za-z])!+$", text[-40:]):  # not a factorial
        text = text.rstrip("!.")
    return text.strip()


def _write_fraction(found: re.Match[str]) -> str:
    return " " + unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/")


def without_remarks(text: str) -> str:
    """Return a clean text without remarks: text in brackets, or after ``because``, ``, not``, and so on.

    A factor in brackets, as in ``2 (x + 1)``, is not a remark.

    >>> without_remarks("42 (40 + 2)"), without_remarks("42, not 43"), without_remarks("2 (x + 1)")
    ('42', '42', '2 (x + 1)')
    """
    text = without_brackets(text)
    clause = _CLAUSE.search(text)
    return (text[: clause.start()] if clause and clause.start() else text).strip(" ,;:")


def without_brackets(text: str) -> str:
    """Return a clean text without the remarks in brackets.

    >>> without_brackets("12 apples (red) and 3 (half) pears")
    '12 apples and 3 pears'
    """
    for _ in range(3):  # nested brackets
        shorter = _REMARK.sub(_drop_remark, text)
        if shorter == text:
            break
        text = shorter
    return text


def _drop_remark(found: re.Match[str]) -> str:
    content = found[1] if found[1] is not None else found[2]
    return found[0] if is_factor(content) else ""


def is_factor(content: str) -> bool:
    """Return whether bracketed text after a number multiplies the number, as ``x + 1`` does, and so is not a remark."""
    return "=" not in content and bool(_PRODUCT.search(content.strip()))


def _unbox(text: str) -> str:
    """Return the content of a box around the whole text."""
    text = text.strip()
    for _ in range(3):
        start = _BOXED.match(text.strip("$ "))
        if start is None:
            break
        inner = text.strip("$ ")
        end = closing_brace(inner, start.end() - 1)
        if end is None or inner[end + 1 :].strip(" .$"):
            break
        text = inner[start.end() : end]
    return text


def closing_brace(text: str, start: int) -> int | None:
    """Return the position where the brace opened at `start` closes, or None if it never closes.

    >>> closing_brace("{a{b}c}d", 0)
    6
    """
    depth = 0
    for found in re.finditer(r"(?<!\\)[{}]", text[start:]):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return start + found.start()
    return None
