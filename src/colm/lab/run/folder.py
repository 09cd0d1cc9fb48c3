"""A run's output folder: what it contains, and which of its files are colm's.

The manifest lists the files that colm wrote. A file that somebody changed since is no longer colm's. colm never
deletes or overwrites a file that is not its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colm.errors import ConfigError, DataError
from colm.lab.run.lock import hold_folder
from colm.lab.run.manifest import Manifest, changed_manifest, read_manifest
from colm.lab.run.ownership import is_listed, own_checkpoints, own_files
from colm.lab.run.recognize import identify, is_recognized
from colm.lab.run.staging import Staging, refuse
from colm.lab.run.yaml12 import read_config_file
from colm.step.files import probe, replace_lines, replacing
from colm.step.record import (
    ANSWER_NAMES,
    CONFIG_NAME,
    DATA_NAME,
    LOG_NAMES,
    PROFILE_NAME,
    RUN_NAMES,
    SUMMARY_NAME,
    TRACE_NAME,
)
from colm.trainers.checkpoints import last_complete_checkpoint, may_be_written, step_of

if TYPE_CHECKING:
    from colm.lab.data.fingerprint import Fingerprint

OUTDATED = (*ANSWER_NAMES, PROFILE_NAME, TRACE_NAME)
"""Files that are out of date once a run has resumed."""
MODEL_NAMES = re.compile(
    r"(adapter_|generation_)?config\.json|training_args\.bin|(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
CARD_NAME = "README.md"
"""The model card. If another page is there, colm leaves it in place."""


class RunFolder:
    """The output folder of a run, or a folder for answers.

    Args:
        path: the folder.

    Attributes:
        staging: the folders that files pass through before they are moved into place.
        began: True once this process has started or resumed a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.staging = Staging(path)
        self.began = False

    # ---- Reading ----

    @property
    def finished(self) -> bool:
        """A training has ended here; one that resumed since may still be under way."""
        return (self.path / SUMMARY_NAME).exists()

    def config(self) -> dict[str, Any]:
        """Return the run's settings as they were resolved, empty if there are none. Raises ConfigError."""
        path = self.path / CONFIG_NAME
        return read_config_file(path) if path.exists() else {}

    def fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint of the data that the run was made on; None for runs of older versions.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path / DATA_NAME
        try:
            held: Fingerprint | None = self.read(DATA_NAME)
        except ConfigError as error:
            raise DataError(f"{path} is damaged; put back a whole copy of it.") from error
        if not isinstance(held, dict) and path.exists():
            raise DataError(f"{path} is damaged: it holds a {type(held).__name__}; put back a whole copy of it.")
        return held

    def read(self, name: str) -> Any:
        """Return what a JSON file of the run holds, or None if there is no such file. Raises ConfigError."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}") from error

    def last_checkpoint(self) -> Path | None:
        """Return the run's last complete checkpoint."""
        manifest = read_manifest(self.path)
        return last_complete_checkpoint(self.path, manifest.checkpoints if manifest.run else None)

    # ---- Taking the folder ----

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Make the folder, lock it, and complete or undo what a killed process left unfinished.

        Raises:
            ConfigError: another process trains there, the folder is not writable, or a foreign file is in the way.
        """
        with hold_folder(self.path):
            self.prepare()
            self.staging.recover()
            try:
                yield
            finally:
                with suppress(OSError):  # a full disk; the first error has been reported
                    self.staging.clear()
                    if self.began:
                        self._settle()

    def prepare(self) -> None:
        """Make the folder and check that it is writable. Raises ConfigError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe(self.path / "_colm_probe")
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written ({error.strerror}). Choose another folder, or free some space."
            ) from error

    def require_room(self, needed: int) -> None:
        """Check that `needed` bytes fit once the existing run is replaced. Raises ConfigError."""
        disk = shutil.disk_usage(self.path)
        free = disk.free + sum((self.path / name).stat().st_size for name in self.own())
        if disk.total and free < needed:
            raise ConfigError(
                f"{self.path} has room for {free:,} bytes, but the model alone takes {needed:,}. Free some space, or "
                "choose another output_dir."
            )

    # ---- Ownership ----

    def own(self) -> list[str]:
        """Return the relative paths of the files that colm wrote and nobody changed since."""
        return own_files(self.path, read_manifest(self.path))

    def held(self) -> str | None:
        """Return the name of one of colm's files, or None if the folder contains none."""
        return next(iter(self.own()), None)

    def refuse_foreign(self, wanted: Collection[str] | Callable[[str], object]) -> None:
        """Refuse to continue if a foreign file has a name that colm needs.

        Args:
            wanted: the names, or a test for them.

        Raises:
            ConfigError: gives the names.
        """
        needs = wanted if callable(wanted) else set(wanted).__contains__
        found = {path.name for path in self.path.iterdir() if needs(path.name)}
        refuse(self.path, found.difference(self.own()) if found else ())

    def refuse_checkpoints(self, after: int, last: int) -> None:
        """Refuse to train if a foreign file has the name of a checkpoint of steps `after` + 1 to `last`.

        Raises:
            ConfigError: gives the names.
        """
        found, named = [], []
        for path in self.path.glob("checkpoint-*"):
            if not re.fullmatch(r"checkpoint-\d+", path.name) or not after < step_of(path) <= last:
                continue
            if path.is_symlink() or not path.is_dir():
                found.append(path.name)
                continue
            named += [f"{path.name}/{inner}" for inner in may_be_written(path)]
        refuse(self.path, [*found, *(set(named).difference(self.own()) if named else ())])

    # ---- Writing ----

    def write(self, name: str, text: str) -> None:
        """Write a file atomically. Raises ConfigError if a foreign file has the name."""
        self.refuse_foreign([name])
        with replacing(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")
            with changed_manifest(self.path) as manifest:
                manifest.files[name] = [*self._now(name), identify(partial)]

    def grow(self, names: Collection[str]) -> None:
        """Add logs to the manifest; lines are appended to them from now on."""
        with changed_manifest(self.path) as manifest:
            manifest.files |= dict.fromkeys(names)

    def remove(self, names: Collection[str]) -> None:
        """Delete those of the files that are colm's."""
        for name in set(names).intersection(self.own()):
            (self.path / name).unlink()
            with changed_manifest(self.path) as manifest:
                manifest.files.pop(name, None)

    def announce(self, checkpoint: str) -> None:
        """Add the folder of a checkpoint to the manifest before it is written."""
        with changed_manifest(self.path) as manifest:
            there = [name for name in manifest.checkpoints if name != checkpoint and (self.path / name).is_dir()]
            manifest.checkpoints = [*there, checkpoint]

    def begin(self, texts: Mapping[str, Iterable[str]], logs: Collection[str] = ()) -> None:
        """Start a run in place of the existing one.

        Args:
            texts: name -> lines of the initial files. Files already in `staging.new` belong to the run, too.
            logs: names of further logs.
        """
        new = self.staging.make()
        for name, lines in texts.items():
            replace_lines(new / name, lines)
        files = {name: [identify(new / name)] for name in texts}
        self.staging.replace(self.own(), Manifest(run=True, files={**files, **dict.fromkeys((*LOG_NAMES, *logs))}))
        self.began = True

    def resume(self, texts: Mapping[str, Iterable[str]], logs: Collection[str] = ()) -> None:
        """Resume the existing run.

        Args:
            texts: name -> lines of the files to write again.
            logs: names of further logs.
        """
        own = self.own()
        with changed_manifest(self.path) as manifest:
            if not manifest.run:
                manifest.checkpoints = [folder.name for folder in own_checkpoints(self.path, manifest)]
                manifest.files |= {name: self._now(name) for name in own if "/" not in name}
                manifest.run = True
        self.began = True
        self.remove(OUTDATED)
        self.grow({*LOG_NAMES, *logs})
        for name, lines in texts.items():
            self.write(name, "".join(lines))

    def adopt(self) -> None:
        """Move the saved files from `staging.new` into place.

        Raises:
            ConfigError: a foreign file has taken one of the names; the saved files are kept.
        """
        own, new = set(self.own()), self.staging.new
        found = self.staging.files()
        foreign = [name for name in found if os.path.lexists(self.path / name) and name not in own]
        blocked = sorted(set(foreign).difference([CARD_NAME]))
        if blocked:
            kept = self.path / f"trained-{os.getpid()}"
            self.staging.keep(kept)
            raise ConfigError(
                f"{', '.join(blocked)} appeared in {self.path} during training, and colm did not write it. The "
                f"trained model is in {kept}."
            )
        names = [name for name in found if name not in foreign]
        with changed_manifest(self.path) as manifest:
            manifest.files |= {name: [*self._now(name), identify(new / name)] for name in names}
        for name in names:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(self.path / name)
        self.staging.clear()

    # ---- Helpers ----

    def _now(self, name: str) -> list[list[object]]:
        path = self.path / name
        return [identify(path)] if path.is_file() else []

    def _settle(self) -> None:
        """Record the final state of the logs, so that later changes are noticed."""
        with changed_manifest(self.path) as manifest:
            for name, held in list(manifest.files.items()):
                if not (self.path / name).is_file():
                    del manifest.files[name]
                elif held is None:
                    if is_recognized(self.path / name):
                        manifest.files[name] = self._now(name)
                elif len(held) > 1 and is_listed(self.path, name, manifest):
                    manifest.files[name] = self._now(name)


def needed_names(*, profile: bool = False, card: bool = False) -> Callable[[str], bool]:
    """Return a test for the names of files that a training run writes, with a profile or a model card."""
    more = {*((PROFILE_NAME, TRACE_NAME) if profile else ()), *([CARD_NAME] if card else ())}
    return lambda name: name in RUN_NAMES or name in more or MODEL_NAMES.fullmatch(name) is not None
