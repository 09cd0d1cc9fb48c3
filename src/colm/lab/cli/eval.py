"""`colm eval`: how many questions a run answers correctly, by source."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colm.lab.cli.arguments import Commands, add_command, add_json
from colm.lab.cli.console import make_console, make_progress
from colm.lab.evaluate.options import EvalOptions, add_options, check_options, eval_options

if TYPE_CHECKING:
    from colm.lab.evaluate.judge import Line
    from colm.lab.run.target import Target


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "eval", "answer questions and count correct answers by source")
    add_options(command)
    add_json(command, "the contents of each run's answers.json, and gains over the first run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate each run, write its figures, and print and return them; with several runs, also compare them.

    Raises:
        ConfigError: no run or model, an unfinished run, or an option out of range.
        DataError: there are no questions, or no reference answers.
    """
    options = eval_options(args)
    check_options(options)
    from colm.lab.cli.answer_tables import compare_table, harness_table, pair_rows, run_table
    from colm.lab.evaluate.harness import run_harness
    from colm.lab.report.runs import name_folders
    from colm.lab.run.answers import evaluate_target, find_questions
    from colm.lab.run.disk import saying
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.own_rows import warn_trained
    from colm.lab.run.target import find_target, load_target
    from colm.step.record import ANSWER_NAMES, HARNESS_NAME

    targets = [find_target(name, args.overrides) for name in args.runs]
    labels = name_folders([Path(target.name) for target in targets])
    folders = [_folder(target, label, options, len(targets)) for target, label in zip(targets, labels, strict=True)]
    for folder in folders:
        own = RunFolder(folder)
        own.prepare()
        own.refuse_foreign(ANSWER_NAMES)
    asked = None if options.tasks and not options.data else find_questions(targets[0], options)
    if asked is not None and not options.data:
        for target in targets[1:]:
            warn_trained(asked.asked, targets[0], target)
    known = next((target.trained for target in targets if target.trained is not None), None)
    console = make_console(quiet=args.json)
    results: dict[str, dict[str, Any]] = {}
    found: list[tuple[str, dict[str, Any], list[Line]]] = []
    for target, label, folder in zip(targets, labels, folders, strict=True):
        loaded = load_target(target)
        results[label] = {"folder": folder}
        with saying(folder, "Free some space there, then run the same command again: answers so far are kept."):
            if asked is not None:
                trained = known if target.trained is None else target.trained
                with make_progress(console, "Answering") as show:
                    figures, lines = evaluate_target(target, loaded, folder, asked, options, trained, show)
                found.append((label, figures, lines))
                results[label] |= figures
                console.print(run_table(figures, label))
            if options.tasks:
                scores = run_harness(
                    *loaded,
                    options.tasks,
                    batch_size=options.batch_size,
                    limit=options.limit,
                    seed=options.seed,
                )
                RunFolder(folder).write(HARNESS_NAME, json.dumps(scores, indent=2) + "\n")
                console.print(harness_table(scores, label))
                results[label]["harness"] = scores
        console.print(f"Written to {folder}.")
    if len(found) > 1:
        console.print(compare_table(found))
    gains = {label: pair_rows(found[0][2], lines) for label, _, lines in found[1:]}
    return {"runs": results, "gains": gains}


def _folder(target: Target, label: str, options: EvalOptions, targets: int) -> Path:
    if options.out is not None:
        return Path(options.out) if targets == 1 else Path(options.out) / label
    return target.folder or Path("answers") / label
