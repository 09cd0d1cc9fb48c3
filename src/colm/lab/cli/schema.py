"""`colm schema`: the JSON Schema of a configuration, for editors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser's commands."""
    what = "print the JSON Schema of a configuration"
    command = commands.add_parser("schema", help=what, description=what.capitalize() + ", for editors.")
    command.add_argument("--out", metavar="FILE.json", help="write to this file instead")
    command.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Print the schema, or write it to a file."""
    from colm.lab.run.schema import make_schema
    from colm.step.files import replace_file

    text = json.dumps(make_schema(), indent=2) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        replace_file(Path(options.out), text)
        print(f"Written to {options.out}.")
