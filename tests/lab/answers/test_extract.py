from __future__ import annotations

import pytest

from colm.lab.answers.extract import LONGEST_LINE, extract_answer, extract_marked
from colm.lab.answers.match import Kind, answers_match


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("2 + 3 = 5\nThe answer is 5.", "number", "5"),
        ("The answer is 5 because 3 + 2 = 5.", "number", "5"),
        ("The answer is 5. There were 7 before.", "number", "5"),
        ("The answer is 3.5. Done", "number", "3.5"),
        ("The answer is 5.\nThe answer is 6.", "number", "6"),
        ("the final answer is: $x = 5$.", "number", "x = 5"),
        ("So the answer to the question would be 1,000 apples", "number", "1,000 apples"),
        ("**Answer:** 5", "number", "5"),
        ("Answer: he has 5 of them (half)", "number", "5"),
        ("Answer:\n\n5", "number", "5"),
        ("#### 72", "number", "72"),
        ("#### Step 1\nWe have 5\nSo 7", "number", "7"),  # a heading, then the last number
        (r"Thus \boxed{\frac{3}{4}}. ", "number", r"\frac{3}{4}"),
        (r"The answer is \boxed{5}.", "number", "5"),
        (r"It is 4. The answer is \boxed{12", "number", "12"),  # truncated: the last number
        ("He has 5, sells 2 and keeps 3 of them.", "number", "3"),
        ("17", "number", "17"),
        ("The answer is 12 apples and 3 pears.", "number", "12 apples and 3 pears"),  # no single number
        ("I do not know.", "number", None),
        ("Answer: B", "letter", "B"),
        ("The correct answer is (C) the dog", "letter", "C"),
        ("The answer is B. 12 km", "letter", "B"),
        ("It is not (A), it must be (B).", "letter", "B"),
        ("B) 12 km", "letter", "B"),
        ("Paris", "letter", None),
        ("Yes, there are no others.", "truth", "Yes"),
        ("So they are not all cats.\nNo", "truth", "No"),
        ("The answer is definitely true.", "truth", "true"),
        ("Perhaps.", "truth", None),
        ("The answer is St. Louis. It is a city", "text", "St. Louis"),
        ("We go east.\nwife", "text", "wife"),
        ("olleh", None, "olleh"),
        ("2, 3, 5", None, "2, 3, 5"),
        ("So he keeps 12 apples.", None, "12"),
        ("In words:\nnothing at all is left", None, "nothing at all is left"),
        ("", None, None),
        (" \n ", "number", None),
        ("The answer is", "number", None),
        ("word " * LONGEST_LINE, None, None),
    ],
)
def test_final_answer(text: str, kind: Kind | None, answer: str | None) -> None:
    found = extract_answer(text, kind=kind)
    assert found == answer or (found is not None and answer is not None and answers_match(found, answer))


def test_a_mark_repeated_forever() -> None:
    assert extract_answer("The answer is 5. " + "\\boxed{" * 5000, kind="number") == "5"


def test_marks_only() -> None:
    assert extract_marked("5\nThe answer is 6.") == "6"
    assert extract_marked("5") is None
    assert extract_marked("The answer is \n ") is None
    assert extract_marked(r"\boxed{a{b}c} and more") == "a{b}c"
