"""From a row to token ids and labels, in each of the data formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from colm.errors import ConfigError, DataError
from colm.lab.data.chat import Chat, Turn, read_extras, read_turns
from colm.lab.data.encode import Encoder, Ids
from colm.lab.data.schemas import COLUMNS, PROMPT_COLUMNS, SYSTEM, FormatName
from colm.lab.data.settings import DataSettings
from colm.step.pool import IGNORE
from colm.step.values import text_of_value
from colm.typed import read_value

Tokens = dict[str, list[int]]

LENGTH = "length"
"""Tokens of a row before it is cut."""


class RowError(DataError):
    """A row that cannot be tokenized.

    Attributes:
        row: index among the given rows.
        reason: what is wrong with the row.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"Row {row}: {reason}")
        self.row = row
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.row, self.reason)  # as it comes from another process


@dataclass(frozen=True)
class Rendering:
    """How rows become tokens.

    Attributes:
        max_length: tokens of a row, at least 2.
        chat: render prompts with completions as conversations, with the tokenizer's chat template. Messages always
            are, and plain text never is.
        loss_on_prompt: learn the prompts too.
        too_long: a row of more tokens is ``cut`` at `max_length`; ``drop`` gives it no labels, ``refuse`` an error.

    Raises:
        ConfigError: `max_length` is below 2.
    """

    max_length: int
    chat: bool = False
    loss_on_prompt: bool = False
    too_long: Literal["cut", "drop", "refuse"] = "cut"

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(f"max_length={self.max_length} must be at least 2: one token to read and one to predict.")

    @property
    def need(self) -> str:
        """What a row without a label to learn lacks, for messages."""
        longer = " (longer rows are dropped)" if self.too_long == "drop" else ""
        return f"a labeled token within max_length={self.max_length}{longer}"


def uses_chat(choice: bool | Literal["auto"], tokenizer: Any) -> bool:
    """Return whether prompts with completions are rendered with the chat template, see `data.chat_template`.

    Raises:
        ConfigError: they should be, but the tokenizer has no template.
    """
    has = bool(getattr(tokenizer, "chat_template", None))
    if choice is True and not has:
        raise ConfigError(
            "data.chat_template=true, but the tokenizer has no chat template; use an instruction-tuned model's "
            "tokenizer, or set it to auto or false to train on the raw text."
        )
    return has if choice == "auto" else choice


def rendering_of(data: DataSettings, tokenizer: Any) -> Rendering:
    """Return how the section `data` renders rows. Raises ConfigError, see `uses_chat`."""
    return Rendering(
        max_length=data.max_length,
        chat=uses_chat(data.chat_template, tokenizer),
        loss_on_prompt=data.loss_on_prompt,
        too_long=data.too_long,
    )


def tokenizer_of_format(name: str, tokenizer: Any, rendering: Rendering) -> Callable[[Mapping[str, Any]], Tokens]:
    """Return the function that turns a row into ``input_ids``, ``attention_mask`` and ``labels``.

    It processes one row as the function from `tokenizer_of_batch` processes a batch, and raises the same `DataError`.
    """
    tokenize_batch = tokenizer_of_batch(name, tokenizer, rendering)

    def tokenize(row: Mapping[str, Any]) -> Tokens:
        try:
            tokens = tokenize_batch({column: [value] for column, value in row.items()})
        except RowError as error:
            raise DataError(error.reason) from error
        return {key: values[0] for key, values in tokens.items() if key != LENGTH}

    return tokenize


