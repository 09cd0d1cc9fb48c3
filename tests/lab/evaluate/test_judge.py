from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from colm.errors import DataError
from colm.lab.data.questions import Question, Questions, read_questions
from colm.lab.evaluate.judge import (
    Generation,
    answer_questions,
    decode_completion,
    digest_questions,
    judge,
    make_prompts,
    summarise_answers,
)
from colm.models import build_tiny_model, train_tiny_tokenizer

ROWS = [{"source": "ab"[i % 3 == 0], "prompt": f"What is {i} + {'1' * i}? ", "answer": str(i)} for i in range(8)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tiny_tokenizer(["abc"])  # one token per byte


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return build_tiny_model(tokenizer)


@pytest.fixture(scope="module")
def questions() -> Questions:
    return read_questions([Dataset.from_list(ROWS)], source_column="source")


def test_every_question_is_answered_once_for_any_batch_size(model: Any, tokenizer: Any, questions: Questions) -> None:
    prompts = make_prompts(questions.asked, model, tokenizer, 5)

    def answer(batch_size: int, **changes: Any) -> list[dict[str, Any]]:
        how = Generation(max_new_tokens=5, batch_size=batch_size)
        batches = answer_questions(model, tokenizer, questions.asked, prompts, how, **changes)
        return sorted((line for lines in batches for line in lines), key=lambda line: line["index"])

    lines = answer(3)
    assert lines == answer(1) == answer(8)
    assert [line["index"] for line in lines] == list(range(8))
    assert [line["expected"] for line in lines] == [str(i) for i in range(8)]
    assert lines[2]["prompt"] == ROWS[2]["prompt"]
    longest_first = [5, 6, 7]
    assert [line["index"] for line in answer(3, done=longest_first)] == [0, 1, 2, 3, 4]
    assert len(answer(3, done=[6, 7])) == 8  # an interrupted batch is answered in full


def test_a_prompt_too_long_loses_its_beginning(tokenizer: Any, model: Any, questions: Questions) -> None:
    prompts = make_prompts(questions.asked, model, tokenizer, 495)  # of 512
    assert [len(ids) for ids in prompts.ids] == [min(17, len(tokenizer(row["prompt"])["input_ids"])) for row in ROWS]
    assert prompts.cut == [len(tokenizer(row["prompt"])["input_ids"]) > 17 for row in ROWS]
    assert any(prompts.cut)
    assert tokenizer.decode(prompts.ids[7]) == ROWS[7]["prompt"][-len(tokenizer.decode(prompts.ids[7])) :]
    whole = make_prompts(questions.asked, model, tokenizer, 5)
    assert digest_questions(questions.asked, prompts) != digest_questions(questions.asked, whole)
    empty = [questions.asked[0]._replace(row={"prompt": ""})]
    with pytest.raises(DataError, match="Row 0 of 'b' has an empty prompt"):
        make_prompts(empty, model, tokenizer, 5)


def test_judging() -> None:
    question = Question("a", 0, "prompt_completion", {}, "1,234", None)
    assert judge(question, "So the answer is 1234.0 km.") == ("1234.0 km", True)
    assert judge(question, "It is 1 of 1234") == ("1234", True)
    assert judge(question, "I do not know") == (None, False)
    outputs = {"print(1234)": "1234\n", "print(1 / 0)": ""}
    assert judge(question, "print(1234)", outputs.get) == ("1234", True)
    assert judge(question, "print(1 / 0)", outputs.get) == (None, False)
    assert judge(question, "It is 1234", outputs.get) == ("1234", True)
    task = {"dataset": "spell_backward", "question": "", "answer": "abc", "metadata": {}}
    spelled = Question("a", 0, "prompt_completion", {}, "abc", task)
    assert judge(spelled, "The answer is ABC.") == ("ABC", True)
    assert judge(spelled, "the abc")[1] is False  # text would match without its article; the task's scorer says no


def test_figures_by_source_and_by_domain() -> None:
    def line(source: str, right: bool, **changes: Any) -> dict[str, Any]:
        return {"source": source, "right": right, "cut_off": False, "extracted": "5", "prompt_cut": False, **changes}

    lines = [line("a", True)] * 3 + [line("a", False, cut_off=True)] + [line("b", False, extracted=None)] * 2
    lines += [line("c", True, prompt_cut=True)] * 2
    figures = summarise_answers(lines, {"a": 1, "d": 4}, {"a", "c", "d"})
    a = figures["sources"]["a"]
    assert (a["rows"], a["exact"]["value"], a["cut_off"], a["unanswerable"], a["in_domain"]) == (4, 0.75, 1, 1, True)
    assert figures["sources"]["b"]["no_answer"] == 2
    assert figures["sources"]["c"]["prompts_cut"] == 2
    assert figures["sources"]["d"] == {
        **{"rows": 0, "exact": None, "cut_off": 0, "no_answer": 0, "prompts_cut": 0},
        **{"unanswerable": 4, "in_domain": True},
    }
    assert figures["in_domain"]["macro"]["value"] == pytest.approx((0.75 + 1) / 2)
    assert figures["in_domain"]["micro"]["value"] == pytest.approx(5 / 6)
    assert figures["out_of_domain"]["macro"]["value"] == 0
    assert figures["all"]["sources"] == 3
    assert figures["all"]["macro"]["value"] == pytest.approx(1.75 / 3)
    unknown = summarise_answers(lines, {}, None)
    assert unknown["in_domain"] is None
    assert unknown["out_of_domain"] is None
    assert unknown["sources"]["a"]["in_domain"] is None


THINKING = ("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|end|>")


def with_special_tokens(tokenizer: Any) -> Any:
    from copy import deepcopy

    own = deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": list(THINKING)})
    return own


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("<think>41</think>42<|end|>", "<think>41</think>42"),
        ("[THINK]41[/THINK]42<|end|>", "[THINK]41[/THINK]42"),
        ("<|channel|>analysis<|message|>41<|end|>", "<|channel|>analysis<|message|>41"),
        ("42<|end|>", "42"),
    ],
)
def test_thought_tags_stay_if_they_are_special_tokens(tokenizer: Any, said: str, left: str) -> None:
    own = with_special_tokens(tokenizer)
    assert decode_completion(own, own(said, add_special_tokens=False)["input_ids"]) == left


def test_a_thought_opened_by_the_prompt_is_not_an_answer(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colm.lab.evaluate import judge as judging
    from colm.lab.evaluate.generate import Completion

    rows = [
        {"source": "a", "prompt": "How many? <think>", "answer": "42"},
        {"source": "a", "prompt": "How many? <think></think>", "answer": "41"},
    ]
    asked = read_questions([Dataset.from_list(rows)], source_column="source").asked
    said = tokenizer("It is 41", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(judging, "generate_batch", lambda *args, **options: [Completion(said, True)] * len(args[1]))
    found = answer_questions(model, tokenizer, asked, make_prompts(asked, model, tokenizer, 8), Generation(8, 2))
    lines = {line["index"]: line for batch in found for line in batch}
    assert (lines[0]["extracted"], lines[0]["right"], lines[0]["completion"]) == (None, False, "It is 41")
    assert (lines[1]["extracted"], lines[1]["right"]) == ("41", True)


def test_programs_in_thoughts_are_not_run() -> None:
    question = Question("a", 0, "prompt_completion", {}, "42", None)
    seen: list[str] = []

    def run(text: str) -> None:
        seen.append(text)

    assert judge(question, "<think>print(41)</think> 42", run) == ("42", True)
    assert seen == [" 42"]
