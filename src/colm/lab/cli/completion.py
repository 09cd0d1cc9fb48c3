"""`colm completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse

from colm.lab.cli.arguments import Commands, add_command

FILES = ("CONFIG.yaml", "RUN/selection.jsonl", "RUN", "DATA", "FILE", "FILE.html", "FILE.json", "FOLDER")
"""Placeholders of arguments that are completed to files and folders."""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "completion", "print a script for tab completion in a shell")
    command.add_argument("shell", choices=("bash", "zsh"), help='in ~/.bashrc: eval "$(colm completion bash)"')


def run(args: argparse.Namespace) -> None:
    """Print the script, which is complete in itself: a tab does not start colm."""
    import shtab

    for action in _actions(args.parser):
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(args.parser, args.shell))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of a parser and of its commands."""
    found = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _actions(command)
    return found
