"""`colm merge`: a run's adapter and its base as one model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_command


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "merge", "merge a run's adapter into its base model")
    command.add_argument("run", metavar="RUN", help="output folder of a run with LoRA, or an adapter's folder")
    command.add_argument("--out", required=True, metavar="FOLDER", help="new folder for the model and its tokenizer")


def run(args: argparse.Namespace) -> None:
    """Merge the adapter, save the model and its tokenizer, and print the folder.

    Raises:
        ConfigError: the run has no adapter or has not finished, the base is quantized, or the folder is not empty.
    """
    if args.overrides:
        args.parser.error(f"colm merge takes no settings ({args.overrides[0]}).")
    out = Path(args.out)
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out {out} already contains something; choose a new or an empty folder.")
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.merged import merge
    from colm.lab.run.target import find_target

    target = find_target(args.run, [])
    RunFolder(out.parent).prepare()
    model, tokenizer = merge(target)
    with TemporaryDirectory(dir=out.parent, prefix=".colm-merge-") as scratch:
        whole = Path(scratch) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        whole.replace(out)
    print(f"{model.num_parameters():,} parameters in {str(model.dtype).removeprefix('torch.')}. Written to {out}.")
