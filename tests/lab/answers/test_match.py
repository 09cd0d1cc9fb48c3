from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.lab.answers import answers_match, extract_answer
from colm.lab.answers.clean import clean_mathematics
from colm.lab.answers.match import kind_of, normalise_text


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("B", "(B)", True),
        ("b", "B.", True),
        ("B) 12 km", "B", True),
        ("(B) 12 km", "b) another text", True),
        ("B. Paris", "B", True),
        ("Option C", "(c)", True),
        ("A", "B", False),
        ("A dog", "A", False),
        ("dog", "D", False),
        ("e.g. this", "E", False),
        ("yes", "Yes.", True),
        ("True", "yes", True),
        ("false", "No, it is not", True),
        ("no solution", "no", False),
        ("yes", "no", False),
        ("The Eiffel Tower", "eiffel  tower.", True),
        ("'Paris'", "paris", True),
        (r"\text{Paris}", "paris", True),
        ("Paris", "London", False),
        ("cafe\u0301", "caf\u00e9", True),  # as macOS and others write an accent
        ("n\u0303", "n", False),
        ("rock 'n' roll", "Rock \u2018n\u2019 Roll", True),
        ('the "big" one', "the \u201cbig\u201d one", True),
        ("5", "five", False),
        ("", "", False),
        ("", "5", False),
        ("the", "the", True),
        ("A", "1", False),
    ],
)
def test_same_answers(first: str, second: str, same: bool) -> None:
    assert answers_match(first, second) is same
    assert answers_match(second, first) is same


def test_kinds() -> None:
    assert [kind_of(answer) for answer in ("1 1/2", "$5", "(b)", "True", "a dog", "", "x + 1")] == [
        *("number", "number", "letter", "truth", "text", "text", "text"),
    ]


answers = st.one_of(
    st.text(max_size=40),
    st.text("0123456789.,/-$% \\{}()eEabxkmfrc=^*ABCD\n", max_size=20),
    st.sampled_from(["5", "5.0", "50%", "1/2", "0.5", "(B)", "B", "yes", "true", "The answer is 5."]),
)


@given(answers, answers)
def test_symmetric_and_never_raises(first: str, second: str) -> None:
    assert answers_match(first, second) is answers_match(second, first)
    assert answers_match(first, first) is bool(normalise_text(clean_mathematics(first)))


@given(answers, st.sampled_from([None, "number", "letter", "truth", "text"]))
def test_extraction_never_raises_or_returns_an_empty_answer(text: str, kind: str | None) -> None:
    for completion in (text, f"The answer is {text}", f"#### {text}", f"\\boxed{{{text}}}"):
        found = extract_answer(completion, kind=kind)  # type: ignore[arg-type]
        assert found is None or found.strip()


pieces = st.sampled_from(
    [
        *("5", "1,234", "3/4", "%", "$", " ", "\\frac{1}{2}", "\\boxed{", "}", "The answer is ", "####", "Answer:"),
        *("(B)", "B", "yes", "true", ".", ",", "-", "x", "km", "\n", "**", " because ", "=", "the", "dog", "'"),
        "cats are here",
    ]
)


@given(st.lists(pieces, max_size=9).map("".join))
def test_a_completion_that_is_the_reference_is_right(text: str) -> None:
    expected = extract_answer(text)
    if expected is not None:
        found = extract_answer(text, kind=kind_of(expected))
        assert found is not None
        assert answers_match(found, expected)


@given(answers)
def test_long_garbage_is_fast(text: str) -> None:
    extract_answer(text * 200, kind="number")
    answers_match(text * 200, "5")
