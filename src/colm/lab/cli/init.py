"""`colm init`: a first configuration, from a look at the data."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from colm.errors import ConfigError, DataErrors
from colm.lab.cli.arguments import Commands, add_command
from colm.lab.cli.console import is_terminal, make_console


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "init", "look at data files and write a first configuration")
    add = command.add_argument
    add("files", nargs="*", metavar="FILE", help="data file, folder or hub data set (default: the demo's tasks)")
    add("--model", metavar="NAME", help="hub name or folder of a model, a .gguf file, demo or tiny (default: asks)")
    add("--out", default="run.yaml", metavar="FILE.yaml", help="output file (default: run.yaml)")
    add("--overwrite", action="store_true", help="replace the output file")


def run(args: argparse.Namespace) -> None:
    """Print what the files contain and write the configuration.

    Raises:
        ConfigError: the output file exists, or no model is named.
        DataError: a file cannot be read, or its rows are of no known format.
    """
    if args.overrides:
        first = args.overrides[0]
        args.parser.error(f"colm init takes no settings ({first}); a file of that name is ./{first}")
    out = Path(args.out)
    if os.path.lexists(out) and not (args.overwrite and out.is_file()):
        raise ConfigError(f"{out} already exists. Replace a file with --overwrite, or choose another --out.")
    twice = next((file for place, file in enumerate(args.files) if file in args.files[:place]), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice; name each file once.")
    model = args.model or _ask_model()
    from rich.table import Table

    from colm.lab.run.folder import RunFolder
    from colm.lab.run.starter import look_at, write_starter
    from colm.step.files import replace_file

    errors, found = DataErrors(), []
    for file in args.files:
        with errors.of(file):
            found.append(look_at(file))
    errors.report()
    text = write_starter(found, model, f"runs/{out.stem}")
    RunFolder(out.parent).prepare()
    replace_file(out, text)
    if found:
        table = Table(title="Data")
        table.add_column("file", overflow="fold")
        for name in ("format", "rows", "sources"):
            table.add_column(name, justify="left" if name == "format" else "right")
        for file in found:
            table.add_row(file.path, file.format, f"{file.rows:,}", f"{len(file.sources):,}")
        make_console().print(table)
    words = shlex.quote(str(out))
    print(f"Written to {out}. Next:\n  colm train {words} --dry-run\n  colm sources {words}")


def _ask_model() -> str:
    """Ask for the model on a terminal."""
    name = ""
    if is_terminal(sys.stdin) and is_terminal(sys.stdout):
        try:
            name = input("Model (hub name, folder, .gguf file, demo or tiny): ").strip()
        except EOFError:
            print()
    if not name:
        raise ConfigError("No model is named: give --model NAME (hub name, folder, .gguf file, demo or tiny).")
    return name
