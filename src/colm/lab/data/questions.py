"""Data rows as questions with an expected answer."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from colm.errors import DataError, suggest
from colm.lab.answers import extract_answer
from colm.lab.answers.gym import COLUMN, read_task
from colm.lab.data.files import split_ending
from colm.lab.data.formats import completion_of_row
from colm.lab.data.held_rows import Parts
from colm.lab.data.read import read_rows
from colm.lab.data.schemas import COLUMNS, PROMPT_COLUMNS, recognize_question
from colm.lab.data.tokenize import name_rows
from colm.step.sources import name_of_row, shorten_names
from colm.step.values import text_of_value

logger = logging.getLogger(__name__)

ANSWER = "answer"


class Question(NamedTuple):
    """One row to answer."""

    source: str
    number: int  # index of its row, counted over all data read
    format: str  # a key of schemas.PROMPT_COLUMNS
    row: Mapping[str, Any]
    expected: str
    task: Mapping[str, Any] | None  # a reasoning-gym task, whose scorer then judges


class Questions(NamedTuple):
    """The rows to answer, and how many rows of each source lack a final answer to compare with."""

    asked: list[Question]
    unanswerable: dict[str, int]
    digest: str  # of all rows read, which identifies answers without a tokenizer


def read_question_files(names: Sequence[str], columns: Mapping[str, str], source_column: str) -> list[Dataset]:
    """Read files of questions; a file without a source column is one source, named after the file.

    Args:
        names: files, or hub names.
        columns: colm's column name -> the data's name, applied to the files that have it.
        source_column: the column with each row's source.

    Raises:
        DataError: a file is missing, empty or not readable, a row has no source, or a name is given twice.
    """
    parts = []
    for number, name in enumerate(names):
        if name in names[:number]:
            raise DataError(f"{name!r} is given twice; give each file once.")
        rows = read_rows(name)
        renamed = {
            present: wanted
            for wanted, present in columns.items()
            if present in rows.column_names and wanted not in rows.column_names
        }
        rows = rows.rename_columns(renamed) if renamed else rows
        found = recognize_question(rows.column_names, rows[0])
        rows = rows.rename_columns({present: wanted for wanted, present in found.items()}) if found else rows
        if source_column not in rows.column_names:
            rows = rows.add_column(source_column, [split_ending(name)[0]] * len(rows))
        parts.append(name_rows(rows, source_column, file=name))
    return parts


def read_questions(
    parts: Parts,
    *,
    source_column: str,
    format_name: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    run: Callable[[str], str | None] | None = None,
) -> Questions:
    """Return the questions of the rows, in order.

    A row's expected answer is its ``answer``; without that column, it is the final answer in its completion. Rows with
    an empty ``answer``, or a completion without a final answer, are counted and left out. Parts of plain text, which
    have no prompts, are skipped with a warning if there are other parts.

    Args:
        parts: rows of text with their sources.
        source_column: the column with each row's source.
        format_name: a key of `schemas.PROMPT_COLUMNS`, or ``auto``.
        limit: questions per source, drawn at random; None for all.
        seed: random seed.
        run: returns the output of a completion that is a program; None to run nothing.

    Raises:
        DataError: a part has no prompt column, or neither answers nor completions; a row has no source; or no row has
            a final answer.
    """
    asked: list[Question] = []
    unanswerable: dict[str, int] = {}
    index, hasher = 0, hashlib.sha256()
    if format_name == "auto":
        parts = _skip_plain_text(parts, source_column)
    for part in parts:
        if source_column not in part.column_names:
            names = part.column_names
            raise DataError(
                f"The questions have no column {source_column!r} for the source.{suggest(source_column, names)} They "
                f"have: {', '.join(names)}. Name the right one with --source-column."
            )
        name = detect_question_format(part.column_names) if format_name == "auto" else format_name
        if name not in PROMPT_COLUMNS:
            raise DataError(f"format={name!r} has no prompt to answer; choose one of {', '.join(PROMPT_COLUMNS)}.")
        for row in part:
            source = name_of_row(row[source_column], source_column, index)
            hasher.update(json.dumps([name, source, row], sort_keys=True, default=str).encode())
            task = read_task(row.get(COLUMN))
            expected = str(task["answer"]) if task else _expected(row, name, index, run)
            unanswerable.setdefault(source, 0)
            if expected:
                asked.append(Question(source, index, name, row, expected, task))
            else:
                unanswerable[source] += 1
            index += 1
    if not asked:
        raise DataError(
            f"None of the {index} rows has a final answer to compare with: each has an empty {ANSWER!r}, or a "
            "completion without a final answer. Give data with answers."
        )
    return Questions(asked if limit is None else _draw(asked, limit, seed), unanswerable, hasher.hexdigest())


def detect_question_format(columns: Sequence[str]) -> str:
    """Return the format of rows to answer, which may have an ``answer`` instead of a completion.

    Raises:
        DataError: the prompt is missing, or both the answer and the completion are.
    """
    for name, prompt in PROMPT_COLUMNS.items():
        completion = COLUMNS[name][-1]
        if prompt in columns and (completion in columns or ANSWER in columns or COLUMN in columns):
            return name
    wanted = [*PROMPT_COLUMNS.values(), ANSWER, "completion", "output"]
    hints = "".join(suggest(column, wanted) for column in columns if column not in wanted)
    what = "only text, which has no prompt to answer" if "text" in columns else "no question with its answer"
    raise DataError(
        f"The data has the columns {', '.join(columns)}: {what}.{hints} Give prompt, instruction or messages, with an "
        "answer or a completion, or map the columns with data.columns={prompt: question, answer: solution}."
    )


def _skip_plain_text(parts: Parts, source_column: str) -> Parts:
    """Return the parts with prompts and log the other sources; all parts if none has prompts."""
    asked = [part for part in parts if "text" not in part.column_names or _has_prompt(part.column_names)]
    if not asked:
        return parts
    skipped = Counter(str(row.get(source_column)) for part in parts if part not in asked for row in part)
    if skipped:
        names = shorten_names([f"{name} ({count} rows)" for name, count in skipped.items()])
        logger.warning("Skipped rows of plain text, which has no prompt to answer: %s.", names)
    return asked


def _has_prompt(columns: Sequence[str]) -> bool:
    return any(prompt in columns for prompt in PROMPT_COLUMNS.values())


def _expected(row: Mapping[str, Any], name: str, index: int, run: Callable[[str], str | None] | None) -> str | None:
    if ANSWER in row:
        answer = row[ANSWER]
        if isinstance(answer, list) and answer and all(isinstance(part, dict) and "text" in part for part in answer):
            answer = "".join(str(part["text"]) for part in answer if part["text"] is not None)  # content in parts
        if isinstance(answer, list | dict):
            raise DataError(
                f"Row {index} has a {type(answer).__name__} as its answer, {str(answer)[:80]!r}; it must be text or "
                "a number."
            )
        text = text_of_value(answer)
        return None if text is None else text.strip()
    completion = completion_of_row(name, row)
    if not completion:
        return None
    printed = run(completion) if run else None
    return extract_answer(completion if printed is None else printed)


def _draw(asked: Sequence[Question], limit: int, seed: int) -> list[Question]:
    by_source: dict[str, list[Question]] = {}
    for question in asked:
        by_source.setdefault(question.source, []).append(question)
    drawn = []
    for source, held in by_source.items():
        # Draw by source, so that a source's questions do not depend on the other sources.
        drawn += random.Random(f"{seed} {source}").sample(held, min(limit, len(held)))
    return sorted(drawn, key=lambda question: question.number)
