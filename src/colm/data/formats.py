"""From a row of text to token ids and labels, in the four formats that data sets come in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from colm.batch import IGNORE
from colm.errors import ConfigError, DataError, suggest

logger = logging.getLogger(__name__)

Tokens = dict[str, list[int]]

COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format needs; ``instruction`` may also have ``input``."""

PROMPT_COLUMNS = {"prompt_completion": "prompt", "messages": "messages", "instruction": "instruction"}
"""The column that a model is asked with; ``text`` has none."""


def detect_format(columns: Sequence[str]) -> str:
    """Return the format whose columns are all there.

    Raises:
        DataError: none fits; the message lists the columns and the formats.
    """
    for name, needed in COLUMNS.items():
        if all(column in columns for column in needed):
            return name
    formats = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in COLUMNS.items())
    wanted = [column for needed in COLUMNS.values() for column in needed]
    hints = "".join(suggest(column, wanted) for column in columns)
    raise DataError(
        f"The data has the columns {', '.join(columns)}, which fit no format ({formats}).{hints} "
        "Rename columns in the data, or map them with data.columns, such as {prompt: question, completion: answer}."
    )


def choose_format(name: str, columns: Sequence[str]) -> str:
    """Return the format to read columns by: `name`, or the one that fits where that is ``auto``.

    Raises:
        DataError: columns that the format needs are missing.
    """
    if name == "auto":
        return detect_format(columns)
    missing = [column for column in COLUMNS.get(name, ()) if column not in columns]
    if missing:
        raise DataError(
            f"data.format={name!r} needs the column {missing[0]!r}, which the data does not have."
            f"{suggest(missing[0], columns)} It has: {', '.join(columns)}. Map it with "
            "data.columns, or set data.format to auto."
        )
    return name


def tokenizer_of_format(name: str, tokenizer: Any, max_length: int) -> Callable[[Mapping[str, Any]], Tokens]:
    """Return the function that turns a row into ``input_ids``, ``attention_mask`` and ``labels``.

    The loss is on the completion only (for messages, on what the assistant says), except for plain
    text. Rows are cut at `max_length` tokens; a row that loses all its labels that way has none.

    Args:
        name: a key of `COLUMNS`.
        tokenizer: a fast Hugging Face tokenizer.
        max_length: tokens, at least 2.

    Raises:
        ConfigError: the format is unknown, or needs a chat template that the tokenizer lacks.
    """
    formats: dict[str, Callable[[Mapping[str, Any]], tuple[list[int], list[int]]]] = {
        "prompt_completion": lambda row: _prompt_completion(tokenizer, row),
        "instruction": lambda row: _completion(tokenizer, _instruction_prompt(row), _plain(row["output"])),
        "messages": lambda row: _messages(tokenizer, row["messages"]),
        "text": lambda row: _text(tokenizer, _plain(row["text"])),
    }
    if name not in formats:
        raise ConfigError(f"format={name!r} is not one of {', '.join(formats)} or auto.{suggest(name, formats)}")
    if max_length < 2:
        raise ConfigError(f"max_length={max_length} must be at least 2 tokens, one to read and one to predict.")
    if name == "messages":
        _require_template(tokenizer)

    def tokenize(row: Mapping[str, Any]) -> Tokens:
        ids, labels = formats[name](row)
        ids, labels = ids[:max_length], labels[:max_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    return tokenize


def tokenizer_of_batch(
    name: str, tokenizer: Any, max_length: int
) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[list[int]]]]:
    """Return the function that does to columns of rows what `tokenizer_of_format`'s does to a row.

    Prompts and completions that are plain text go through the tokenizer together, which is several times as fast.
    Raises as `tokenizer_of_format`.
    """
    tokenize = tokenizer_of_format(name, tokenizer, max_length)
    plain = name in ("prompt_completion", "instruction") and tokenizer.is_fast

    def tokenize_batch(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[list[int]]]:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if not plain or any(isinstance(row.get("prompt"), list) for row in rows):
            found = [tokenize(row) for row in rows]
            return {key: [row[key] for row in found] for key in ("input_ids", "attention_mask", "labels")}
        asked = [_instruction_prompt(row) if name == "instruction" else _plain(row["prompt"]) for row in rows]
        said = [_plain(row["output" if name == "instruction" else "completion"]) for row in rows]
        heads = tokenizer(asked, add_special_tokens=True)["input_ids"]
        tails = tokenizer(said, add_special_tokens=False)["input_ids"]
        pairs = [
            _join(tokenizer, head, tail if text else []) for head, tail, text in zip(heads, tails, said, strict=True)
        ]
        ids = [pair[0][:max_length] for pair in pairs]
        return {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "labels": [pair[1][:max_length] for pair in pairs],
        }

    return tokenize_batch


def prompt_of_format(name: str, tokenizer: Any) -> Callable[[Mapping[str, Any]], list[int]]:
    """Return the function that turns a row into the token ids that come before its completion in training.

    For messages that is all before the last turn of the assistant, rendered with the generation prompt.

    Args:
        name: a key of `PROMPT_COLUMNS`.
        tokenizer: a fast Hugging Face tokenizer.

    Raises:
        DataError: the format is ``text``, which has no prompt, or is unknown.
        ConfigError: it needs a chat template that the tokenizer lacks.
    """
    prompts: dict[str, Callable[[Mapping[str, Any]], list[int]]] = {
        "prompt_completion": lambda row: _prompt(tokenizer, row["prompt"]),
        "instruction": lambda row: _head(tokenizer, _instruction_prompt(row)),
        "messages": lambda row: _turns_prompt(tokenizer, split_answer(row["messages"])[0]),
    }
    if name not in prompts:
        raise DataError(
            f"Rows of the format {name!r} have no prompt to answer; give data with the columns prompt, instruction or "
            "messages, or map them with data.columns, such as {prompt: question, completion: answer}."
        )
    if name == "messages":
        _require_template(tokenizer)
    return prompts[name]


