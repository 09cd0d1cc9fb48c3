"""`colm replay`: train on a run's recorded choices again, to the same weights, without a selection pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colm.cli.console import make_console
from colm.cli.settings import load_settings
from colm.cli.train import check_output, hold_output, train
from colm.errors import ConfigError
from colm.record import CONFIG_NAME, FILE_NAME


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
    """
    path = Path(record) / FILE_NAME if Path(record).is_dir() else Path(record)
    config = path.parent / CONFIG_NAME
    for needed in (path, config):
        if not needed.is_file():
            raise ConfigError(f"There is no {needed}; give the {FILE_NAME} of a run, beside its {CONFIG_NAME}.")
    folder = path.resolve().parent
    settings = load_settings(str(config), [f"output_dir={folder.with_name(folder.name + '-replay')}", *overrides])
    if settings.output_dir.resolve() == folder:
        raise ConfigError(f"output_dir={settings.output_dir} is the run that is replayed; choose another folder.")
    with hold_output(settings.output_dir):
        checkpoint = check_output(settings, resume=resume, overwrite=overwrite)
        summary = train(settings, checkpoint, replay=path)
    if summary:
        make_console().print(f"{summary['steps']} steps replayed. Saved in {settings.output_dir}.")
