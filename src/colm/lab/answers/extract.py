"""Extract the final answer from a completion or a data row, and find the numbers of a text that stand on their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from colm.lab.answers.clean import clean_mathematics, closing_brace, is_factor, without_brackets, without_remarks
from colm.lab.answers.match import REJECTED, TRUTHS, Kind, kind_of, parse_letter, parse_truth
from colm.lab.answers.numbers import is_factor_word, is_number, iterate_numbers, parse_number
from colm.lab.answers.reasoning import without_reasoning

LONGEST_LINE = 200
"""Maximum characters of a last line that can be an answer; a longer line is not a final answer."""

NEAR = 2000
"""Characters after an answer marker within which the answer may be corrected."""

MARKS = 8
"""Maximum number of answer markers to check, from the last one; a model may repeat the same marker forever."""

AROUND = 40
"""Characters before and after a number that can make it part of an expression."""

MOST_NUMBERS = 200
"""Maximum number of numbers to check, from the last one; a model may write numbers forever."""

_SHORT = r"[\s*$\\({]{1,4}-?(?:[0-9]|\\?(?:[dt]?frac|sqrt|boxed)|(?-i:[A-J])(?:[).,*]|\s?$))"
"""A number or an option."""

_MARKER = re.compile(
    r"\banswer\b(?:\s[^\n.:=?!]{0,40}?)?(?:\*\*)?\s*(?:\bis\b\s*:?|\bwould be\b|:|=)(?:\*\*)?|####|<answer>"
    rf"|\banswer\s(?:must|should|will|has\sto|can\sonly)\sbe\b(?={_SHORT})"
    r"|(?:\b(?:Antwort|respuesta|r[ée]ponse|resposta|risposta)\b|答案|Ответ)(?:\*\*)?\s?(?:ist\b|es\b|est\b|é|è|是|为|:|\uff1a)"
    r"|\\boxed\s?(?=\{)",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|sorry|oops|scratch\sthat|no)\b[^\n.]{0,40}(?:\.\s)?[^\n.]{0,20}?"
    rf"\b(?:(?:it|that|this)(?:['\u2019]s|\s(?:is|should\sbe|must\sbe|equals))|(?:correct|right)\s\w{{1,10}}:)(?={_SHORT})",
    re.IGNORECASE,
)
"""A phrase that withdraws an answer and gives another."""
_CLAUSE = re.compile(r"(?:,|\s\(|;)?\s{1,3}(?:because|since|given that)\b", re.IGNORECASE)
_STOP = re.compile(
    r"(?<=[^\s.])(?<!\b[A-Za-z])(?<!\b(?:Mr|Ms|Dr|St|Jr|Sr|vs|No|Rs))(?<!\bMrs)(?<!approx)(?:[.?]\s|!\s(?=[A-Z]))"
)
_OPTION = re.compile(r"\(([A-J])\)|\b(?:[Oo]ption|[Cc]hoice)(?:\sis)?:?\s{1,3}([A-J])\b")
_TRUTH_WORD = re.compile(
    r"\b(?:(not|n't|never)\s)?(?:(?:a|the)\s)?"
    r"(yes|true|false|no(?!\s(?!(?:it|they|he|she|there|this|that|these|because|since|as|we|you|the|is|i)\b)[A-Za-z]))\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\bnot|n['\u2019]t|\bnever|\bneither|\bnor|\bthan)\s(?:(?:be|the|option|choice|answer)\s){0,3}$", re.IGNORECASE
)
_BOLD = re.compile(r"(?<![\w*])\*\*(?=[^\s*])([^*\n]{1,200})(?<=\S)\*\*(?!\*)")
_WORD = re.compile(r"[A-Za-z']+")
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


def extract_answer(text: str, *, kind: Kind | None = None) -> str | None:
    """Return the final answer that a completion ends with, or None.

    The answer follows the last ``The answer is``, ``Answer:`` or ``####``, or is inside the last ``\\boxed{}``.
    Without a marker, it is the last number, the last option in parentheses, or the last yes or no, depending on `kind`;
    otherwise the last line. An explanation of the answer (``because ...``, a next sentence) is cut off.

    Args:
        text: the completion.
        kind: the kind of the expected answer (`match.kind_of`); None to infer it from the last line.

    >>> extract_answer("2 + 3 = 5, so he has 5 apples. The answer is 5.")
    '5'
    >>> extract_answer("So it is \\\\boxed{\\\\frac{3}{4}}.")
    '\\\\frac{3}{4}'
    >>> extract_answer("He has 5 apples and sells 2, which leaves 3 of them.", kind="number")
    '3'
    >>> extract_answer("  ") is None
    True
    """
    text = without_reasoning(text)
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
        return next(free_numbers(line), line)
    bold = _BOLD.findall(lines[-1])
    if len(bold) == 1 and (found := _as_kind(bold[0], kind)):
        return found
    return _as_kind(lines[-1], kind, many=True) or _as_kind(text, kind, many=True)


def extract_marked(text: str) -> str | None:
    """Return the text after the last answer marker, or None without a marker or without text after it."""
    for match in list(_MARKER.finditer(text))[: -MARKS - 1 : -1]:
        rest = text[match.end() :]
        if match.group().startswith("\\boxed"):
            found = _within_braces(rest)
        else:
            line = next((line for line in rest.splitlines() if line.strip(" *\t$")), "")
            if match.group().lower() == "<answer>":
                line = re.split(r"</answer>", rest, maxsplit=1, flags=re.IGNORECASE)[0].strip().replace("\n", " ")
            if "\\boxed" in line:  # the box was truncated, or it would have been found
                continue
            found = _cut(line)
            for correction in islice(_CORRECTION.finditer(rest[:NEAR]), MARKS):
                found = _cut(rest[correction.end() :].lstrip().partition("\n")[0])
            if match.group() == "####" and kind_of(found) == "text" and "\n" in rest.strip():
                continue  # a heading
        found = clean_mathematics(found)
        if found:
            return found
    return None


def _as_kind(text: str, kind: Kind | None, *, many: bool = False) -> str | None:
    """Return the part of the text of this kind. If there are several, return the last one if `many`, else None."""
    if kind not in ("number", "letter", "truth"):
        return None
    clean = clean_mathematics(text)
    plain = without_brackets(clean) if many else without_remarks(clean)
    if kind == "number":
        if parse_number(text) is not None:
            return clean
        found = list(islice(free_numbers(plain), 2)) or list(islice(free_numbers(clean), 2))
    elif kind == "letter":
        if parse_letter(text):
            return parse_letter(text)
        found = _options(plain) or _options(clean)
    else:
        truth = parse_truth(text)
        if truth is not None:
            word = _TRUTH_WORD.search(clean)
            return word[2] if word and TRUTHS[word[2].lower()] == truth else ("yes" if truth else "no")
        found = [_truth(*pair) for pair in reversed(_TRUTH_WORD.findall(clean))]
    return found[0] if found and (many or len(found) == 1) else None


def _options(text: str) -> list[str]:
    """Return the letters of the options that the text names and does not negate, the last one first."""
    return [
        match[1] or match[2]
        for match in reversed(list(_OPTION.finditer(text)))
        if not _DENIED.search(text[max(0, match.start() - 40) : match.start()])
        and not REJECTED.match(text[match.end() : match.end() + 40])
    ]


def _truth(denied: str, word: str) -> str:
    return ("no" if TRUTHS[word.lower()] else "yes") if denied else word


def _cut(line: str) -> str:
    """Return a line up to the end of its first sentence, without a reason after the answer."""
    line = line.strip()
    stop = _STOP.search(line)
    line = line[: stop.start()] if stop else line
    clause = _CLAUSE.search(line)
    return line[: clause.start()] if clause and clause.start() else line


def _within_braces(text: str) -> str:
    text = text.lstrip()
    end = closing_brace(text, 0)
    return "" if end is None else text[1:end]  # truncated


def free_numbers(text: str) -> Iterator[str]:
    """Yield the standalone numbers of a text, the last one first: not in a formula, not negated, not a bound.

    >>> list(free_numbers("He had 40 + 2 apples, not 43, which makes 42.")), list(free_numbers("x + 5, 3 pi or not 5"))
    (['42'], [])
    """
    text = clean_mathematics(text)
    for match in list(iterate_numbers(text))[: -MOST_NUMBERS - 1 : -1]:
        before, after = text[max(0, match.start() - AROUND) : match.start()], text[match.end() : match.end() + AROUND]
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
