"""Words that distinguish a source from the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import log, sqrt

_WORD = re.compile(r"[^\W\d_]{2,}")


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count the words, of two letters or more, in lower case."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text.lower()))
    return counts


def distinguishing_words(counts: Mapping[str, Counter[str]], most: int = 8) -> dict[str, list[str]]:
    """Return, for each source, the words that it uses more than the other sources, the most distinctive first.

    The score is the log-odds ratio against all other sources, with the counts of all sources as an informative
    Dirichlet prior, divided by its standard deviation, so a rare word must differ more. Only words above 1.96 are
    returned.

    Args:
        counts: source -> its word counts.
        most: maximum words per source.

    Source: Monroe, Colaresi and Quinn, "Fightin' Words", 2008, equations 16 and 22.

    >>> distinguishing_words({"a": Counter(sum=90, the=100), "b": Counter(name=80, the=100)})
    {'a': ['sum'], 'b': ['name']}
    """
    whole: Counter[str] = Counter()
    for held in counts.values():
        whole.update(held)
    total = sum(whole.values())
    found = {}
    for name, held in counts.items():
        own = sum(held.values())
        rest = total - own
        scored = []
        for word, used in held.items():
            prior, others = whole[word], whole[word] - used
            odds = _log_odds(used + prior, own + total) - _log_odds(others + prior, rest + total)
            score = odds / sqrt(1 / (used + prior) + 1 / (others + prior))
            if score > 1.96:
                scored.append((-score, word))
        found[name] = [word for _, word in sorted(scored)[:most]]
    return found


def _log_odds(part: float, whole: float) -> float:
    return log(part) - log(whole - part) if part < whole else float("inf")
