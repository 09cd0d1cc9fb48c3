"""One run takes another's place in a folder: whole, or not at all, whenever it is killed.

The new run is first written to a folder within the output folder. Then the files of the run before are moved to another
one, the new list of files takes its place (from here on the new run is the one), the new files follow, and the old ones
are deleted. Whoever holds the folder next undoes or ends what a kill left halfway.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from colm.errors import ConfigError
from colm.lab.run.manifest import Manifest, read_manifest
from colm.lab.run.recognize import identify
from colm.step.record import MANIFEST_NAME
from colm.trainers.checkpoints import remove_empty

NEW, OLD = "_colm_new", "_colm_old"
SIGN, SIGN_TEXT = "README.txt", "colm writes here what it then moves to its place. It may delete it.\n"
"""In a folder `NEW`; deleted last."""


class Staging:
    """The two folders within an output folder that a run goes through as it begins.

    Args:
        path: of the output folder.

    Attributes:
        new: where a run writes what is then moved to its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new = path / NEW
        self._old = path / OLD

    def make(self) -> Path:
        """Make the folder `new` and return it."""
        if not self.new.exists():
            self.new.mkdir()
            (self.new / SIGN).write_text(SIGN_TEXT)
        return self.new

    def files(self) -> list[str]:
        """Return what is in `new`, by relative path."""
        found = [path.relative_to(self.new) for path in sorted(self.new.rglob("*")) if not path.is_dir()]
        return [path.as_posix() for path in found if path.as_posix() != SIGN]

    def replace(self, own: list[str], manifest: Manifest) -> None:
        """Put what is in `new` in the place of the files `own`.

        Args:
            own: the files of the run before.
            manifest: of the new run.
        """
        manifest.write(self.new)
        if own:
            before = read_manifest(self.path)
            before.moved = own
            (self.new / OLD).mkdir()
            before.write(self.new / OLD)
            (self.new / OLD).rename(self._old)  # so it is never there without its list
            (self.path / MANIFEST_NAME).unlink(missing_ok=True)
            _move(own, self.path, self._old)
        (self.new / MANIFEST_NAME).replace(self.path / MANIFEST_NAME)
        self._bring_in()
        self.clear()
        self._clear_old()

    def recover(self) -> None:
        """End or undo the replacing of a run in which a process was killed.

        Raises:
            ConfigError: something that colm did not write is in the way.
        """
        if os.path.lexists(self._old):
            if (self._old / MANIFEST_NAME).is_file():
                self._end() if (self.path / MANIFEST_NAME).exists() else self._undo()
            if self._old.is_dir() and not self._old.is_symlink():
                remove_empty(self._old)
            refuse(self.path, [OLD] if os.path.lexists(self._old) else [])
        self.clear()

    def wait(self) -> None:
        """Wait, in a process that does not write, until the one that does has recovered the folder."""
        for _ in range(600):
            if not (self._old / MANIFEST_NAME).exists():
                return
            time.sleep(0.1)

    def clear(self) -> None:
        """Delete the folder `new`. Raises ConfigError where it is not colm's."""
        if not os.path.lexists(self.new):
            return
        if self.new.is_symlink() or not self.new.is_dir() or (any(self.new.iterdir()) and not self._is_signed()):
            refuse(self.path, [NEW])
        for path in self.new.iterdir():
            if path.name != SIGN:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.new / SIGN).unlink(missing_ok=True)
        self.new.rmdir()

    def keep(self, path: Path) -> None:
        """Move the folder `new` to where colm will not touch it."""
        (self.new / SIGN).unlink()
        self.new.rename(path)

    def _is_signed(self) -> bool:
        sign = self.new / SIGN
        return sign.is_file() and SIGN_TEXT.startswith(sign.read_text(errors="replace"))

    def _bring_in(self) -> None:
        listed = read_manifest(self.path).files
        for name in self.files():
            if name in listed and not (self.path / name).exists():
                held = listed[name]
                if held is None or identify(self.new / name) in held:
                    (self.new / name).rename(self.path / name)

    def _end(self) -> None:
        if not (self.new / MANIFEST_NAME).exists():  # else nothing was moved yet
            self._bring_in()
        self._clear_old()

    def _undo(self) -> None:
        back = [name for name in read_manifest(self._old).moved if (self._old / name).exists()]
        refuse(self.path, [name for name in back if os.path.lexists(self.path / name)])
        _move(back, self._old, self.path)
        (self._old / MANIFEST_NAME).rename(self.path / MANIFEST_NAME)

    def _clear_old(self) -> None:
        if not (self._old / MANIFEST_NAME).is_file():
            return
        for name in read_manifest(self._old).moved:
            (self._old / name).unlink(missing_ok=True)
        (self._old / MANIFEST_NAME).unlink()
        remove_empty(self._old)


def refuse(folder: Path, names: Collection[str]) -> None:
    """Refuse to touch what is somebody else's.

    Raises:
        ConfigError: there are such names.
    """
    if names:
        shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ConfigError(
            f"{folder} holds what colm did not write, or somebody changed since, under names that it needs: {shown}. "
            "Move that away, or choose another folder (output_dir, --out)."
        )


def _move(names: list[str], source: Path, target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
    for folder in {name.partition("/")[0] for name in names if "/" in name}:
        remove_empty(source / folder)
