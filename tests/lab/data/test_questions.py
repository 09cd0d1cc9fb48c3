from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.support.files import write_lines
from tests.support.templates import CHAT
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from colm.errors import ConfigError, DataError
from colm.lab.answers.gym import COLUMN
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering, completion_of_row, prompt_of_format, tokenizer_of_format
from colm.lab.data.held_rows import TextRows
from colm.lab.data.questions import Questions, detect_question_format, read_question_files, read_questions
from colm.models import train_tiny_tokenizer
from colm.step.pool import IGNORE


def ask(rows: list[dict[str, Any]], **changes: Any) -> Questions:
    return read_questions([Dataset.from_list(rows)], **{"source_column": "source", **changes})


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tiny_tokenizer(["What is 2 + 3? The answer is 5.", "Spell it backward: abc cba"] * 5)


TURNS = [{"role": "user", "content": "What is 2?"}, {"role": "assistant", "content": "abc"}]
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("prompt_completion", {"prompt": "What is 2?\n", "completion": "abc"}),
    ("prompt_completion", {"prompt": TURNS[:1], "completion": TURNS[1:]}),
    ("instruction", {"instruction": "What is 2?", "input": "it", "output": "abc"}),
    ("messages", {"messages": [*TURNS, TURNS[0], TURNS[1]]}),
]


@pytest.mark.parametrize(("name", "row"), ROWS)
@pytest.mark.parametrize("closes", [False, True])
def test_a_prompt_is_the_training_text_before_the_completion(
    tokenizer: Any, name: str, row: dict[str, Any], closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)

    if closes:
        end = ("<eos>", tokenizer.eos_token_id)
        framed = processors.TemplateProcessing(single="$A <eos>", pair="$A $B <eos>", special_tokens=[end])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
            eos_token="<eos>",
            pad_token="<pad>",
            chat_template=CHAT,
        )
        tokenizer.backend_tokenizer.post_processor = framed
    tokens = tokenizer_of_format(name, tokenizer, Rendering(500))(row)
    prompt = prompt_of_format(name, tokenizer)(row)
    assert tokens["input_ids"][: len(prompt)] == prompt
    assert tokens["labels"][len(prompt)] != IGNORE
    assert tokens["labels"][len(prompt) - 1] == IGNORE
    assert completion_of_row(name, row) == "abc"


def test_a_conversation_may_end_with_the_question(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    prompts = prompt_of_format("messages", tokenizer)
    assert prompts({"messages": TURNS[:1]}) == prompts({"messages": TURNS})
    assert prompts({"messages": TURNS[1:]}) == []
    assert completion_of_row("messages", {"messages": TURNS[:1]}) is None
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ConfigError, match="no chat template"):
        prompt_of_format("messages", tokenizer)
    with pytest.raises(DataError, match="Rows of the format 'text' have no prompt to answer"):
        prompt_of_format("text", tokenizer)


def test_expected_answers_come_from_the_column_or_the_completion() -> None:
    rows = [{"source": "a", "prompt": "?", "completion": "The answer is 5."}] * 2
    assert [question.expected for question in ask(rows).asked] == ["5", "5"]
    rows = [
        {"source": "a", "instruction": "?", "output": f"The answer is {i}.", "answer": a}
        for i, a in ((5, "7"), (6, None))
    ]
    found = ask(rows)
    assert [(question.number, question.expected, question.format) for question in found.asked] == [
        (0, "7", "instruction")
    ]
    assert found.unanswerable == {"a": 1}
    rows = [{"source": "a", "prompt": "?", "completion": text} for text in ("", "5", "word " * 100)]
    assert ask(rows).unanswerable == {"a": 2}
    numbers = [{"source": "a", "prompt": "?", "answer": 5}, {"source": "b", "prompt": "?", "answer": None}]
    assert [question.expected for question in ask(numbers).asked] == ["5"]
    assert ask(numbers).unanswerable == {"a": 0, "b": 1}


def test_programs_run_only_on_request() -> None:
    rows = [{"source": "a", "prompt": "?", "completion": "print(2 + 3)"}] * 2
    run = {"print(2 + 3)": "5\n"}.get
    assert [question.expected for question in ask(rows, run=run).asked] == ["5", "5"]
    with pytest.raises(DataError, match="None of the 2 rows has a final answer"):
        ask(rows, run=lambda _: "")


