"""The answers of a trained model: which questions it gets, and an evaluation that resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from colm.errors import ConfigError
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import uses_chat
from colm.lab.data.held_rows import Parts
from colm.lab.data.questions import Questions, read_question_files, read_questions
from colm.lab.evaluate.judge import (
    Generation,
    Line,
    answer_questions,
    digest_questions,
    make_prompts,
    summarise_answers,
)
from colm.lab.evaluate.options import EvalOptions
from colm.lab.evaluate.sandbox import find_program, run_program
from colm.lab.run.folder import RunFolder
from colm.lab.run.own_rows import held_out_of
from colm.lab.run.settings import RunSettings
from colm.lab.run.target import Target, describe_weights
from colm.models import check_vocabulary
from colm.step.files import replace_file
from colm.step.record import ANSWER_LINES_NAME, ANSWERS_NAME, PARTIAL_ANSWERS_NAME, StepLog

DEMO_ROWS = 50
"""Rows per source of ``--data demo``, unless ``--limit`` is set."""


def find_questions(target: Target, options: EvalOptions) -> Questions:
    """Return the questions of ``--data``, or those of the run's own validation data.

    Raises:
        ConfigError: there is neither.
        DataError: see `data.questions`.
    """
    data = target.settings.data
    column = options.source_column or data.source_column
    parts: Parts
    if options.data:
        parts = read_given(options, target.settings)
    elif target.folder is None:
        raise ConfigError(
            f"{target.name!r} is not the folder of a run, and a model has no data of its own; give the output_dir of a "
            "run, or questions with --data."
        )
    else:
        parts = held_out_of(target.settings, target.folder)
        if not parts:
            raise ConfigError(f"The run {target.name} has no held-out rows; give questions with --data.")
    return read_questions(
        parts,
        source_column=column,
        format_name=data.format,
        limit=options.limit,
        seed=options.seed,
        run=run_written if options.run_programs else None,
    )


def read_given(options: EvalOptions, settings: RunSettings) -> list[Dataset]:
    """Return the rows of ``--data``: files, hub data sets, ``demo``. Raises DataError, see `read_question_files`."""
    data = settings.data
    column = options.source_column or data.source_column
    parts = read_question_files([name for name in options.data if name != "demo"], data.columns, column)
    if "demo" in options.data:
        demo = demo_rows(data.demo_rows, settings.data_seed, held_out=options.limit or DEMO_ROWS)
        parts.append(demo.rename_column("source", column) if column != "source" else demo)
    return parts


def evaluate_target(
    target: Target,
    loaded: tuple[Any, Any],
    folder: Path,
    questions: Questions,
    options: EvalOptions,
    trained: frozenset[str] | None,
    on_answers: Callable[[int, int], None],
) -> tuple[dict[str, Any], list[Line]]:
    """Answer the questions, resuming an evaluation with the same settings, and write the files.

    Args:
        target: the run or model.
        loaded: its model and tokenizer.
        folder: where the files go.
        questions: the questions.
        options: how to answer them.
        trained: the sources of its training data, if known.
        on_answers: called with the numbers of answers so far and of questions, at the start and after each batch.

    Returns:
        The contents of `answers.json` and `answers.jsonl`.

    Raises:
        ConfigError: see `evaluate.generate`; or the accelerator's memory is too small for the batch.
    """
    model, tokenizer = loaded
    asked = questions.asked
    chat = uses_chat(target.settings.data.chat_template, tokenizer)
    prompts = make_prompts(asked, model, tokenizer, options.max_new_tokens, chat=chat)
    longest = max((token for prompt in prompts.ids for token in prompt), default=0)
    check_vocabulary(model, longest, "A question has")
    how = Generation(options.max_new_tokens, options.batch_size, options.temperature, options.seed)
    settings = {
        "run": target.name,
        **options.recorded(),
        "weights": describe_weights(target),
        "questions": digest_questions(asked, prompts),
        "dtype": target.settings.dtype,
        "rows": questions.digest,
    }
    own = RunFolder(folder)
    own.grow([PARTIAL_ANSWERS_NAME])
    partial = StepLog(folder / PARTIAL_ANSWERS_NAME)
    answers = _go_on(partial, settings)
    try:
        on_answers(len(answers), len(asked))
        run = run_written if options.run_programs else None
        for lines in answer_questions(model, tokenizer, asked, prompts, how, run=run, done=set(answers)):
            for line in lines:
                partial.write(line)
                answers[line["index"]] = line
            on_answers(len(answers), len(asked))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"--batch-size {options.batch_size} needs more memory than is available; lower it. With another "
            "size, the evaluation starts over."
        ) from error
    held = [answers[index] for index in sorted(answers)]
    figures = {"settings": settings, **summarise_answers(held, questions.unanswerable, trained)}
    own.write(ANSWER_LINES_NAME, "".join(json.dumps(line) + "\n" for line in held))
    own.write(ANSWERS_NAME, json.dumps(figures, indent=2) + "\n")
    own.remove([PARTIAL_ANSWERS_NAME])
    return figures, held


def run_written(completion: str) -> str | None:
    """Return the output of the program in a completion: empty if it fails, None if there is no program."""
    program = find_program(completion)
    return None if program is None else run_program(program) or ""


def _go_on(partial: StepLog, settings: dict[str, Any]) -> dict[int, Line]:
    """Return the existing answers for these settings by index, and leave a file to append to."""
    lines = list(partial.read())
    held = lines[1:] if lines and lines[0] == json.loads(json.dumps(settings)) else []
    replace_file(partial.path, "".join(json.dumps(line) + "\n" for line in (settings, *held)))
    return {line["index"]: line for line in held}
