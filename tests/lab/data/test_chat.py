"""Conversations as templates see them: the whole row, one beginning, a learned end."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from colm.errors import DataError
from colm.lab.data.formats import (
    Rendering,
    completion_of_row,
    prompt_of_format,
    split_answer,
    tokenizer_of_batch,
    tokenizer_of_format,
)

TURN = "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n'}}{% endfor %}" + ASK.replace(
    "<|im_start|>assistant\n", "assistant: "
)
WITH_BOS = "{{ bos_token }}" + CHATML
TOOLS = (
    "{% if tools %}{{ 'TOOLS ' + (tools | tojson) }}{% endif %}{% if documents %}{{ documents[0].text }}{% endif %}"
    "{% if mood is defined %}{{ 'MOOD ' + mood }}{% endif %}{% for m in messages %}{% if 'tool_calls' in m %}"
    "{{ '<|im_start|>assistant\nCALL ' + (m.tool_calls[0].function | tojson) + '<|im_end|>' }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + ASK
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
SPECIAL = ["<pad>", "<|im_end|>", "<|im_start|>", "<s>", "<end>"]


def make_tokenizer(
    template: str | None = CHATML, *, bos: bool = False, closes: bool = False, eos: str | None = "<end>"
) -> Any:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    plain.train_from_iterator(["hello world assistant user " * 3], trainer)
    if bos or closes:
        frame = f"{'<s> ' if bos else ''}$A{' <end>' if closes else ''}"
        tokens = [(token, plain.token_to_id(token)) for token in ("<s>", "<end>")]
        plain.post_processor = processors.TemplateProcessing(single=frame, special_tokens=tokens)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|im_start|>"]})
    tokenizer.chat_template = template
    return tokenizer


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


PAIR = [say("user", "2?"), say("assistant", "5")]


def shown(tokenizer: Any, row: dict[str, Any], name: str = "messages") -> tuple[str, str]:
    """Return the text that the model reads from a row, and the text that it learns."""
    tokens = tokenizer_of_format(name, tokenizer, Rendering(500))(row)
    learned = [token for token in tokens["labels"] if token >= 0]
    assert [
        label for token, label in zip(tokens["input_ids"], tokens["labels"], strict=True) if label not in (token, -100)
    ] == []
    return tokenizer.decode(tokens["input_ids"]), tokenizer.decode(learned)


@pytest.mark.parametrize("as_text", [False, True])
def test_the_template_sees_the_whole_row(as_text: bool) -> None:
    row: dict[str, Any] = {
        "tools": [{"z": {"b": 1, "a": None}}],
        "documents": [{"text": "DOC"}],
        "chat_template_kwargs": {"mood": "calm"},
        "messages": [say("user", "2?"), say("assistant", None, tool_calls=[{"function": {"b": 1, "a": "x"}}])],
    }
    cells = {key: json.dumps(cell) if as_text else cell for key, cell in row.items()}
    read, learned = shown(make_tokenizer(TOOLS), cells)
    assert read.startswith('TOOLS [{"z": {"b": 1, "a": null}}]DOCMOOD calm')
    assert learned == 'CALL {"b": 1, "a": "x"}<|im_end|>'
    prompt = prompt_of_format("messages", make_tokenizer(TOOLS))(cells)
    assert make_tokenizer(TOOLS).decode(prompt).startswith('TOOLS [{"z"')
    pair = {**cells, "prompt": [PAIR[0]], "completion": [PAIR[1]]}
    assert shown(make_tokenizer(TOOLS), pair, "prompt_completion")[0].startswith("TOOLS")


@pytest.mark.parametrize("missing", [None, [], "", {}])
def test_missing_extras_are_none(missing: Any) -> None:
    row = {"messages": PAIR, "tools": missing, "documents": missing, "chat_template_kwargs": missing}
    if missing == {}:
        with pytest.raises(DataError, match="The column 'tools' contains a dict"):
            shown(make_tokenizer(TOOLS), row)
        row |= {"tools": None, "documents": None}
    if missing == []:
        with pytest.raises(DataError, match="The column 'chat_template_kwargs' contains a list"):
            shown(make_tokenizer(TOOLS), row)
        row["chat_template_kwargs"] = None
    assert shown(make_tokenizer(TOOLS), row) == shown(make_tokenizer(TOOLS), {"messages": PAIR})


CONTENTS = st.text(st.sampled_from("ab 1\n")) | st.sampled_from(
    ["<s>", "<s>x", "x<end>", "<end>", "<|im_end|>", "x<s>y"]
)


@given(
    turns=st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=3),
    template=st.sampled_from([CHATML, NO_END, WITH_BOS]),
    bos=st.booleans(),
    closes=st.booleans(),
)
def test_one_beginning_and_a_learned_end(turns: Any, template: str, bos: bool, closes: bool) -> None:
    tokenizer = make_tokenizer(template, bos=bos, closes=closes)
    messages = [say(role, text) for pair in turns for role, text in zip(("user", "assistant"), pair, strict=True)]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    read, learned = shown(tokenizer, {"messages": messages})
    assert read.removeprefix("<s>" if bos and template != WITH_BOS else "").startswith(rendered)
    assert not bos or (read.startswith("<s>") and not read.startswith("<s><s>"))
    assert learned.rstrip().endswith(("<end>", "<|im_end|>"))
    assert len(read) - len(rendered) <= len("<s><end>")
    ids = tokenizer_of_format("messages", tokenizer, Rendering(500))({"messages": messages})["input_ids"]
    prompt = prompt_of_format("messages", tokenizer)({"messages": messages})
    assert ids[: len(prompt)] == prompt


@given(prompt=CONTENTS, completion=CONTENTS, bos=st.booleans(), closes=st.booleans())
def test_text_with_its_own_special_tokens(prompt: str, completion: str, bos: bool, closes: bool) -> None:
    tokenizer = make_tokenizer(bos=bos, closes=closes)
    read, learned = shown(tokenizer, {"prompt": prompt, "completion": completion}, "prompt_completion")
    written = prompt if prompt.startswith("<s>") or not bos else f"<s>{prompt}"
    said = completion.removeprefix("<s>") if bos else completion
    ended = not completion or completion.rstrip().endswith("<end>")
    assert learned == (said if ended else f"{said}<end>")
    assert read == written + learned
    assert prompt_of_format("prompt_completion", tokenizer)({"prompt": prompt}) == tokenizer.encode(
        written, add_special_tokens=False
    )
    read, learned = shown(tokenizer, {"text": completion}, "text")
    whole = completion if completion.startswith("<s>") or not bos or not completion else f"<s>{completion}"
    assert read == learned == (whole if ended else f"{whole}<end>")


def test_a_missing_end_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenize = tokenizer_of_batch("messages", make_tokenizer(NO_END), Rendering(500))
    tokenize({"messages": [PAIR, PAIR]})
    assert caplog.text.count("The chat template does not end the assistant's turns") == 1
    caplog.clear()
    bare = make_tokenizer(NO_END, eos=None)
    tokenizer_of_batch("messages", bare, Rendering(500))({"messages": [PAIR, PAIR]})
    assert caplog.text.count("Neither the chat template nor the tokenizer has a token that ends a turn") == 1
    tokenizer_of_batch("prompt_completion", bare, Rendering(500))({"prompt": ["a", "b"], "completion": ["c", "d"]})
    assert caplog.text.count("has no end-of-text token, so the model does not learn to stop") == 1


def test_a_thought_opened_by_the_prompt_is_not_learned(caplog: pytest.LogCaptureFixture) -> None:
    opening = CHATML.replace(ASK, ASK.replace("assistant\n", "assistant\n<think>\n"))
    tokenizer = make_tokenizer(opening)
    assert tokenizer.apply_chat_template(PAIR[:1], tokenize=False, add_generation_prompt=True).endswith("<think>\n")
    tokenize = tokenizer_of_batch("messages", tokenizer, Rendering(500))
    tokens = tokenize({"messages": [[*PAIR, *PAIR], PAIR]})
    learned = [tokenizer.decode([token for token in labels if token >= 0]) for labels in tokens["labels"]]
    assert learned == ["5<|im_end|>\n5<|im_end|>\n", "5<|im_end|>\n"]
    assert caplog.text.count("The chat template's generation prompt has '<think>\\n'") == 1


def test_a_conversation_without_turns_has_no_tokens() -> None:
    for empty in (None, [], "", "[]"):
        assert shown(make_tokenizer(), {"messages": empty}) == ("", "")


def test_content_in_parts_is_its_text() -> None:
    parts = [say("user", [{"type": "text", "text": "2"}, {"type": "text", "text": "?"}]), say("assistant", ["5"])]
    assert shown(make_tokenizer(), {"messages": parts}) == shown(make_tokenizer(), {"messages": PAIR})
    assert shown(make_tokenizer(), {"messages": json.dumps(parts)}) == shown(make_tokenizer(), {"messages": PAIR})
    assert completion_of_row("messages", {"messages": parts}) == "5"
    assert split_answer(parts) == ([PAIR[0]], "5")


BAD: list[tuple[Any, str]] = [
    ([say("system", "s"), *PAIR], "rejects a conversation of system, user, assistant: System role not supported"),
    (
        [{"author": "human", "value": "x"}],
        "Turn 0 of a conversation has the keys author, value; each turn must have a role",
    ),
    ([say("user", "x"), say("assistant", None)], r"Turn 1 of a conversation \(assistant\) has no content"),
    ([say("user", [{"type": "image"}])], "content in parts of the types image; all parts must be text"),
    ([say("user", {"a": 1})], "The content of turn 0 of a conversation is a dict"),
    (["hello"], "Turn 0 of a conversation has 'hello'"),
    ({"role": "user"}, "A conversation is a dict"),
    ("hello", "A conversation is a text that is not JSON"),
]


@pytest.mark.parametrize(("messages", "message"), BAD)
def test_an_invalid_row_is_rejected_by_number(messages: Any, message: str) -> None:
    tokenize = tokenizer_of_batch("messages", make_tokenizer(STRICT), Rendering(500))
    with pytest.raises(DataError, match=f"Row 2: .*{message}") as error:
        tokenize({"messages": [PAIR, PAIR, messages]})
    assert "\n" not in str(error.value)


def test_arguments_that_a_row_cannot_set() -> None:
    with pytest.raises(DataError, match="chat_template_kwargs sets 'tokenize', which colm sets itself"):
        shown(make_tokenizer(), {"messages": PAIR, "chat_template_kwargs": {"tokenize": True}})


CLOSED = CHATML.replace(ASK, "") + ASK.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")


@given(st.lists(st.sampled_from(["hi", "<end>", " a ", "", "x\n"]), min_size=1, max_size=4), st.booleans())
def test_every_turn_is_learned_if_the_template_closes_conversations(answers: list[str], asks: bool) -> None:
    turns = [turn for answer in answers for turn in (say("user", "2?"), say("assistant", answer))]
    _, learned = shown(make_tokenizer(CLOSED), {"messages": [*turns, *[say("user", "more?")] * asks]})
    assert learned == "".join(f"{answer}<|im_end|>\n" for answer in answers) + "<end>" * (not asks)


def test_prompts_do_not_contain_appended_tokens() -> None:
    unnamed = make_tokenizer(None, bos=True, closes=True, eos=None)
    assert shown(unnamed, {"prompt": "2?", "completion": "5"}, "prompt_completion") == ("<s>2?5", "5")
    one = make_tokenizer(None, bos=True, eos="<s>")  # the beginning is the end
    for completion, learned in (("5", "5<s>"), ("<s>", "<s>"), ("<s>5<s>", "5<s>"), ("", "")):
        row = {"prompt": "2?", "completion": completion}
        assert shown(one, row, "prompt_completion") == (f"<s>2?{learned}", learned)


DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{{ date_string + ' ' + strftime_now( \"%H\" ) + ' ' }}" + CHATML
)


@pytest.mark.parametrize("named", [False, True])
def test_the_date_of_a_template_is_the_same_every_day(caplog: pytest.LogCaptureFixture, named: bool) -> None:
    caplog.set_level(logging.INFO)
    tokenizer = make_tokenizer(DATED)
    if named:
        tokenizer.chat_template = {"default": CHATML, "tool_use": DATED}
    tokenize = tokenizer_of_format("messages", tokenizer, Rendering(500))
    row = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]}
    if named:
        row["tools"] = [{"type": "function"}]
    text = tokenizer.decode(tokenize(row)["input_ids"])
    assert text.startswith("26 Jul 2024 00 <|im_start|>user")
    assert caplog.text.count("Rows have 26 July 2024") == 1
    assert tokenizer.decode(prompt_of_format("messages", tokenizer)(row)).startswith("26 Jul 2024 00 ")
    chosen = {**row, "chat_template_kwargs": {"date_string": "1 May 2026"}}
    assert tokenizer.decode(tokenize(chosen)["input_ids"]).startswith("1 May 2026 00 ")


def test_a_date_that_cannot_be_fixed_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer("{% set f = '%Y' %}{{ strftime_now(f) }}" + CHATML)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokenizer_of_format("messages", tokenizer, Rendering(500))({"messages": turns})
    assert caplog.text.count("tokens depend on the day") == 1