def test_a_limit_draws_the_same_rows_regardless_of_other_sources() -> None:
    rows = [{"source": "ab"[i % 2], "prompt": f"{i}?", "answer": str(i)} for i in range(40)]
    drawn = ask(rows, limit=5).asked
    assert [question.source for question in drawn].count("a") == 5
    assert [question.number for question in drawn] == sorted({question.number for question in drawn})
    assert drawn == ask(rows, limit=5).asked
    assert drawn != ask(rows, limit=5, seed=1).asked
    alone = ask([row for row in rows if row["source"] == "a"], limit=5).asked
    assert [q.expected for q in alone] == [q.expected for q in drawn if q.source == "a"]
    assert len(ask(rows, limit=50).asked) == 40


def test_the_demo_carries_what_its_scorers_need_and_trains_as_before(tokenizer: Any) -> None:
    rows = demo_rows(100, 0, held_out=1)
    asked = read_questions([rows], source_column="source").asked
    assert len(asked) == 9
    assert all(question.task is not None and question.task["answer"] == question.expected for question in asked)
    row = rows[0]
    tokenize = tokenizer_of_format("prompt_completion", tokenizer, Rendering(500))
    assert tokenize(row) == tokenize({key: row[key] for key in ("prompt", "completion")})
    assert COLUMN in rows.column_names


def test_plain_text_is_skipped_and_named(caplog: pytest.LogCaptureFixture) -> None:
    plain = Dataset.from_list([{"source": "books", "text": "Once upon a time."}] * 3)
    stored = TextRows("text", [{"source": "web", "text": "A page."}])
    asked = TextRows("prompt_completion", [{"source": "sums", "prompt": "1 + 1 = ", "completion": "2"}])
    found = read_questions([plain, asked, stored], source_column="source")
    assert found == read_questions([asked], source_column="source")
    assert [(question.source, question.number) for question in found.asked] == [("sums", 0)]
    assert "no prompt to answer: books (3 rows), web (1 rows)." in caplog.text
    with pytest.raises(DataError, match="only text, which has no prompt to answer"):
        read_questions([plain, stored], source_column="source")


def test_files_without_a_source_column_are_sources(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "sums.jsonl", [{"question": "2 + 3?", "solution": "5"}])
    second = write_lines(tmp_path / "other.jsonl", [{"prompt": "?", "completion": "x", "kind": "named"}])
    columns = {"prompt": "question", "completion": "solution"}
    parts = read_question_files([first, second], columns, "kind")
    found = read_questions(parts, source_column="kind").asked
    assert [(question.source, question.number, question.expected) for question in found] == [
        ("sums", 0, "5"),
        ("named", 1, "x"),
    ]
    with pytest.raises(DataError, match="is given twice"):
        read_question_files([first, first], {}, "source")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["text", "source"], "text, source: only text, which has no prompt to answer"),
        (["prompt"], "no question with its answer"),
        (["promt", "answer"], "Did you mean 'prompt'"),
        (["question", "solution"], "map the columns with data.columns={prompt: question, answer: solution}"),
    ],
)
def test_wrong_columns(columns: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        detect_question_format(columns)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([{"type": "text", "text": "4"}, {"type": "text", "text": "2"}], "42"),
        (42, "42"),
        (True, "true"),
        (0.5, "0.5"),
        (" 42 ", "42"),
    ],
)
def test_answers_of_every_type_are_text(answer: object, expected: str) -> None:
    (question,) = ask([{"source": "a", "prompt": "?", "answer": answer}]).asked
    assert question.expected == expected


def test_completions_in_parts_and_with_thoughts_have_an_answer() -> None:
    said = [{"type": "text", "text": "<think>The answer is 41.</think>"}, {"type": "text", "text": "The answer is 42."}]
    turns = [{"role": "user", "content": [{"type": "text", "text": "?"}]}, {"role": "assistant", "content": said}]
    (question,) = ask([{"source": "a", "messages": turns}]).asked
    assert question.expected == "42"


def test_invalid_questions() -> None:
    with pytest.raises(DataError, match="None of the 2 rows has a final answer to compare with"):
        ask([{"source": "a", "prompt": "?", "answer": None}, {"source": "a", "prompt": "?", "answer": ""}])
    with pytest.raises(DataError, match="Row 0 has a list as its answer"):
        ask([{"source": "a", "prompt": "?", "answer": ["5"]}])
    with pytest.raises(DataError, match="Row 1 has no source: its 'source' is ' '"):
        ask([{"source": "a", "prompt": "?", "answer": "5"}, {"source": " ", "prompt": "?", "answer": "5"}])
    with pytest.raises(DataError, match="format='text' has no prompt to answer; choose one of prompt_completion"):
        ask([{"source": "a", "text": "?"}], format_name="text")
