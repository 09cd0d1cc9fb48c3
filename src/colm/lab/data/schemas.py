"""The four supported data formats, told apart by their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from colm.errors import DataError, suggest
from colm.typed import read_value

FormatName = Literal["prompt_completion", "messages", "instruction", "text"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that each format needs; ``instruction`` may also have ``input``."""

PROMPT_COLUMNS = {"prompt_completion": "prompt", "messages": "messages", "instruction": "instruction"}
"""The column with the prompt; ``text`` has none."""


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
