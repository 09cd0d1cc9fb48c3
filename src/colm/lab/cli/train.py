"""`colm train`: from a configuration to a fine-tuned model with a summary."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from colm.lab.cli.arguments import Commands, add_config
from colm.lab.cli.console import make_console, say

if TYPE_CHECKING:
    from colm.lab.run.settings import RunSettings


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_config(commands, "train", "fine-tune a model")
    again = command.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="resume from the last complete checkpoint, if any")
    again.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    instead = command.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything up to the first step, show the first rows as they are learned, and stop",
    )
    instead.add_argument("--profile", action="store_true", help="profile steps 3 to 5: time by stage, and a trace")


def run(args: argparse.Namespace) -> None:
    """Train as the configuration says, save, and print the summary table."""
    from colm.lab.run.settings import load_settings

    settings = load_settings(args.config, args.overrides, resume=args.resume)
    # After the settings have been read: the Trainer and the rest take seconds to import.
    from colm.lab.run.check import check_run
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.noise import explain_noise
    from colm.lab.run.output import check_output, hold_output, is_first_rank
    from colm.lab.run.summary import summary_table
    from colm.lab.run.train import train
    from colm.step.record import PROFILE_NAME, TRACE_NAME
    from colm.trainers.profiling import StepProfiler

    check_run(settings, whole=not args.dry_run)  # a rehearsal is one process of a run of any number
    folder = RunFolder(settings.output_dir)
    if args.dry_run:
        from colm.lab.cli.dry_run import rehearse

        checkpoint = None
        if folder.path.exists():
            checkpoint = check_output(settings, folder, resume=args.resume, overwrite=args.overwrite)
        rehearse(settings, folder.path if checkpoint is not None else None)
        return
    with hold_output(folder):
        checkpoint = check_output(settings, folder, resume=args.resume, overwrite=args.overwrite, profile=args.profile)
        profiler = StepProfiler(settings.output_dir) if args.profile and is_first_rank() else None
        summary = train(settings, folder, checkpoint, callbacks=[profiler] if profiler else [])
    if not is_first_rank():
        return
    console = make_console()
    console.print(summary_table(summary))
    share = summary["selection_seconds"] / summary["seconds"] if summary["seconds"] else 0.0
    console.print(
        f"{summary['steps']} steps in {summary['seconds']:.0f} s, of which selection {share:.0%}. "
        f"Saved in {settings.output_dir}."
    )
    noise = summary.get("noise")
    if noise is not None and noise["overall"] is not None:
        console.print(explain_noise(noise["overall"], noise["rows"]))
    if profiler is not None and profiler.report is not None:
        print(f"\n{profiler.report}\n\nOperations: {PROFILE_NAME}; trace: {TRACE_NAME}, for ui.perfetto.dev.")
    say(_what_next(args, settings))


def _what_next(args: argparse.Namespace, settings: RunSettings) -> str:
    """Return the commands that go on from a finished run."""
    from colm.lab.run.check import holds_out

    out, held = str(settings.output_dir), holds_out(settings)
    words = [["report", out], ["eval", out, *([] if held else ["--data", "FILE"])]]
    if held and settings.arguments["max_steps"] > 0:  # what a comparison needs
        words.append(["compare", args.config, *args.overrides, f"output_dir={out}-compared"])
    return "Next:" + "".join(f"\n  colm {shlex.join(each)}" for each in words)
