"""`colm replay`: train again on a run's recorded rows, to the same weights, without a selection pass."""

from __future__ import annotations

import argparse
from pathlib import Path

from colm.errors import ConfigError, DataError
from colm.lab.cli.arguments import Commands, add_config
from colm.lab.cli.console import make_console


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    what = "RUN/selection.jsonl"
    command = add_config(commands, "replay", "train again on the rows that a run recorded", what=what)
    command.add_argument("--resume", action="store_true", help="resume from the last checkpoint, if any")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier replay")


def run(args: argparse.Namespace) -> None:
    """Train with the run's configuration on the rows in its record.

    By default the output folder is the run's with ``-replay`` appended.

    Raises:
        ConfigError: the record or its configuration is missing, the replay would overwrite the run, or another process
            trains in the output folder.
        DataError: the record is damaged, or has fewer steps than the run.
    """
    from colm.lab.run.settings import load_run_settings
    from colm.step.record import CONFIG_NAME, FILE_NAME

    given = Path(args.config)
    path = given / FILE_NAME if given.is_dir() else given
    config = path.parent / CONFIG_NAME
    for needed in (path, config):
        if not needed.is_file():
            raise ConfigError(f"There is no {needed}; give the {FILE_NAME} of a run, next to its {CONFIG_NAME}.")
    folder = path.resolve().parent
    place = f"output_dir={folder.with_name(folder.name + '-replay')}"
    settings = load_run_settings(config.parent, [place, *args.overrides])
    # After the settings have been read: the Trainer and the rest take seconds to import.
    from colm.lab.run.check import check_run
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.output import check_output, hold_output
    from colm.lab.run.train import train

    check_run(settings)
    if settings.output_dir.resolve() == folder:
        raise ConfigError(f"output_dir={settings.output_dir} is the run that is replayed; choose another folder.")
    _require_all_steps(path)
    output = RunFolder(settings.output_dir)
    with hold_output(output):
        checkpoint = check_output(settings, output, resume=args.resume, overwrite=args.overwrite)
        summary = train(settings, output, checkpoint, replay=path)
    if summary:
        make_console().print(f"{summary['steps']} steps replayed. Saved in {settings.output_dir}.")


def _require_all_steps(record: Path) -> None:
    """Refuse a record that is shorter than its run. A killed run has no summary; its record may have any length."""
    from colm.lab.run.folder import RunFolder
    from colm.step.record import SUMMARY_NAME, StepLog

    summary = record.parent / SUMMARY_NAME
    try:
        done = int(RunFolder(record.parent).read(SUMMARY_NAME)["steps"])
    except (ConfigError, OSError, ValueError, KeyError, TypeError):
        return
    held = sum(1 for _ in StepLog(record).read(whole=True))
    if held < done:
        raise DataError(
            f"{record} contains {held} steps, but according to {summary} the run took {done}: lines are missing. "
            f"Restore a full copy of the record, or move {SUMMARY_NAME} away to replay only {held} steps."
        )
