"""Data as people have it is read without a mapping, or refused in one line that says what to set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.errors import DataError
from colm.lab.data.chat import read_turns
from colm.lab.data.formats import Rendering
from colm.lab.data.load import read_mixture
from colm.lab.data.schemas import ANSWERED, ASKED, COLUMNS, CONVERSATIONS, is_row, recognize_columns
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.data.tokenize import tokenize_counted
from colm.models import train_tiny_tokenizer

TOKENIZER = train_tiny_tokenizer(["user assistant system What is 2 + 3? It is 5. Be brief. Add 2 and 3:"] * 5)
SUM = "user:\nAdd\n2 and 3:\nassistant:\n5<eos>"
PAIR = "user:\nWhat is 2 + 3?\nassistant:\nIt is 5.<eos>"
BRIEF = f"system:\nBe brief.\n{PAIR}"

SHAREGPT = [{"from": "human", "value": "What is 2 + 3?"}, {"from": "gpt", "value": "It is 5."}]
ROLES = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "It is 5."}]

SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"conversations": SHAREGPT}, PAIR),
    ({"conversation": [{**turn, "weight": None} for turn in SHAREGPT]}, PAIR),
    ({"id": "1", "conversations": [{**SHAREGPT[0], "from": "User"}, {**SHAREGPT[1], "from": "chatgpt"}]}, PAIR),
    ({"system": "Be brief.", "conversations": SHAREGPT}, BRIEF),
    ({"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]}, BRIEF),
    ({"conversation": ROLES}, PAIR),
    ({"conversations": json.dumps(ROLES)}, PAIR),
    ({"question": "What is 2 + 3?", "answer": "It is 5."}, PAIR),
    ({"Question": "What is 2 + 3?", "Answer": "It is 5."}, PAIR),
    ({"query": "What is 2 + 3?", "response": "It is 5."}, PAIR),
    ({"query": "What is 2 + 3?", "response": "It is 5.", "type": "sum"}, PAIR),
    ({"prompt": "What is 2 + 3?", "response": "It is 5."}, PAIR),
    ({"system_prompt": "Be brief.", "question": "What is 2 + 3?", "response": "It is 5."}, BRIEF),
    ({"instruction": "What is 2 + 3?", "response": "It is 5."}, PAIR),
    ({"instruction": "Add", "context": "2 and 3:", "response": "5", "category": "qa"}, SUM),
    ({"instruction": "Add", "input": "2 and 3:", "output": "5"}, SUM),
    ({"input": "What is 2 + 3?", "output": "It is 5."}, PAIR),
    ({"Input": "What is 2 + 3?", "Output": "It is 5."}, PAIR),
    ({"question": "Add", "context": "2 and 3:", "answer": "5"}, SUM),
    ({"prompt": "What is 2 + 3?\n", "completion": "It is 5."}, PAIR),
    ({"messages": ROLES}, PAIR),
]  # fmt: skip


def write(path: Path, *rows: Any) -> MixtureEntry:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return MixtureEntry(str(path))


def texts(entries: list[MixtureEntry], rendering: Rendering | None = None) -> list[str]:
    mixture = read_mixture(DataSettings(), entries, seed=0)
    rendering = rendering or Rendering(200, chat=True)
    options: dict[str, Any] = {"format_name": "auto", "rendering": rendering, "source_column": "source"}
    tokens = tokenize_counted(mixture.train, TOKENIZER, **options).tokens
    assert all(any(label >= 0 for label in labels) for labels in tokens["labels"])
    return [TOKENIZER.decode(ids) for ids in tokens["input_ids"]]


@pytest.mark.parametrize(("row", "text"), SCHEMAS)
def test_schemas_need_no_mapping(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    assert texts([write(tmp_path / "a.jsonl", row, row)]) == [text, text]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "human"}]}, r"Turn 0 of a conversation \(human\) has no content"),
        (
            {"conversations": [{"value": "2?"}]},
            "Turn 0 of a conversation has the keys value; each turn must have a role",
        ),
        ({"conversation": [*ROLES, "5"]}, "Turn 2 of a conversation has '5'"),
        ({"conversations": [{"from": "function_call", "value": "{add"}]}, "is a text that is not JSON"),
        ({"question": ["2?"], "answer": "5"}, "A cell is a list where text is expected"),
        ({"query": "2?", "response": {"text": "5"}}, "A cell is a dict where text is expected"),
        ({"prompt": "2?", "response": ["5"]}, "A cell is a list where text is expected"),
        ({"instruction": {"a": 1}, "response": "5"}, "A cell is a dict where text is expected"),
        (
            {"instruction": "Add", "context": ["2"], "response": "5", "category": "qa"},
            "A cell is a list where text is expected",
        ),
        ({"input": "2?", "output": {"a": 5}}, "A cell is a dict where text is expected"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    whole = next(each for each, _ in SCHEMAS if list(each) == list(row))
    with pytest.raises(DataError, match=message) as error:
        texts([write(tmp_path / "a.jsonl", whole, row)])
    assert "a.jsonl, line 2" in str(error.value)
    assert "\n" not in str(error.value)


def test_preferences_and_choices_need_a_decision(tmp_path: Path) -> None:
    rows = [
        ({"prompt": "2?", "chosen": "5", "rejected": "4"}, "{completion: chosen}"),
        ({"prompt": "2?", "chosen": ROLES, "rejected": ROLES}, "{messages: chosen}"),
        ({"chosen": "Human: 2? Assistant: 5", "rejected": "x"}, "{text: chosen}"),
    ]
    for number, (row, mapping) in enumerate(rows):
        entry = write(tmp_path / f"{number}.jsonl", row)
        with pytest.raises(DataError, match="preferences") as error:
            texts([entry])
        assert mapping in str(error.value)
        wanted, column = mapping.strip("{}").split(": ")
        columns = {wanted: column}
        assert len(texts([MixtureEntry(entry.path, columns=columns)])) == 1
    with pytest.raises(DataError, match="question with its choices.*data.template"):
        texts([write(tmp_path / "c.jsonl", {"question": "2?", "choices": ["4", "5"], "answer": 1})])
    with pytest.raises(DataError, match=r"answer or solution could be the completion.*\{completion: answer\}|response"):
        texts([write(tmp_path / "d.jsonl", {"question": "2?", "solution": "2 + 3 is 5", "answer": "5"})])


def test_every_file_is_checked_and_named(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", {"prompt": "2?", "completon": "5"})
    good = write(tmp_path / "good.jsonl", {"prompt": "2?", "completion": "5"})
    missing = MixtureEntry(str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError) as error:
        texts([bad, good, missing])
    said = str(error.value)
    assert said.startswith("2 files cannot be used. (1) mixture[0]: ")
    assert "bad.jsonl: The data has the columns prompt, completon, which match" in said  # not the source that colm adds
    assert "(2) mixture[2]: There is no file" in said
    first = write(tmp_path / "first.jsonl", {"messages": [{"role": "user"}]})
    second = write(tmp_path / "second.jsonl", {"messages": "hello"})
    with pytest.raises(
        DataError, match=r"2 files cannot be used\. \(1\) .*first.jsonl, line 1.*\(2\) .*second.jsonl, line 1"
    ):
        texts([first, second])


@pytest.mark.parametrize("wanted", ["prompt", "completion", "messages", "text", "instruction", "output"])
@pytest.mark.parametrize("cell", [["a"], {"a": 1}, [1, 2], 5, "text", True, [{"a": 1}], [["a"]]])
def test_a_mapping_to_the_wrong_shape_is_one_line(tmp_path: Path, wanted: str, cell: Any) -> None:
    rest = {"prompt": "completion", "completion": "prompt", "instruction": "output", "output": "instruction"}
    row = {"field": cell, **({rest[wanted]: "text"} if wanted in rest else {})}
    entry = MixtureEntry(write(tmp_path / "a.jsonl", row).path, columns={wanted: "field"})
    said = ""
    try:
        assert len(texts([entry])) == 1
    except DataError as error:
        said = str(error)
    assert bool(said) == (not isinstance(cell, str | int) or wanted == "messages")
    assert ("a.jsonl" in said) == bool(said)
    assert "\n" not in said


def test_tabs_semicolons_and_rows_under_a_key(tmp_path: Path) -> None:
    files = {
        "a.tsv": 'question\tanswer\n"What is 2 + 3?"\tIt is 5.\n',
        "b.csv": "question;answer\nWhat is 2 + 3?;It is 5.\n",
        "c.csv": "question\tanswer\nWhat is 2 + 3?\tIt is 5.\n",
        "d.csv": '\nquestion,answer\n"What is 2 + 3?",It is 5.\n',
        "e.json": json.dumps({"version": 1, "data": [{"question": "What is 2 + 3?", "answer": "It is 5."}]}, indent=1),
        "f.json": json.dumps({"conversations": SHAREGPT}, indent=1),
        "g.json": json.dumps({"rows": [{"conversations": SHAREGPT}], "about": {"rows": 1}}),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert texts([MixtureEntry(str(tmp_path / name))]) == [PAIR], name
    (tmp_path / "h.json").write_text('{"data": [\n{"question": "2?", "answer": "5"},\n{"question": "2?" "answer"}]}')
    with pytest.raises(DataError, match="h.json, line 3, is not valid JSON"):
        texts([MixtureEntry(str(tmp_path / "h.json"))])
    (tmp_path / "i.csv").write_text("question;answer\n2?;5;6\n")
    with pytest.raises(DataError, match=r"i.csv, line 2, has 3 cells, but the header has 2 \(separator ';'\)"):
        texts([MixtureEntry(str(tmp_path / "i.csv"))])


def test_tool_calls_of_sharegpt_reach_the_template(tmp_path: Path) -> None:
    kept = TOKENIZER.chat_template
    TOKENIZER.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{{ m['tool_calls'][0]['function']['name'] if m['tool_calls'] else m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' else '' }}\n{% endfor %}"
        "{{ 'assistant:' if add_generation_prompt else '' }}"
    )
    call = {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 2}})}
    turns = [SHAREGPT[0], call, {"from": "observation", "value": "5"}, SHAREGPT[1]]
    try:
        said = texts([write(tmp_path / "a.jsonl", {"conversations": turns})])
    finally:
        TOKENIZER.chat_template = kept
    assert said == ["user:What is 2 + 3?\nassistant:add<eos>\ntool:5\nassistant:It is 5.<eos>\n"]


def test_roles_are_known_in_any_case() -> None:
    roles = ("System", "USER", "Human", "Assistant", "Tool", "Observation")
    turns = read_turns([{"role": role, "content": "5"} for role in roles])
    assert [turn["role"] for turn in turns] == ["system", "user", "user", "assistant", "tool", "tool"]


def test_rows_too_long_are_cut_dropped_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = write(tmp_path / "a.jsonl", *[{"question": "2?", "answer": "5 " * n} for n in (1, 100)])
    assert len(texts([entry], Rendering(20))) == 2
    assert "1 of 2 rows have more than data.max_length=20 tokens and are cut" in caplog.text
    assert len(texts([entry], Rendering(20, too_long="drop"))) == 1
    assert "no labeled token within max_length=20 (longer rows are dropped)" in caplog.text
    with pytest.raises(DataError, match=r"a.jsonl, line 2: it has \d+ tokens, more than data.max_length=20"):
        texts([entry], Rendering(20, too_long="refuse"))


def test_rows_that_differ_in_rendering_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [
        write(tmp_path / "chat.jsonl", {"conversations": SHAREGPT}),
        write(tmp_path / "pair.jsonl", {"question": "2?", "answer": "5"}),
    ]
    texts(entries)
    assert "Rows differ" not in caplog.text
    texts(entries, Rendering(50))
    assert "chat.jsonl are rendered with the chat template" in caplog.text
    caplog.clear()
    texts([*entries, write(tmp_path / "plain.jsonl", {"text": "It is 5."})])
    assert "plain.jsonl are raw text" in caplog.text


@given(
    st.lists(
        st.sampled_from([*ASKED, *ANSWERED, *CONVERSATIONS, "text", "id", "Prompt", "context", "system_prompt"]),
        unique=True,
    )
)
def test_renames_are_consistent(columns: list[str]) -> None:
    first = {name: ROLES if name in CONVERSATIONS else "text" for name in columns}
    try:
        found = recognize_columns(columns, first)
    except DataError:
        return
    assert set(found.values()) <= set(columns)
    assert not set(found) & set(columns)  # nothing is renamed to a column that exists
    assert len(set(found.values())) == len(found)
    renamed = {next((new for new, old in found.items() if old == name), name): value for name, value in first.items()}
    exact = any(all(name in columns for name in needed) for needed in COLUMNS.values())
    assert is_row(first) == (exact or is_row(renamed))
