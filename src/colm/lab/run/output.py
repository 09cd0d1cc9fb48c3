"""Whether a training may use its output folder: a run there is resumed, replaced, or in the way."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from colm.errors import ConfigError, Interrupted
from colm.lab.run.disk import saying
from colm.lab.run.folder import RunFolder, needed_names
from colm.lab.run.resume import check_settings
from colm.lab.run.settings import RunSettings
from colm.step.record import COMPARE_NAME, CONFIG_NAME
from colm.trainers.checkpoints import step_of

logger = logging.getLogger(__name__)


def is_first_rank() -> bool:
    """Return True in the process that writes, also before the ranks have connected."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def hold_output(folder: RunFolder) -> Iterator[None]:
    """Lock the output folder in the process that writes there, and report write errors in one line.

    Raises:
        ConfigError: see `RunFolder.hold`; or a file could not be written.
        Interrupted: after Ctrl-C; says how to resume.
    """
    advice = "Free some space there, then resume with --resume, or choose another output_dir."
    try:
        with folder.hold() if is_first_rank() else nullcontext(), saying(folder.path, advice):
            folder.staging.wait()
            yield
    except KeyboardInterrupt as error:
        how = "resume with --resume" if folder.began else "nothing was started; run the same command again"
        raise Interrupted(f"interrupted; {how}") from error


def check_output(
    settings: RunSettings, folder: RunFolder, *, resume: bool, overwrite: bool, profile: bool = False
) -> Path | None:
    """Check that the output folder may be written, and return the checkpoint to resume from, if any.

    This deletes nothing yet. With several ranks, only the first one checks; all find the same checkpoint. Without a run
    or a checkpoint, ``--resume`` starts from the beginning, so the flag may always be given.

    Raises:
        ConfigError: the folder contains a run and neither flag is given, a comparison, or a foreign file in the way, or
            the run to resume has other settings.
    """
    checkpoint = folder.last_checkpoint() if resume else None
    if not is_first_rank():
        return checkpoint
    held = folder.held()
    if held and not resume and not overwrite:
        raise ConfigError(
            f"{folder.path} already contains a run ({held}). Resume it with --resume, replace it with --overwrite, or "
            "choose another output_dir."
        )
    if not held and (folder.path / COMPARE_NAME).exists():
        raise ConfigError(
            f"{folder.path} contains a comparison ({COMPARE_NAME}), and colm report would show only that. Choose "
            f"another output_dir, such as output_dir={folder.path}-run."
        )
    needs = needed_names(profile=profile, card=bool(settings.arguments["push_to_hub"]))
    if resume and held:
        if (folder.path / CONFIG_NAME).is_file():
            check_settings(settings)
            if checkpoint is not None:
                needs = _but(needs, CONFIG_NAME)  # a changed file stays as it is
        elif checkpoint is not None:
            raise ConfigError(
                f"The run in {folder.path} has no {CONFIG_NAME}, so colm cannot tell whether it has these settings. "
                "Restore the file, start over with --overwrite, or choose another output_dir."
            )
    folder.refuse_foreign(needs)
    folder.refuse_checkpoints(step_of(checkpoint) if checkpoint else 0, settings.arguments["max_steps"])
    if checkpoint is None:
        _refuse_own_input(settings, folder)
        if resume:
            logger.warning("%s contains no complete checkpoint; the run starts from the beginning.", folder.path)
    return checkpoint


def _but(needs: Callable[[str], bool], left_out: str) -> Callable[[str], bool]:
    return lambda name: name != left_out and needs(name)


def _refuse_own_input(settings: RunSettings, folder: RunFolder) -> None:
    """Refuse to replace files of a run that the new run reads."""
    data = settings.data
    given = [data.train, data.validation, *(entry.path for entry in settings.mixture), settings.model]
    own = {(folder.path / name).resolve() for name in folder.own()}
    for name in given:
        path = Path(name).resolve() if name and Path(name).exists() else None
        if path is not None and any(path == file or path in file.parents for file in own):
            raise ConfigError(
                f"{name} belongs to the run in {folder.path}, which would be replaced, but the new run reads it. "
                "Choose another output_dir."
            )
