"""A model's reasoning is not an answer."""

from __future__ import annotations

import pytest

from colm.lab.answers import answers_match, extract_answer
from colm.lab.answers.gym import task_accepts
from colm.lab.answers.reasoning import ends_in_reasoning, without_reasoning

TAGS = [
    *(("<think>", "</think>"), ("<THINK>", "</Think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>")),
    *(("<reasoning>", "</reasoning>"), ("<think type='deep'>", "</think>"), ("< think >", "< /think >")),
    *(
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("[THINK]", "[/THINK]"),
    ),
    *(
        ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
        ("<seed:think>", "</seed:think>"),
        ("<scratchpad>", "</scratchpad>"),
    ),
    *(("<|think|>", "<|/think|>"), ("&lt;think&gt;", "&lt;/think&gt;"), ("<inner_monologue>", "</inner_monologue>")),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
]
THOUGHTS = ["The answer is 41.", "\\boxed{41}", "#### 41", "41", "Is it 41?\n\nNo, 43.", "I may write **41**"]


@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize(("start", "end"), TAGS)
def test_thoughts_are_not_answers(start: str, end: str, thought: str) -> None:
    for text in (
        f"{start}{thought}{end}\nIt is 42.",
        f"{start}\n{thought}\n{end}\n\nThe answer is 42",
        f"{thought}\n{end}42",
        f"{start}{thought}{end}{start}{thought}{end}\\boxed{{42}}",
        f"{start}{start}{thought}{end} {thought} {end} 42",
    ):
        found = extract_answer(text, kind="number")
        assert found is not None, text
        assert answers_match(found, "42"), text
    assert extract_answer(f"{start}\n{thought}", kind="number") is None
    assert extract_answer(f"{start}{thought}{end}", kind="number") is None


def test_an_answer_between_thoughts_and_before_a_stray_tag_counts() -> None:
    assert extract_answer("<think>41</think> The answer is 42. <think>or 43", kind="number") == "42"
    assert extract_answer("<think>41</think> The answer is 42. </think>", kind="number") == "42"
    assert extract_answer("<think/> The answer is 42.", kind="number") == "42"


def test_text_outside_thoughts_stays() -> None:
    for text in ("<b>42</b>", "I think 42", "[reason] 42", "<answer>42</answer>", "a < think", "5 > 3"):
        assert without_reasoning(text) == text


def test_a_prompt_may_open_the_thought() -> None:
    assert ends_in_reasoning("User: 2?\nAssistant: <think>\n")
    assert not ends_in_reasoning("<think>\n\n</think>\n")
    assert not ends_in_reasoning("2?")


def test_task_scorers_do_not_see_thoughts() -> None:
    task = {"dataset": "chain_sum", "question": "1 + 1 =", "answer": "2", "metadata": {}}
    assert task_accepts(task, "<think>The answer is 3</think>2")
    assert not task_accepts(task, "<think>The answer is 2</think>3")
