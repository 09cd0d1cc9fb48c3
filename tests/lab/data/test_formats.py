from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.templates import CHAT

from colm.errors import ConfigError, DataError
from colm.lab.data.formats import text_of_row, tokenizer_of_batch, tokenizer_of_format
from colm.lab.data.schemas import detect_format
from colm.models import train_tiny_tokenizer, with_padding


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tiny_tokenizer(["What is 2 + 3? The answer is 5.", "Spell it backward: abc cba"] * 5)


def labelled_text(tokenizer: Any, tokens: dict[str, list[int]]) -> str:
    return str(tokenizer.decode([label for label in tokens["labels"] if label != -100]))


def test_only_the_completion_is_learned(tokenizer: Any) -> None:
    tokens = tokenizer_of_format("prompt_completion", tokenizer, 100)(
        {"prompt": "What is 2?\n", "completion": "It is 5."}
    )
    assert tokenizer.decode(tokens["input_ids"]) == "What is 2?\nIt is 5.<eos>"
    assert labelled_text(tokenizer, tokens) == "It is 5.<eos>"
    assert tokens["attention_mask"] == [1] * len(tokens["input_ids"])


def test_instruction_with_and_without_input(tokenizer: Any) -> None:
    tokenize = tokenizer_of_format("instruction", tokenizer, 100)
    plain = tokenize({"instruction": "Spell", "output": "abc"})
    assert tokenizer.decode(plain["input_ids"]) == "Spell\nabc<eos>"
    extra = tokenize({"instruction": "Spell", "input": "it", "output": "abc"})
    assert tokenizer.decode(extra["input_ids"]) == "Spell\nit\nabc<eos>"
    assert labelled_text(tokenizer, extra) == "abc<eos>"


@given(
    pairs=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=8) | st.none()), min_size=1, max_size=6),
    length=st.integers(2, 14),
    name=st.sampled_from(["prompt_completion", "instruction", "text"]),
)
def test_a_batch_is_tokenized_like_its_rows(
    pairs: list[tuple[str, str | None]], length: int, name: str, tokenizer: Any
) -> None:
    columns = {"prompt_completion": ("prompt", "completion"), "instruction": ("instruction", "output")}
    first, second = columns.get(name, ("text", "other"))
    rows = [{first: prompt, second: completion, "input": "in"} for prompt, completion in pairs]
    expected = [tokenizer_of_format(name, tokenizer, length)(row) for row in rows]
    found = tokenizer_of_batch(name, tokenizer, length)({key: [row[key] for row in rows] for key in rows[0]})
    assert found == {key: [row[key] for row in expected] for key in ("input_ids", "attention_mask", "labels")}


def test_plain_text_is_learned_in_full(tokenizer: Any) -> None:
    tokens = tokenizer_of_format("text", tokenizer, 100)({"text": "What is it?"})
    assert tokens["labels"] == tokens["input_ids"]
    assert labelled_text(tokenizer, tokens) == "What is it?<eos>"


def test_messages_label_every_assistant_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT
    rows = [("user", "What is 2?"), ("assistant", "abc"), ("user", "it?"), ("assistant", "cba")]
    messages = [{"role": role, "content": content} for role, content in rows]
    tokens = tokenizer_of_format("messages", tokenizer, 100)({"messages": messages})
    said = "<user>What is 2?\n<assistant>abc\n<user>it?\n<assistant>cba\n<eos>"
    assert tokenizer.decode(tokens["input_ids"]) == said
    assert labelled_text(tokenizer, tokens) == "abc\ncba\n<eos>"
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="tokenizer has no chat template"):
        tokenizer_of_format("messages", tokenizer, 100)


