"""`colm replay`: train on a run's recorded choices again, to the same weights, without a selection pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colm.errors import ConfigError, DataError
from colm.lab.cli.console import make_console
from colm.lab.cli.train import train
from colm.lab.run.check import check_run
from colm.lab.run.folder import RunFolder
from colm.lab.run.output import check_output, hold_output
from colm.lab.run.settings import load_settings
from colm.step.record import CONFIG_NAME, FILE_NAME, SUMMARY_NAME, StepLog


def replay_command(record: str, overrides: Sequence[str], *, resume: bool, overwrite: bool) -> None:
    """Train as the run's configuration says, on the rows that its record names.

    Args:
        record: the run's ``selection.jsonl``, or its folder; ``config.yaml`` is beside it.
        overrides: ``key=value``; the output folder is the run's with ``-replay`` behind its name unless one says.
        resume: go on from the replay's last checkpoint.
        overwrite: replace an earlier replay.

    Raises:
        ConfigError: the record or its configuration is missing, the replay would write over the run, or another process
            trains in the output folder.
        DataError: the record is damaged, or holds fewer steps than the run has done.
    """
    path = Path(record) / FILE_NAME if Path(record).is_dir() else Path(record)
    config = path.parent / CONFIG_NAME
    for needed in (path, config):
        if not needed.is_file():
            raise ConfigError(f"There is no {needed}; give the {FILE_NAME} of a run, beside its {CONFIG_NAME}.")
    folder = path.resolve().parent
    settings = load_settings(str(config), [f"output_dir={folder.with_name(folder.name + '-replay')}", *overrides])
    check_run(settings)
    if settings.output_dir.resolve() == folder:
        raise ConfigError(f"output_dir={settings.output_dir} is the run that is replayed; choose another folder.")
    _require_all_steps(path)
    output = RunFolder(settings.output_dir)
    with hold_output(output):
        checkpoint = check_output(settings, output, resume=resume, overwrite=overwrite)
        summary = train(settings, output, checkpoint, replay=path)
    if summary:
        make_console().print(f"{summary['steps']} steps replayed. Saved in {settings.output_dir}.")


def _require_all_steps(record: Path) -> None:
    """Refuse a record that is shorter than its run; a run that was killed has no summary, and any length will do."""
    summary = record.parent / SUMMARY_NAME
    try:
        done = int(RunFolder(record.parent).read(SUMMARY_NAME)["steps"])
    except (ConfigError, OSError, ValueError, KeyError, TypeError):
        return
    held = sum(1 for _ in StepLog(record).read(whole=True))
    if held < done:
        raise DataError(
            f"{record} holds {held} steps, but {summary} says that the run did {done}: lines are missing. Put back a "
            f"whole copy of the record, or move {SUMMARY_NAME} away to replay {held} steps only."
        )
