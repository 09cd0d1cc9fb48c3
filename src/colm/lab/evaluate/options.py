"""The options of `colm eval`, which `colm compare` also accepts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from colm.hints import Count, Range, Seed, hints_of
from colm.typed import read_value

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


@dataclass(frozen=True)
class EvalOptions:
    """The options of `colm eval`."""

    data: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    source_column: str | None = None
    max_new_tokens: Count = 256
    batch_size: Count = 16
    limit: Annotated[Count | None, "at least 1 row per source"] = None
    seed: Seed = 0
    temperature: Annotated[float, Range(0, 100, open=""), "a temperature from 0 (greedy) to 100"] = 0.0
    run_programs: bool = False
    out: str | None = None

    def recorded(self) -> dict[str, Any]:
        """Return what `answers.json` records of the options, in its order: those that decide what is answered."""
        names = ("max_new_tokens", "batch_size", "temperature", "seed", "limit", "run_programs")
        return {"data": list(self.data), **{name: getattr(self, name) for name in names}}


def check_options(options: EvalOptions) -> None:
    """Raise ConfigError if a value is out of range."""
    for name, hint in hints_of(EvalOptions).items():
        flag = "sample" if name == "temperature" else name.replace("_", "-")
        read_value(f"--{flag}", hint, getattr(options, name))


def add_sample(parser: argparse.ArgumentParser) -> None:
    """Add ``--sample``, the temperature of the answers."""
    told = "sample at this temperature (default: greedy)"
    parser.add_argument("--sample", dest="temperature", type=float, default=0.0, metavar="T", help=told)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `colm eval` to a parser."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run output folder, or a model: folder, hub name, .gguf, demo")
    add(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        type=lambda names: names.split(","),
        metavar="FILE",
        help="questions with answers; a file without a source column is one source (default: validation data)",
    )
    add(
        "--tasks",
        default=[],
        type=lambda names: names.split(","),
        metavar="TASK,...",
        help="lm-evaluation-harness tasks",
    )
    add("--source-column", metavar="NAME", help="column with the source (default: the run's)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="maximum tokens per answer (default: 256)")
    add("--batch-size", type=int, default=16, metavar="N", help="prompts per batch (default: 16)")
    add("--limit", type=int, metavar="N", help="rows per source, drawn at random (default: all)")
    add("--seed", type=int, default=0, help="random seed for drawing rows and sampling (default: 0)")
    add_sample(parser)
    add(
        "--run-programs",
        action="store_true",
        help="execute answers that are Python programs in a sandbox and score what they print",
    )
    add("--out", metavar="FOLDER", help="output folder (default: the run's; for a model, answers/NAME)")


def parse_eval(arguments: Sequence[str]) -> tuple[EvalOptions, list[str]]:
    """Return the options and settings of `colm eval` from arguments that another command passes on."""
    parser = argparse.ArgumentParser(prog="colm eval")
    add_options(parser)
    given = parse_arguments(parser, arguments)
    return eval_options(given), given.overrides


def parse_arguments(parser: argparse.ArgumentParser, given: Sequence[str]) -> Any:
    """Parse arguments with settings at any position: argparse would take a setting after --seeds for a seed."""
    options = parser.parse_args([argument for argument in given if not _OVERRIDE.match(argument)])
    others = getattr(options, "overrides", [])  # invalid overrides, reported where they are applied
    options.overrides = [*others, *(argument for argument in given if _OVERRIDE.match(argument))]
    return options


def eval_options(given: argparse.Namespace) -> EvalOptions:
    """Return the parsed options."""
    held = {name: getattr(given, name) for name in hints_of(EvalOptions)}
    return EvalOptions(**{**held, "data": [name for names in given.data for name in names if name]})
