"""`colm features`: a vector for each training row, for an order of the rows that is balanced in them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_config, add_json, require_one_process
from colm.lab.cli.console import say
from colm.lab.sources.wanted import WHOLE, Part, Wanted


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_config(commands, "features", "write a vector for each training row", nargs="?")
    add = command.add_argument
    add(
        "--by",
        choices=("words", "sentence", "gradients"),
        help="words of the row's text (TF-IDF), a sentence encoder's vector of it, or the row's gradient",
    )
    add("--out", required=True, metavar="FILE.parquet", help="output file, for selection.order_by")
    add("--dimensions", type=int, default=64, metavar="N", help="numbers of a vector (default: 64)")
    add("--model", metavar="NAME", help="model for the gradients (default: the run's), or sentence encoder")
    add("--shard", metavar="i/n", help="only part i of n, from 0; written to FILE-i-of-n.parquet next to --out")
    add("--join", action="store_true", help="instead of computing, write the parts next to --out to one file")
    add("--overwrite", action="store_true", help="replace the output file")
    add_json(command, "what the file contains")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Write the vectors of a run's rows, or join parts of them.

    Raises:
        ConfigError: an option is out of range, or see `make_features` and `join_parts`.
    """
    if args.join:
        for name in ("config", "by", "model", "shard"):
            if getattr(args, name) is not None:
                args.parser.error("colm features --join takes only --out and --overwrite")
        return _join(Path(args.out), overwrite=args.overwrite)
    if not args.config or not args.by:
        args.parser.error("colm features needs CONFIG.yaml and --by, or --join")
    require_one_process("colm features", "start it without a launcher, and divide the rows with --shard i/n")
    part = WHOLE if args.shard is None else Part.read(args.shard)
    wanted = Wanted(args.by, args.dimensions, args.model)
    from colm.lab.run.settings import load_settings

    settings = load_settings(args.config, args.overrides)
    from colm.lab.run.features import make_features

    made = make_features(settings, wanted, Path(args.out), part=part, overwrite=args.overwrite)
    header, done = made.header, "Written to" if made.new else "They were already in"
    print(f"{made.rows:,} vectors of {header.dimensions:,} numbers. {done} {made.path}.")
    if part == WHOLE:
        say(f"Use it with selection.order=balanced selection.order_by={made.path}.")
    else:
        say(f"Once all {part.parts} parts are written:\n  colm features --join --out {args.out}")
    return _document(made.path, header, made.rows) | {"not_finite": made.broken, "new": made.new}


def _join(out: Path, *, overwrite: bool) -> dict[str, Any]:
    from colm.lab.run.features import check_output
    from colm.lab.sources.vectors import join_parts

    if check_output(out) is not None and not overwrite:
        raise ConfigError(f"{out} already exists. Replace it with --overwrite, or choose another --out.")
    header = join_parts(out)
    rows = int(header.fingerprint["rows"])
    print(f"{rows:,} vectors of {header.dimensions:,} numbers. Written to {out}.")
    say(f"Use it with selection.order=balanced selection.order_by={out}. The parts are no longer needed.")
    return _document(out, header, rows)


def _document(path: Path, header: Any, rows: int) -> dict[str, Any]:
    held = header._asdict()
    del held["first"]
    return {"file": path, "rows": rows, **held}
