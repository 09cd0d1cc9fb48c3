"""Which columns of common data sets hold the prompt, the answer, or the conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from colm.errors import DataError, suggest
from colm.typed import read_value

FormatName = Literal["prompt_completion", "messages", "instruction", "text"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format needs; ``instruction`` may also have ``input``, and all but ``text`` ``system``."""

PROMPT_COLUMNS = {"prompt_completion": "prompt", "messages": "messages", "instruction": "instruction"}
"""The column with the prompt; ``text`` has none."""

SYSTEM = "system"
"""An optional column: the system prompt of a row."""

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns")
ASKED = ("prompt", "instruction", "question", "query", "input")
ANSWERED = ("completion", "output", "response", "answer", "solution")
CONTEXTS = ("input", "context")
SYSTEMS = (SYSTEM, "system_prompt", "system_message")
PREFERENCES = ("chosen", "rejected")
CHOICES = ("choices", "options")


def recognize_columns(columns: Sequence[str], first: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns to rename, colm's name -> the data's name; empty if the data has colm's names.

    Recognized are conversations (`CONVERSATIONS`), and a column of `ASKED` with one of `ANSWERED`, in upper or lower
    case. A question may have a context (Alpaca, Dolly), and every prompt a system prompt.

    Args:
        columns: columns of the data.
        first: a row, which tells conversations from texts.

    Raises:
        DataError: the data has preferences or choices, which need a decision, or two columns could be the prompt or
            the answer.

    >>> recognize_columns(["question", "answer"], {"question": "2 + 3?", "answer": "5"})
    {'prompt': 'question', 'completion': 'answer'}
    """
    present = {column.strip().lower(): column for column in reversed(columns)}
    exact = next((name for name, needed in COLUMNS.items() if all(column in columns for column in needed)), None)
    if exact is None:
        found = _find(columns, present, first)
    else:
        context = _first("input", CONTEXTS, present) if exact == "instruction" else {}
        found = {} if exact == "text" else {**context, **_first(SYSTEM, SYSTEMS, present)}
    return {wanted: column for wanted, column in found.items() if wanted != column and wanted not in columns}


def _find(columns: Sequence[str], present: Mapping[str, str], first: Mapping[str, Any]) -> dict[str, str]:
    system = _first(SYSTEM, SYSTEMS, present)
    for name in CONVERSATIONS:
        if name in present and _is_conversation(first.get(present[name])):
            return {"messages": present[name], **system}
    if "text" in present:
        return {"text": present["text"]}
    _refuse_preferences(present, first)
    asked = [name for name in ASKED if name in present and (name != "input" or "instruction" not in present)]
    answered = [name for name in ANSWERED if name in present]
    if not asked or not answered:
        return {}
    for side, names in (("prompt", asked), ("completion", answered)):
        if len(names) > 1 and side not in names:
            raise DataError(
                f"The data has the columns {', '.join(columns)}: {' or '.join(present[name] for name in names)} could "
                f"be the {side}. Name one with data.columns, such as {{{side}: {present[names[0]]}}}."
            )
    for name in CHOICES:
        if name in present:
            raise DataError(
                f"The data has the column {present[name]!r}, and colm does not know how to write a question with its "
                "choices. Write the text with data.template, such as {prompt: '{question} {choices}', completion: "
                "'{answer}'}."
            )
    question, answer = present[asked[0]], present[answered[0]]
    if asked[0] == "instruction" or "context" in present:
        return {"instruction": question, **_first("input", CONTEXTS, present), "output": answer, **system}
    return {"prompt": question, "completion": answer, **system}


def recognize_question(columns: Sequence[str], first: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns to rename of rows to answer, as `recognize_columns`; an ``answer`` keeps its name."""
    if any(column in columns for column in PROMPT_COLUMNS.values()):
        return {}
    extra = [] if any(column.strip().lower() in ANSWERED for column in columns) else ["completion"]
    found = recognize_columns([*columns, *extra], first)
    return {wanted: column for wanted, column in found.items() if column.lower() != "answer" and column not in extra}


def _first(wanted: str, names: Sequence[str], present: Mapping[str, str]) -> dict[str, str]:
    """Return the mapping of `wanted` to the first of the names that the data has; empty without one."""
    return next(({wanted: present[name]} for name in names if name in present), {})


def _is_conversation(cell: Any) -> bool:
    """Return whether a cell is a list of turns, also as JSON text; a missing one may be."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return False
    return cell is None or (isinstance(cell, list) and all(isinstance(turn, Mapping) for turn in cell))


def _refuse_preferences(present: Mapping[str, str], first: Mapping[str, Any]) -> None:
    if not all(name in present for name in PREFERENCES):
        return
    chosen = present["chosen"]
    whole = isinstance(first.get(chosen), list) and len(first[chosen]) > 1  # not only the answer
    wanted = "messages" if whole else "completion" if "prompt" in present else "text"
    raise DataError(
        "The data has preferences (chosen, rejected), which are for DPO and reward models. To fine-tune on the chosen "
        f"answers, set data.columns={{{wanted}: {chosen}}}."
    )


def detect_format(columns: Sequence[str]) -> str:
    """Return the format whose columns are all present.

    Raises:
        DataError: no format fits; the message lists the columns and the formats.
    """
    for name, needed in COLUMNS.items():
        if all(column in columns for column in needed):
            return name
    formats = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in COLUMNS.items())
    wanted = [column for needed in COLUMNS.values() for column in needed]
    hints = "".join(suggest(column, wanted) for column in columns)
    raise DataError(
        f"The data has the columns {', '.join(columns)}, which match no format ({formats}).{hints} "
        "Rename columns in the data, or map them with data.columns, such as {prompt: question, completion: answer}."
    )


def choose_format(name: str, columns: Sequence[str]) -> str:
    """Return the format of the columns: `name`, or the matching format if `name` is ``auto``.

    Raises:
        ConfigError: the format is unknown.
        DataError: columns that the format needs are missing.
    """
    if name == "auto":
        return detect_format(columns)
    read_value("format", FormatName, name)
    missing = [column for column in COLUMNS[name] if column not in columns]
    if missing:
        raise DataError(
            f"data.format={name!r} needs the column {missing[0]!r}, which the data does not have."
            f"{suggest(missing[0], columns)} It has: {', '.join(columns)}. Map it with data.columns, or leave "
            "data.format at auto."
        )
    return name


def is_row(values: Mapping[str, Any]) -> bool:
    """Return whether values by column are a row of some format, as written or after `recognize_columns`."""
    try:
        detect_format([*recognize_columns(list(values), values), *values])
    except DataError:
        return False
    return True