def tokenizer_of_batch(
    name: str, tokenizer: Any, rendering: Rendering
) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
    """Return the function that turns columns of rows into ``input_ids``, ``attention_mask``, ``labels`` and `LENGTH`.

    The loss covers the completion only (for messages, the assistant's turns), except for plain text. Each row has one
    beginning of text, if the tokenizer uses one, and a learned end. Tools, documents and template arguments of a
    conversation are in separate columns, see `chat.SEEN`.

    Args:
        name: a key of `COLUMNS`.
        tokenizer: a fast Hugging Face tokenizer.
        rendering: how rows become tokens. A row that loses all its labels at the maximum length has none.

    Raises:
        ConfigError: the format is unknown, or needs a chat template that the tokenizer lacks.
        RowError: a row does not fit the format, is too long, or the template rejects it; raised by the function.
    """
    read_value("format", FormatName, name)
    encoder = Encoder(tokenizer)
    chat = Chat(encoder)
    if name == "messages":
        chat.require_template()
    limit = rendering.max_length

    def encode(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Ids, Ids]]:
        found: dict[int, tuple[Ids, Ids]] = {}
        pairs: dict[int, tuple[str, str]] = {}
        for number, row in enumerate(rows):
            try:
                turns = _turns(name, row, rendering.chat)
                if turns is not None:
                    prompt, completion = turns
                    found[number] = chat.conversation([*prompt, *completion], read_extras(row), first=len(prompt))
                elif name == "text":
                    found[number] = encoder.text(_plain(row["text"]))
                else:
                    pairs[number] = _prompt_text(name, row), _plain(row[COLUMNS[name][-1]])
            except DataError as error:
                raise RowError(number, str(error)) from error
        # Batched tokenization is several times as fast.
        prompts, completions = zip(*pairs.values(), strict=True) if pairs else ((), ())
        found |= dict(zip(pairs, encoder.completions(prompts, completions), strict=True))
        return [found[number] for number in range(len(rows))]

    def tokenize_batch(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        rows = encode([dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)])
        lengths = [len(ids) for ids, _ in rows]
        if rendering.too_long == "refuse" and max(lengths, default=0) > limit:
            number = next(number for number, length in enumerate(lengths) if length > limit)
            raise RowError(
                number,
                f"it has {lengths[number]:,} tokens, more than data.max_length={limit}. Shorten it, raise "
                "data.max_length, or set data.too_long to cut or drop.",
            )
        if rendering.loss_on_prompt:
            rows = [(ids, ids) for ids, _ in rows]
        if rendering.too_long == "drop":
            rows = [(ids, labels if len(ids) <= limit else [IGNORE] * limit) for ids, labels in rows]
        return {
            "input_ids": [ids[:limit] for ids, _ in rows],
            "attention_mask": [[1] * min(length, limit) for length in lengths],
            "labels": [labels[:limit] for _, labels in rows],
            LENGTH: lengths,
        }

    return tokenize_batch


def prompt_of_format(name: str, tokenizer: Any, *, chat: bool = False) -> Callable[[Mapping[str, Any]], list[int]]:
    """Return the function that turns a row into the token ids that come before its completion in training.

    For a conversation, this is everything before the assistant's last turn, rendered with the generation prompt.

    Args:
        name: a key of `PROMPT_COLUMNS`.
        tokenizer: a fast Hugging Face tokenizer.
        chat: see `Rendering`.

    Raises:
        DataError: the format is unknown, or is ``text``, which has no prompt; raised by the function: a row does not
            fit the format, or the template rejects it.
        ConfigError: the format needs a chat template that the tokenizer lacks.
    """
    if name not in PROMPT_COLUMNS:
        raise DataError(
            f"Rows of the format {name!r} have no prompt to answer; give data with the columns prompt, instruction or "
            "messages, or map them with data.columns, such as {prompt: question, completion: answer}."
        )
    encoder = Encoder(tokenizer)
    template = Chat(encoder)
    if name == "messages":
        template.require_template()

    def prompt(row: Mapping[str, Any]) -> list[int]:
        cell = row[PROMPT_COLUMNS[name]]
        if name == "messages":
            turns = split_answer(cell)[0]
        elif isinstance(cell, list):
            turns = read_turns(cell)
        elif chat and (text := _prompt_text(name, row, system=False).strip()):
            turns = [{"role": "user", "content": text}]
        else:
            return encoder.heads([_prompt_text(name, row)])[0]
        return template.prompt([*_system(row, turns), *turns], read_extras(row))

    return prompt


