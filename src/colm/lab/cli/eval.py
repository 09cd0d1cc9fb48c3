"""`colm eval`: how many questions a run answers correctly, by source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from colm.errors import ConfigError
from colm.lab.cli.answer_tables import compare_table, harness_table, run_table
from colm.lab.cli.console import make_console
from colm.lab.data.demo import demo_rows
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
from colm.lab.evaluate.options import EvalOptions, check_options
from colm.lab.evaluate.sandbox import find_program, run_program
from colm.lab.report.runs import name_folders
from colm.lab.run.disk import saying
from colm.lab.run.folder import RunFolder
from colm.lab.run.own_rows import held_out_of
from colm.lab.run.target import Target, describe_weights, find_target, load_target
from colm.models import check_vocabulary
from colm.step.files import replace_file
from colm.step.record import (
    ANSWER_LINES_NAME,
    ANSWER_NAMES,
    ANSWERS_NAME,
    HARNESS_NAME,
    PARTIAL_ANSWERS_NAME,
    StepLog,
)

DEMO_ROWS = 50
"""Rows per source of ``--data demo``, unless ``--limit`` is set."""


def eval_command(names: Sequence[str], overrides: Sequence[str], options: EvalOptions) -> None:
    """Evaluate each run, write its figures, and print them; with several runs, also print a comparison.

    Raises:
        ConfigError: no run or model, an unfinished run, or an option out of range.
        DataError: there are no questions, or no reference answers.
    """
    check_options(options)
    targets = [find_target(name, overrides) for name in names]
    labels = name_folders([Path(target.name) for target in targets])
    folders = [_folder(target, label, options, len(targets)) for target, label in zip(targets, labels, strict=True)]
    for folder in folders:
        own = RunFolder(folder)
        own.prepare()
        own.refuse_foreign(ANSWER_NAMES)
    asked = None if options.tasks and not options.data else find_questions(targets[0], options)
    known = next((target.trained for target in targets if target.trained is not None), None)
    console = make_console()
    found: list[tuple[str, dict[str, Any], list[Line]]] = []
    for target, label, folder in zip(targets, labels, folders, strict=True):
        model, tokenizer = load_target(target)
        with saying(folder, "Free some space there, then run the same command again: answers so far are kept."):
            if asked is not None:
                trained = known if target.trained is None else target.trained
                figures, lines = evaluate_target(target, (model, tokenizer), folder, asked, options, trained, console)
                found.append((label, figures, lines))
                console.print(run_table(figures, label))
            if options.tasks:
                from colm.lab.evaluate.harness import run_harness

                scores = run_harness(
                    model,
                    tokenizer,
                    options.tasks,
                    batch_size=options.batch_size,
                    limit=options.limit,
                    seed=options.seed,
                )
                RunFolder(folder).write(HARNESS_NAME, json.dumps(scores, indent=2) + "\n")
                console.print(harness_table(scores, label))
        console.print(f"Written to {folder}.")
    if len(found) > 1:
        console.print(compare_table(found))


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
        files = [name for name in options.data if name != "demo"]
        parts = read_question_files(files, data.columns, column)
        if "demo" in options.data:
            demo = demo_rows(data.demo_rows, target.settings.seed, held_out=options.limit or DEMO_ROWS)
            parts = [*parts, demo.rename_column("source", column) if column != "source" else demo]
    elif target.folder is None:
        raise ConfigError(f"{target.name} is a model, which has no data of its own; give questions with --data.")
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


def evaluate_target(
    target: Target,
    loaded: tuple[Any, Any],
    folder: Path,
    questions: Questions,
    options: EvalOptions,
    trained: frozenset[str] | None,
    console: Console,
) -> tuple[dict[str, Any], list[Line]]:
    """Answer the questions, resuming an evaluation with the same settings, and write the files.

    Returns:
        The contents of `answers.json` and `answers.jsonl`.

    Raises:
        ConfigError: see `evaluate.generate`; or the accelerator's memory is too small for the batch.
    """
    model, tokenizer = loaded
    asked = questions.asked
    prompts = make_prompts(asked, model, tokenizer, options.max_new_tokens)
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
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("Answering", total=len(asked), completed=len(answers))
            run = run_written if options.run_programs else None
            for lines in answer_questions(model, tokenizer, asked, prompts, how, run=run, done=set(answers)):
                for line in lines:
                    partial.write(line)
                    answers[line["index"]] = line
                progress.update(bar, completed=len(answers))
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


def _folder(target: Target, label: str, options: EvalOptions, targets: int) -> Path:
    if options.out is not None:
        return Path(options.out) if targets == 1 else Path(options.out) / label
    return target.folder or Path("answers") / label