def test_missing_cells_are_empty_and_nested_ones_are_conversations_or_errors(tokenizer: Any) -> None:
    tokenize = tokenizer_of_format("prompt_completion", tokenizer, 100)
    assert set(tokenize({"prompt": "abc", "completion": None})["labels"]) == {-100}
    assert labelled_text(tokenizer, tokenize({"prompt": None, "completion": "abc"})) == "abc<eos>"
    with pytest.raises(DataError, match="A cell is a dict where text is expected"):
        tokenize({"prompt": {"a": 1}, "completion": "abc"})
    turns = {"prompt": [{"role": "user", "content": "2?"}], "completion": [{"role": "assistant", "content": "abc"}]}
    with pytest.raises(ConfigError, match="no chat template"):
        tokenize(turns)
    tokenizer.chat_template = CHAT
    assert labelled_text(tokenizer, tokenize(turns)) == "abc\n<eos>"
    opening = [{"role": "assistant", "content": "cba"}, {"role": "user", "content": "it?"}]
    tokens = tokenizer_of_format("messages", tokenizer, 100)({"messages": opening})
    assert labelled_text(tokenizer, tokens) == "<assistant>cba\n"  # no earlier text to identify the header
    tokenizer.chat_template = None


def test_a_template_that_rewrites_the_last_turn_is_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}:{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="renders the last assistant turn differently"):
        tokenizer_of_format("messages", tokenizer, 100)(
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        )
    tokenizer.chat_template = None


def test_rewritten_earlier_turns_are_unlabeled_and_logged(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] }}{% else %}cut{% endif %}/"
        "{% endfor %}"
    )
    roles = ["user", "assistant", "user", "assistant"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, ["2?", "abc", "it?", "cba"], strict=True)]
    tokens = tokenizer_of_format("messages", tokenizer, 100)({"messages": messages})
    assert labelled_text(tokenizer, tokens) == "cba/<eos>"
    assert "renders earlier assistant turns differently" in caplog.text
    tokenizer.chat_template = None


def test_rows_are_truncated(tokenizer: Any) -> None:
    tokens = tokenizer_of_format("prompt_completion", tokenizer, 3)({"prompt": "What is 2?\n", "completion": "5"})
    assert len(tokens["input_ids"]) == 3
    assert set(tokens["labels"]) == {-100}
    with pytest.raises(ConfigError, match="max_length=1 must be at least 2"):
        tokenizer_of_format("text", tokenizer, 1)


def test_detection_and_unknown_formats(tokenizer: Any) -> None:
    assert detect_format(["source", "prompt", "completion"]) == "prompt_completion"
    assert detect_format(["instruction", "input", "output"]) == "instruction"
    assert detect_format(["messages"]) == "messages"
    assert detect_format(["text", "source"]) == "text"
    with pytest.raises(DataError, match=r"prompt, completon, which match no format.*Did you mean 'completion'"):
        detect_format(["prompt", "completon"])
    with pytest.raises(ConfigError, match="format='chat' is not one of"):
        tokenizer_of_format("chat", tokenizer, 10)


def test_a_tokenizer_needs_a_pad_or_an_eos_token(tokenizer: Any) -> None:
    class Bare:
        pad_token_id = None
        eos_token_id = None

    with pytest.raises(ConfigError, match="neither a pad nor an eos token"):
        with_padding(Bare())

    class WithEos:
        pad_token_id = None
        eos_token_id = 1
        eos_token = "<eos>"
        pad_token: str | None = None

    assert with_padding(WithEos()).pad_token == "<eos>"


def test_all_text_of_a_row() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": ""}, {"role": "user", "content": "b"}]
    assert text_of_row("messages", {"messages": turns}) == "a\nb"
    assert text_of_row("instruction", {"instruction": "a", "input": "b", "output": 3}) == "a\nb\n3"
    assert text_of_row("prompt_completion", {"prompt": turns[:1], "completion": turns[2:]}) == "a\nb"
    assert text_of_row("text", {"text": None}) == ""
    assert "c" in text_of_row("messages", {"messages": [{"content": "c"}]})  # rejected later, with its row
