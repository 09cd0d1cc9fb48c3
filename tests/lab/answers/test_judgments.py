"""Answers are judged as a person would judge them, in any phrasing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.judgments import DENIED, PART_OF_SOMETHING, Pair, judgments, sayings

from colm.lab.answers import answers_match, extract_answer
from colm.lab.answers.match import kind_of

PAIRS = judgments()


def judge(said: str, expected: str) -> bool:
    found = extract_answer(said, kind=kind_of(expected))
    return found is not None and answers_match(found, expected)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.kind}: {pair.said} for {pair.expected}")
def test_agrees_with_a_person(pair: Pair) -> None:
    for said in sayings(pair.said):
        assert judge(said, pair.expected) is pair.right, said


@pytest.mark.parametrize(
    ("said", "expected", "right"),
    [
        ("He had 50 apples and gave 8 away.\nSo **42** are left of 50.", "42", True),
        ("So he has 42 apples (40 + 2).", "42", True),
        ("Thus 42 = 6 * 7", "42", True),
        ("So he has 6 * 7 apples", "7", False),
        ("He has x - 3 apples", "3", False),
        ("She has 20 - 5 = 15 left.", "15", True),
        ("It is not 5.", "5", False),
        ("<answer>Paris</answer>", "Paris", True),
        ("The answer is:\n\\[\n42\n\\]", "42", True),
        ("### Final Answer\n42", "42", True),
        ("The correct option is C", "C", True),
        ("I had 42 at first. The answer is unknown.", "42", False),
        ("\\boxed{5\\text{ million}}", "5", False),
        ("\\boxed{\\tfrac34}", "3/4", True),
        ("\\boxed{0.\\overline{3}}", "0", False),
        ("It is 0.\\overline{3}", "0", False),
        ("A is wrong, B is wrong, so the answer must be C", "C", True),
        ("So the answer should be $12.", "12", True),
        ("The answer must be positive, so x = 5", "5", True),
        ("The answer must be a whole number: 5", "5", True),
        ("Antwort: B", "B", True),
        ("La respuesta es (C).", "C", True),
        ("答案是B", "B", True),
    ],
)
def test_text_around_an_answer(said: str, expected: str, right: bool) -> None:
    assert judge(said, expected) is right


@pytest.mark.parametrize(("first", "second"), [("12", "15"), ("B", "C"), ("$3.50", "$4"), ("1/2", "\\frac{3}{4}")])
@pytest.mark.parametrize(
    "said",
    [
        "The answer is {}. Wait, actually it should be {}.",
        "The answer is {}.\n\nWait, that's wrong. It should be {}.",
        "Answer: {}\nCorrection: that is {}.",
        "The answer is {}. No, it's {}.",
        "The answer is {}. Sorry, the correct value: {}",
        "The answer is {}. Wait, I made a mistake. The answer is {}.",
    ],
)
def test_a_withdrawn_answer(said: str, first: str, second: str) -> None:
    assert judge(said.format(first, second), second)
    assert not judge(said.format(first, second), first)


@pytest.mark.parametrize(
    "said", ["Wait, let me check: 3 * 4 = 12. Yes.", "Actually, he had 20 at first.", "No: 13 is odd.", "Wait, 15?"]
)
def test_a_doubted_answer_counts(said: str) -> None:
    assert judge(f"The answer is 12. {said}", "12")


@given(
    st.integers(2, 10**6), st.sampled_from([said for said, expected in PART_OF_SOMETHING + DENIED if expected == "5"])
)
def test_part_of_an_expression_is_not_the_number(value: int, said: str) -> None:
    text = said.replace("5", str(value)) if said.count("5") == 1 and not said.startswith("0") else said
    expected = str(value) if text != said else "5"
    assert not judge(f"The answer is {text}", expected)


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{} ({} + 0)", "**{}** (I had {} before)", "{}, not {}1", "{} because {}"]),
)
def test_a_remark_changes_nothing(value: int, how: str) -> None:
    assert judge("The answer is " + how.format(value, value), str(value))


pieces = st.sampled_from(
    [
        *(
            "<think>",
            "</think>",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            "$",
            "**",
            "`",
            "\\frac{",
            "\\boxed{",
            "\\text{",
            "\\sqrt",
            "^",
        ),
        *(
            "10^",
            "9" * 50,
            "1e9999",
            "10^{10^{10}}",
            "-",
            "+",
            "!",
            "π",
            "½",
            "²",
            "million",
            "k",
            "%",
            "x",
            "yes",
            "(B)",
        ),
        *(
            "not ",
            "The answer is ",
            "#### ",
            "<answer>",
            "\n",
            " ",
            ",",
            ";",
            "because ",
            "\u200b",
            "=",
            "/",
            "&lt;",
            "٣",
        ),
    ]
)


@given(
    st.lists(pieces | st.text(max_size=3), max_size=30).map("".join),
    st.sampled_from(["number", "letter", "truth", "text"]),
)
def test_any_text_is_read_without_an_error(text: str, kind: str) -> None:
    found = extract_answer(text, kind=kind)  # type: ignore[arg-type]
    assert found is None or found.strip()
    assert answers_match(text, "5") is answers_match("5", text)
    if found is not None:
        kind_of(found)


@pytest.mark.parametrize(
    "piece", ["9", "9,", "1 000 ", "(", "{", "\\frac{", "\\boxed{", "$", "**", "<think>", "½²", " (a", "5!"]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    extract_answer(text, kind="number")
    extract_answer(f"The answer is {text}")
    answers_match(text, "5")
