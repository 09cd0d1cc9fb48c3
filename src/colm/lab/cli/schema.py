"""`colm schema`: the JSON Schema of a configuration, for editors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_command


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "schema", "print the JSON Schema of a configuration, for editors")
    command.add_argument("--out", metavar="FILE.json", help="output file (default: the standard output)")


def run(args: argparse.Namespace) -> None:
    """Print the schema, or write it to a file."""
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.schema import TITLE, make_schema
    from colm.step.files import replace_file

    text = json.dumps(make_schema(), indent=2) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        path = Path(args.out)
        RunFolder(path.parent).prepare()
        if path.exists() and not (path.is_file() and TITLE in path.read_text(encoding="utf-8", errors="replace")):
            raise ConfigError(f"{path} was not written by colm. Move it, or choose another file.")
        replace_file(path, text)
        print(f"Written to {args.out}.")