def completion_of_row(name: str, row: Mapping[str, Any]) -> str | None:
    """Return the text that a row of the format `name` holds as its completion; None where it holds none."""
    if name == "messages":
        return split_answer(row["messages"])[1]
    value = row.get("output" if name == "instruction" else "completion")
    if isinstance(value, list):
        return split_answer(value)[1]
    return None if value is None else _plain(value)


def split_answer(turns: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """Return a conversation up to the assistant's last turn, and what that says; None where it ends with a question.

    >>> split_answer([{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}])
    ([{'role': 'user', 'content': '2 + 3?'}], '5')
    """
    if turns and turns[-1].get("role") == "assistant":
        return turns[:-1], str(turns[-1].get("content") or "")
    return turns, None


def text_of_row(name: str, row: Mapping[str, Any]) -> str:
    """Return all text of a row, prompt and completion or every turn, a line each.

    Args:
        name: a key of `COLUMNS`.
        row: its columns.

    >>> text_of_row("prompt_completion", {"prompt": "2 + 3 = ", "completion": "5"})
    '2 + 3 = \\n5'
    """
    columns = ("instruction", "input", "output") if name == "instruction" else COLUMNS[name]
    texts = []
    for column in columns:
        value = row.get(column)
        turns = value if isinstance(value, list) else [{"content": value}]
        texts += [str(turn.get("content")) for turn in turns if turn.get("content") not in (None, "")]
    return "\n".join(texts)


def _prompt(tokenizer: Any, prompt: Any) -> list[int]:
    return _turns_prompt(tokenizer, prompt) if isinstance(prompt, list) else _head(tokenizer, _plain(prompt))


def _turns_prompt(tokenizer: Any, turns: Sequence[Mapping[str, Any]]) -> list[int]:
    _require_template(tokenizer)
    if not turns:
        return []
    text = tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _instruction_prompt(row: Mapping[str, Any]) -> str:
    instruction, extra = _plain(row["instruction"]), _plain(row.get("input"))
    return f"{instruction}\n{extra}\n" if extra else f"{instruction}\n"


def _plain(value: Any) -> str:
    """Return the text of a cell; a missing one is empty, not the word None."""
    if isinstance(value, list | dict):
        raise DataError(
            f"A cell holds a {type(value).__name__} where text is expected: {str(value)[:80]!r}. Give a conversation "
            "as messages, or as prompt and completion that are both lists of messages."
        )
    return "" if value is None else str(value)


def _prompt_completion(tokenizer: Any, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        _require_template(tokenizer)
        return _messages(tokenizer, [*prompt, *completion], first=len(prompt))
    return _completion(tokenizer, _plain(prompt), _plain(completion))


def _require_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "The data has messages but the tokenizer has no chat template; use an instruction-tuned model's "
            "tokenizer, or give the data as prompt and completion."
        )


@lru_cache(maxsize=1)
def _say_rewritten() -> None:
    """Say once that earlier turns go unlabelled."""
    logger.warning(
        "The chat template renders earlier assistant turns differently once others follow (dropping their reasoning, "
        "say), so such turns are read but not learned; the last turn is. Said once."
    )


def _head(tokenizer: Any, prompt: str) -> list[int]:
    return _open(tokenizer, list(tokenizer(prompt, add_special_tokens=True)["input_ids"]))


def _open(tokenizer: Any, head: list[int]) -> list[int]:
    eos = tokenizer.eos_token_id
    return head[:-1] if eos is not None and head and head[-1] == eos else head  # some tokenizers close every text


def _completion(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    # Tokenised apart, so that the boundary is where generation will have it.
    head = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
    tail = tokenizer(completion, add_special_tokens=False)["input_ids"] if completion else []
    return _join(tokenizer, head, tail)


def _join(tokenizer: Any, head: list[int], tail: list[int]) -> tuple[list[int], list[int]]:
    head, eos = _open(tokenizer, head), tokenizer.eos_token_id
    tail = tail + ([eos] if eos is not None and tail else [])
    return head + tail, [IGNORE] * len(head) + tail


def _text(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    ids = tokenizer(text)["input_ids"]
    eos = tokenizer.eos_token_id
    if eos is not None and ids and ids[-1] != eos:
        ids = [*ids, eos]
    return ids, list(ids)


def _messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, first: int = 0) -> tuple[list[int], list[int]]:
    """Label what the assistant says from turn `first` on, found as the text that each turn adds to the rendering."""
    turns = [dict(message) for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    spans: list[tuple[int, int]] = []
    for number, turn in enumerate(turns):
        if turn.get("role") != "assistant" or number < first:
            continue
        before = ""
        if number > 0:
            before = tokenizer.apply_chat_template(turns[:number], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(turns[: number + 1], tokenize=False)
        if text.startswith(before) and text.startswith(after):
            spans.append((len(before), len(after)))
        elif number == len(turns) - 1:
            raise DataError(
                "The chat template renders the last assistant turn differently with its own answer, so its tokens "
                f"can not be told from the prompt's (conversation of {len(turns)} turns). Give the data as prompt "
                "and completion."
            )
        else:
            _say_rewritten()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    said = [any(start < end_ and end > start_ for start_, end_ in spans) for start, end in encoded["offset_mapping"]]
    return ids, [token if is_said else IGNORE for token, is_said in zip(ids, said, strict=True)]