def completion_of_row(name: str, row: Mapping[str, Any]) -> str | None:
    """Return the text of a row's completion in the format `name`, or None."""
    value = row.get(COLUMNS[name][-1])
    if name == "messages" or isinstance(value, list):
        return split_answer(value)[1]
    return None if value is None else _plain(value)


def split_answer(conversation: Any) -> tuple[Sequence[Turn], str | None]:
    """Return a conversation up to the assistant's last turn, and that turn's text; None if it ends with a question.

    Args:
        conversation: see `chat.read_turns`.

    >>> split_answer([{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}])
    ([{'role': 'user', 'content': '2 + 3?'}], '5')
    """
    turns = read_turns(conversation)
    if turns and turns[-1]["role"] == "assistant":
        return turns[:-1], str(turns[-1]["content"])
    return turns, None


def text_of_row(name: str, row: Mapping[str, Any]) -> str:
    """Return all text of a row, prompt and completion or every turn, one line each.

    Args:
        name: a key of `COLUMNS`.
        row: its columns.

    >>> text_of_row("prompt_completion", {"prompt": "2 + 3 = ", "completion": "5"})
    '2 + 3 = \\n5'
    """
    columns = ("instruction", "input", "output") if name == "instruction" else COLUMNS[name]
    texts: list[str] = []
    for column in columns:
        value = row.get(column)
        turns = isinstance(value, list) or column == "messages"
        texts += _turn_texts(value) if turns else [_plain(value)]
    return "\n".join(text for text in texts if text)


def _turn_texts(cell: Any) -> list[str]:
    try:
        return [str(turn["content"]) for turn in read_turns(cell)]
    except DataError:  # tokenization reports the row
        return [str(cell)]


def _turns(name: str, row: Mapping[str, Any], chat: bool) -> tuple[list[Turn], list[Turn]] | None:
    """Return the turns that are only read and the turns that are learned; None if the row is text."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if name == "messages":
        read, learned = [], read_turns(row["messages"])
    elif name == "prompt_completion" and isinstance(prompt, list) and isinstance(completion, list):
        read, learned = read_turns(prompt), read_turns(completion)
    else:
        asked = _prompt_text(name, row, system=False).strip() if chat and name != "text" else ""
        answer = _plain(row[COLUMNS[name][-1]]) if asked else ""
        if not answer:  # no prompt, or nothing to learn
            return None
        read, learned = [{"role": "user", "content": asked}], [{"role": "assistant", "content": answer}]
    turns = [*read, *learned]
    return [*(_system(row, turns) if turns else []), *read], learned


def _system(row: Mapping[str, Any], turns: Sequence[Turn]) -> list[Turn]:
    """Return the row's system prompt as a turn, unless the turns begin with their own."""
    text = _plain(row.get(SYSTEM))
    return [{"role": "system", "content": text}] if text and [turn["role"] for turn in turns[:1]] != ["system"] else []


def _prompt_text(name: str, row: Mapping[str, Any], *, system: bool = True) -> str:
    before = _plain(row.get(SYSTEM)) if system else ""
    before = f"{before}\n" if before else ""
    if name == "prompt_completion":
        return before + _plain(row["prompt"])
    instruction, extra = _plain(row["instruction"]), _plain(row.get("input"))
    return f"{before}{instruction}\n{extra}\n" if extra else f"{before}{instruction}\n"


def _plain(value: Any) -> str:
    """Return the text of a cell; a missing cell is empty."""
    try:
        return text_of_value(value) or ""
    except TypeError as error:
        raise DataError(
            f"A cell is a {type(value).__name__} where text is expected: {str(value)[:80]!r}. Give a conversation "
            "as messages, or as prompt and completion that are both lists of messages."
        ) from error
