from __future__ import annotations

from collections import Counter

from colm.lab.sources.words import count_words, distinguishing_words


def test_words_are_counted_in_lower_case_without_numbers() -> None:
    assert count_words(["The sum of 12 and THE x", "Ärger, sum_up"]) == Counter(
        {"the": 2, "sum": 2, "of": 1, "and": 1, "ärger": 1, "up": 1}
    )


def test_a_common_word_distinguishes_no_source_and_a_rare_one_must_differ_more() -> None:
    counts = {
        "a": Counter({"the": 500, "legs": 60, "once": 1}),
        "b": Counter({"the": 500, "bits": 60}),
        "c": Counter({"the": 480}),
    }
    words = distinguishing_words(counts)
    assert words["a"] == ["legs"]
    assert words["b"] == ["bits"]
    assert words["c"] == ["the"]  # there is nothing else, so its share is larger
    assert distinguishing_words(counts, most=0)["a"] == []


def test_one_source_and_none_have_no_words() -> None:
    assert distinguishing_words({"a": Counter({"x": 5, "y": 3})}) == {"a": []}
    assert distinguishing_words({"a": Counter(), "b": Counter()}) == {"a": [], "b": []}
    assert distinguishing_words({}) == {}
