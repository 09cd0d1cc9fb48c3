"""Which rows have the same prompt, by content."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from colm.lab.data.held_rows import part_keys
from colm.lab.data.prompts import HeldPrompts, PromptRows, prompt_keys

USER = {"role": "user", "content": "2 + 3?"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}]


def said(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def own(name: str, **row: Any) -> bytes:
    return prompt_keys(name, row)[0]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("prompt_completion", {"prompt": "2 + 3?", "completion": "5"}),
        ("prompt_completion", {"prompt": " 2 + 3?\n", "completion": "five"}),
        ("prompt_completion", {"prompt": [USER], "completion": [said("5")]}),
        ("prompt_completion", {"prompt": [USER], "completion": "5"}),
        ("prompt_completion", {"prompt": "", "completion": "2 + 3?"}),  # no prompt, so plain text
        ("prompt_completion", {"prompt": None, "completion": "2 + 3?"}),
        ("instruction", {"instruction": "2 + 3?", "output": "5"}),
        ("instruction", {"instruction": "2 + 3?", "input": "", "output": "five"}),
        ("instruction", {"instruction": None, "input": "2 + 3?", "output": "five"}),
        ("messages", {"messages": [USER, said("5")]}),
        ("messages", {"messages": [USER]}),
        ("messages", {"messages": [{**USER, "name": None, "tool_calls": None}, said("5")], "tools": []}),
        ("messages", {"messages": [{**USER, "content": [{"type": "text", "text": "2 + 3?"}]}, said("5")]}),
        ("messages", {"messages": [{**USER, "id": "x7", "weight": 1}, said("5")], "tools": None}),
        ("messages", {"messages": [said("2 + 3?")]}),
        ("messages", {"messages": json.dumps([USER, said("5")]), "tools": "[]", "documents": " "}),
        ("messages", {"messages": [USER, said("5")], "chat_template_kwargs": {"enable_thinking": True}}),
        ("text", {"text": "2 + 3?"}),
    ],
)
def test_the_same_prompt_in_any_format(name: str, row: dict[str, Any]) -> None:
    assert own(name, **row) == own("text", text="2 + 3?")


def test_different_prompts_have_different_keys() -> None:
    system = {"role": "system", "content": "Add."}
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    other = {**call, "function": {"name": "add", "arguments": {"a": 3}}}
    found = [
        own("text", text="2 + 3?"),
        own("text", text="2 + 3? 5"),
        own("text", text="2 +  3?"),
        own("prompt_completion", prompt="2 + 3", completion="5"),
        own("instruction", instruction="2 + 3?", input="In words.", output="five"),
        own("messages", messages=[system, USER, said("5")]),
        own("messages", messages=[{**system, "content": "add."}, USER, said("5")]),
        own("messages", messages=[USER, said("5"), USER, said("5")]),
        own("messages", messages=[USER, said("6"), USER, said("5")]),
        own("messages", messages=[USER, said("5")], documents=[{"text": "Sums."}]),
        own("messages", messages=[USER, said("5")], tools=TOOLS),
        own(
            "messages", messages=[USER, {**said(""), "tool_calls": [call]}, {"role": "tool", "content": "5"}, said("5")]
        ),
        own(
            "messages",
            messages=[USER, {**said(""), "tool_calls": [other]}, {"role": "tool", "content": "5"}, said("5")],
        ),
    ]
    assert all(one != two for one, two in combinations(found, 2))
    again = {**call, "id": "c2"}
    turns = [
        USER,
        {**said(None), "tool_calls": [again]},
        {"role": "tool", "content": "5", "tool_call_id": "c2"},
        said(""),
    ]
    assert own("messages", messages=turns) == found[-2]
    assert own("messages", messages=[USER, said("5")], tools=json.dumps(TOOLS)) == found[-3]
    assert own("prompt_completion", prompt=[system, USER], completion=[said("")]) == found[5]


def test_numbers_and_truth_values_read_as_json_writes_them() -> None:
    assert own("text", text=5) == own("text", text="5") != own("text", text=5.0) == own("text", text="5.0")
    assert own("text", text=True) == own("text", text="true")
    assert own("text", text="\ud800") != own("text", text="?")


def test_an_unreadable_row_is_identified_by_its_whole_content() -> None:
    rows = [{"messages": [{"role": "user"}], "id": number} for number in range(2)]
    assert len({prompt_keys("messages", row) for row in rows}) == 2
    assert len(own("instruction", instruction=["a"], output="b")) == 16


def test_a_conversation_that_learns_a_held_out_prompt_in_an_earlier_turn_matches() -> None:
    short = prompt_keys("messages", {"messages": [USER, said("5")]})
    long = prompt_keys("messages", {"messages": [USER, said("5"), {**USER, "content": "And 4?"}, said("9")]})
    open_end = prompt_keys("messages", {"messages": [USER, said("5"), {**USER, "content": "And 4?"}]})
    given = prompt_keys(
        "prompt_completion",
        {"prompt": [USER, said("5"), {**USER, "content": "And 4?"}], "completion": [said("9")]},
    )
    assert HeldPrompts([short]).meet(long)
    assert HeldPrompts([long]).meet(short)
    assert HeldPrompts([long]).meet(open_end)
    assert long[0] == given[0]
    assert not HeldPrompts([given]).meet(short)  # the prompt is not learned
    few = [[USER, said("5"), {**USER, "content": f"{i}?"}, said("x")] for i in range(2)]  # with the same example
    first, second = (prompt_keys("messages", {"messages": turns}) for turns in few)
    assert not HeldPrompts([first]).meet(second)


TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": st.sampled_from(["a", "b", ""]),
        },
        optional={
            "name": st.sampled_from(["f", None]),
            "tool_calls": st.just([{"id": "1", "name": "g", "args": "{}"}]),
        },
    ),
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=6))
def test_empty_fields_from_a_table_do_not_change_a_prompt(rows: list[list[dict[str, Any]]]) -> None:
    read = Dataset.from_list([{"messages": turns, "source": "a"} for turns in rows])
    if read.features["messages"].feature == read.features["source"].__class__("null"):
        return  # no turns
    expected = [prompt_keys("messages", {"messages": turns}) for turns in rows]
    assert list(part_keys(read)) == expected
    assert all(len(key) == 16 for keys in expected for key in keys)


DIGESTS = st.sampled_from([b"a" * 16, b"a" * 15 + b"\0", b"\0" + b"a" * 15, bytes(range(16)), b"\xff" * 16])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(DIGESTS, min_size=1, max_size=3).map(tuple), max_size=12))
def test_the_rows_of_a_prompt_are_those_of_a_table(keys: list[tuple[bytes, ...]]) -> None:
    rows = PromptRows(keys)
    own = {key: [row for row, held in enumerate(keys) if held[0] == key] for key in {held[0] for held in keys}}
    for row, held in enumerate(keys):
        assert rows.asked(rows.of_row(row)) == own[held[0]]
        assert [rows.asked(key) for key in rows.taught_by(row)] == [own.get(key, []) for key in held[1:]]
        for key in held:
            assert rows.taught(key) == [
                number for number, other in enumerate(keys) for each in other[1:] if each == key
            ]
