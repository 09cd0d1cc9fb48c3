"""`colm chat`: the answers are those of `colm eval`'s prompts, line by line, with the turns so far."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run

from colm.errors import DataError
from colm.lab.cli import main
from colm.lab.data.formats import prompt_of_format
from colm.lab.evaluate.generate import end_tokens, generate_batch
from colm.lab.evaluate.talk import Conversation
from colm.lab.run.target import find_target, load_target

SHORT = ["--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    assert main(["train", write_run(folder), "training.max_steps=3"]) == 0
    return folder / "run"


def talk(monkeypatch: pytest.MonkeyPatch, text: str, *words: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["chat", *words, *SHORT])


def expected(run: Path, row: dict[str, Any], name: str, *, chat: bool = False) -> str:
    """Return the greedy answer to a row, rendered as in training."""
    model, tokenizer = load_target(find_target(str(run), []))
    ids = prompt_of_format(name, tokenizer, chat=chat)(row)
    ends = end_tokens(model, tokenizer)
    (found,) = generate_batch(model, [ids], pad=tokenizer.pad_token_id, ends=ends, max_new_tokens=8)
    text: str = tokenizer.decode(found.ids, skip_special_tokens=True)
    return text


def test_a_piped_line_is_answered_as_in_training(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert talk(monkeypatch, "3 + 1 =\n", str(run)) == 0
    assert capsys.readouterr().out == expected(run, {"prompt": "3 + 1 ="}, "prompt_completion", chat=True) + "\n"
    assert talk(monkeypatch, "3 + 1 =", str(run), "--system", "Count.") == 0
    row = {"prompt": "3 + 1 =", "system": "Count."}
    assert capsys.readouterr().out == expected(run, row, "prompt_completion", chat=True) + "\n"


def test_turns_are_remembered_until_a_reset(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"role": "user", "content": "3 + 1 ="}
    said = {"role": "assistant", "content": expected(run, {"messages": [first]}, "messages")}
    second = {"role": "user", "content": "Rare 7?"}
    lines = "3 + 1 =\n\nRare 7?\n/reset\nRare 7?\n/reste\n/exit\nnever read\n"
    assert talk(monkeypatch, lines, str(run)) == 0
    shown = capsys.readouterr()
    answers = [
        said["content"],
        expected(run, {"messages": [first, said, second]}, "messages"),
        expected(run, {"messages": [second]}, "messages"),
    ]
    assert shown.out == "".join(f"{answer}\n" for answer in answers)
    assert shown.err.count("There is no command /reste: /reset forgets the conversation") == 1


def test_without_the_template_each_line_is_raw_text(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert talk(monkeypatch, "3 + 1 =\nRare 7?\n", str(run), "data.chat_template=false") == 0
    answers = [expected(run, {"prompt": text}, "prompt_completion") for text in ("3 + 1 =", "Rare 7?")]
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("instruction", {"instruction": "3 + 1 =", "output": "4"}),
        ("messages", {"messages": [{"role": "user", "content": "3 + 1 ="}, {"role": "assistant", "content": "4"}]}),
    ],
)
def test_a_message_is_rendered_in_the_format_that_training_found(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, Any]
) -> None:
    held = run / "held_out.jsonl"
    before = held.read_text()
    held.write_text(json.dumps({"format": name, "row": {"source": "a", **row}}) + "\n")
    asked: list[list[int]] = []
    monkeypatch.setattr(Conversation, "answer", lambda self, text, streamer: asked.append(self._prompt(_turn(text))))
    assert talk(monkeypatch, "3 + 1 =\n", str(run), "data.chat_template=false") == 0
    held.write_text(before)
    tokenizer = load_target(find_target(str(run), []))[1]
    assert asked == [prompt_of_format(name, tokenizer)(row)]


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_line_in_another_encoding_is_no_reason_to_stop(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert main(["chat", str(run), *SHORT]) == 0


def test_sampling_draws_anew_for_each_answer(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for _ in range(2):
        assert talk(monkeypatch, "Hi\n/reset\nHi\n", str(run), "--sample", "2", "--seed", "5") == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    greedy = expected(run, {"prompt": "Hi"}, "prompt_completion", chat=True)
    assert shown[0] != f"{greedy}\n{greedy}\n"


def test_a_terminal_is_asked_line_by_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(["3 + 1 ="])

    def read(prompt: str) -> str:
        assert prompt == "> "
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None  # Ctrl-D

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", str(run), *SHORT]) == 0
    shown = capsys.readouterr()
    assert shown.out == expected(run, {"prompt": "3 + 1 ="}, "prompt_completion", chat=True) + "\n\n"
    assert "/exit or Ctrl-D ends it" in shown.err


def test_what_does_not_fit_is_forgotten_from_the_start(run: Path) -> None:
    model, tokenizer = load_target(find_target(str(run), []))
    seen: list[list[str]] = []

    def prompt(turns: list[dict[str, str]]) -> list[int]:
        seen.append([turn["content"][0] for turn in turns if turn["role"] == "user"])
        return [1] * sum(len(turn["content"]) for turn in turns if turn["role"] == "user")

    room = model.config.max_position_embeddings - 2
    conversation = Conversation(model, tokenizer, prompt, remembers=True, max_new_tokens=2)
    conversation.answer("a" * (room - 1))
    conversation.answer("b")
    conversation.answer("c")
    assert seen == [["a"], ["a", "b"], ["a", "b", "c"], ["b", "c"]]  # the third message needed the first one's room
    assert len(conversation.turns) == 4
    with pytest.raises(DataError, match="but the model's context has room for"):
        conversation.answer("d" * (room + 1))
    assert len(conversation.turns) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sample", "-1"], "--sample"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["selection.keep=0.5"], "no effect"),
    ],
)
def test_bad_options(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["chat", str(run), *words]) == 2
    assert message in capsys.readouterr().err
    assert main(["chat", str(run.parent)]) == 2
    assert "neither the output folder of colm train" in capsys.readouterr().err
