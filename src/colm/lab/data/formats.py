"""From a row to token ids and labels, for the four supported data formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from colm.errors import ConfigError, DataError
from colm.lab.data.chat import Chat, Turn, read_extras, read_turns
from colm.lab.data.encode import Encoder, Ids
from colm.lab.data.schemas import COLUMNS, PROMPT_COLUMNS, FormatName
from colm.step.values import text_of_value
from colm.typed import read_value

Tokens = dict[str, list[int]]


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


def tokenizer_of_format(name: str, tokenizer: Any, max_length: int) -> Callable[[Mapping[str, Any]], Tokens]:
    """Return the function that turns a row into ``input_ids``, ``attention_mask`` and ``labels``.

    It processes one row as the function from `tokenizer_of_batch` processes a batch, and raises the same `DataError`.
    """
    tokenize_batch = tokenizer_of_batch(name, tokenizer, max_length)

    def tokenize(row: Mapping[str, Any]) -> Tokens:
        try:
            tokens = tokenize_batch({column: [value] for column, value in row.items()})
        except RowError as error:
            raise DataError(error.reason) from error
        return {key: values[0] for key, values in tokens.items()}

    return tokenize


def tokenizer_of_batch(
    name: str, tokenizer: Any, max_length: int
) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[list[int]]]]:
    """Return the function that turns columns of rows into ``input_ids``, ``attention_mask`` and ``labels``.

    The loss covers the completion only (for messages, the assistant's turns), except for plain text. Each row has one
    beginning of text, if the tokenizer uses one, and a learned end. Rows are truncated at `max_length` tokens; a row
    that loses all its labels this way has none. Tools, documents and template arguments of a conversation are in
    separate columns, see `chat.SEEN`.

    Args:
        name: a key of `COLUMNS`.
        tokenizer: a fast Hugging Face tokenizer.
        max_length: tokens, at least 2.

    Raises:
        ConfigError: the format is unknown, or needs a chat template that the tokenizer lacks.
        RowError: a row does not fit the format, or the template rejects it; raised by the function.
    """
    read_value("format", FormatName, name)
    if max_length < 2:
        raise ConfigError(f"max_length={max_length} must be at least 2: one token to read and one to predict.")
    encoder = Encoder(tokenizer)
    chat = Chat(encoder)
    if name == "messages":
        chat.require_template()

    def encode(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Ids, Ids]]:
        found: dict[int, tuple[Ids, Ids]] = {}
        pairs: dict[int, tuple[str, str]] = {}
        for number, row in enumerate(rows):
            try:
                turns = _turns(name, row)
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

    def tokenize_batch(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[list[int]]]:
        rows = encode([dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)])
        ids = [row[:max_length] for row, _ in rows]
        return {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": [labels[:max_length] for _, labels in rows],
        }

    return tokenize_batch


def prompt_of_format(name: str, tokenizer: Any) -> Callable[[Mapping[str, Any]], list[int]]:
    """Return the function that turns a row into the token ids that come before its completion in training.

    For messages, this is everything before the assistant's last turn, rendered with the generation prompt.

    Args:
        name: a key of `PROMPT_COLUMNS`.
        tokenizer: a fast Hugging Face tokenizer.

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
    chat = Chat(encoder)
    if name == "messages":
        chat.require_template()

    def prompt(row: Mapping[str, Any]) -> list[int]:
        cell = row[PROMPT_COLUMNS[name]]
        if name == "messages":
            turns, _ = split_answer(cell)
        elif isinstance(cell, list):
            turns = read_turns(cell)
        else:
            return encoder.heads([_prompt_text(name, row)])[0]
        return chat.prompt(turns, read_extras(row))

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


def _turns(name: str, row: Mapping[str, Any]) -> tuple[list[Turn], list[Turn]] | None:
    """Return the turns that are only read and the turns that are learned; None if the row is text."""
    if name == "messages":
        return [], read_turns(row["messages"])
    prompt, completion = row.get("prompt"), row.get("completion")
    if name == "prompt_completion" and isinstance(prompt, list) and isinstance(completion, list):
        return read_turns(prompt), read_turns(completion)
    return None


def _prompt_text(name: str, row: Mapping[str, Any]) -> str:
    if name == "prompt_completion":
        return _plain(row["prompt"])
    instruction, extra = _plain(row["instruction"]), _plain(row.get("input"))
    return f"{instruction}\n{extra}\n" if extra else f"{instruction}\n"


def _plain(value: Any) -> str:
    """Return the text of a cell; a missing cell is empty."""
    try:
        return text_of_value(value) or ""
    except TypeError as error:
        raise DataError(
            f"A cell is a {type(value).__name__} where text is expected: {str(value)[:80]!r}. Give a conversation "
            "as messages, or as prompt and completion that are both lists of messages."
        ) from error
