"""`colm chat`: talk with a run's model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from colm.errors import DataError
from colm.hints import hints_of
from colm.lab.cli.arguments import Commands, add_command
from colm.lab.cli.console import is_terminal
from colm.lab.evaluate.options import EvalOptions, add_sample
from colm.typed import read_value

if TYPE_CHECKING:
    from colm.lab.evaluate.talk import Conversation
    from colm.lab.run.target import Target

COMMANDS = "/reset forgets the conversation; /exit or Ctrl-D ends it"


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "chat", "talk with a run's model; reads a message per line")
    add = command.add_argument
    add("run", metavar="RUN", help="run output folder, or a model: folder, hub name, .gguf, demo")
    add("--system", metavar="TEXT", help="system prompt")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="maximum tokens per answer (default: 512)")
    add_sample(command)
    add("--seed", type=int, default=0, help="random seed for sampling (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Answer each line of the standard input.

    Raises:
        ConfigError: no run or model, an unfinished run, or an option out of range.
    """
    for flag, name in (("--max-new-tokens", "max_new_tokens"), ("--sample", "temperature"), ("--seed", "seed")):
        read_value(flag, hints_of(EvalOptions)[name], getattr(args, name))
    from transformers import TextStreamer

    from colm.lab.run.target import find_target, load_target

    target = find_target(args.run, args.overrides)
    model, tokenizer = load_target(target)
    conversation = _begin(target, model, tokenizer, args)
    asks = is_terminal(sys.stdin)
    if asks:
        print(f"{COMMANDS}.", file=sys.stderr)
    for line in _read_lines(asks):
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            conversation.forget()
        elif text.startswith("/") and " " not in text:
            print(f"There is no command {text}: {COMMANDS}.", file=sys.stderr)
        elif text:
            try:
                conversation.answer(text, TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True))
            except DataError as error:
                print(f"colm: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                if not asks:
                    raise
                print("\n(stopped; the question and its answer are forgotten)", file=sys.stderr)


def _begin(target: Target, model: Any, tokenizer: Any, args: argparse.Namespace) -> Conversation:
    """Return a conversation that renders messages as the run's training did."""
    from colm.lab.data.formats import prompt_of_format, uses_chat
    from colm.lab.data.schemas import PROMPT_COLUMNS
    from colm.lab.evaluate.talk import Conversation
    from colm.lab.run.own_rows import format_of_run

    name = format_of_run(target)
    chat = name == "messages" or uses_chat(target.settings.data.chat_template, tokenizer)
    # Without a template, training put an instruction on a line of its own.
    name = "messages" if chat else "instruction" if name == "instruction" else "prompt_completion"
    column = PROMPT_COLUMNS[name]
    prompt = prompt_of_format(name, tokenizer)
    return Conversation(
        model,
        tokenizer,
        lambda turns: prompt({column: turns if chat else turns[-1]["content"], "system": args.system}),
        remembers=chat,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )


def _read_lines(asks: bool) -> Iterator[str]:
    """Yield the lines of the standard input, of a terminal with a prompt for each."""
    if not asks:
        yield from sys.stdin or ()
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
