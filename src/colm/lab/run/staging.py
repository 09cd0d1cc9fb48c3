"""Replace one run in a folder with another atomically, even if the process is killed.

colm first writes the new run to a folder within the output folder. It then moves the old run's files to a second
folder, moves the new manifest into place (from here on the new run counts), moves the new files, and deletes the old
ones. The next process that locks the folder completes or undoes what a kill left unfinished.
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
"""A file in the folder `NEW`; deleted last."""


class Staging:
    """The two folders within an output folder that files pass through when a run starts.

    Args:
        path: the output folder.

    Attributes:
        new: files in this folder are later moved into place.
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
        """Return the relative paths of the files in `new`."""
        found = [path.relative_to(self.new) for path in sorted(self.new.rglob("*")) if not path.is_dir()]
        return [path.as_posix() for path in found if path.as_posix() != SIGN]

    def replace(self, own: list[str], manifest: Manifest) -> None:
        """Replace the files `own` with those in `new`.

        Args:
            own: the files of the previous run.
            manifest: the new run's manifest.
        """
        manifest.write(self.new)
        if own:
            before = read_manifest(self.path)
            before.moved = own
            (self.new / OLD).mkdir()
            before.write(self.new / OLD)
            (self.new / OLD).rename(self._old)  # so it never exists without its list
            (self.path / MANIFEST_NAME).unlink(missing_ok=True)
            _move(own, self.path, self._old)
        (self.new / MANIFEST_NAME).replace(self.path / MANIFEST_NAME)
        self._bring_in()
        self.clear()
        self._clear_old()

    def recover(self) -> None:
        """Complete or undo the replacement of a run after a kill.

        Raises:
            ConfigError: a foreign file is in the way.
        """
        if os.path.lexists(self._old):
            if (self._old / MANIFEST_NAME).is_file():
                self._end() if (self.path / MANIFEST_NAME).exists() else self._undo()
            if self._old.is_dir() and not self._old.is_symlink():
                remove_empty(self._old)
            refuse(self.path, [OLD] if os.path.lexists(self._old) else [])
        self.clear()

    def wait(self) -> None:
        """In a process that does not write, wait until the writing process has recovered the folder."""
        for _ in range(600):
            if not (self._old / MANIFEST_NAME).exists():
                return
            time.sleep(0.1)

    def clear(self) -> None:
        """Delete the folder `new`. Raises ConfigError if the folder is not colm's."""
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
        """Move the folder `new` out of colm's reach."""
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
        if not (self.new / MANIFEST_NAME).exists():  # otherwise nothing has been moved yet
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
    """Refuse to touch foreign files.

    Raises:
        ConfigError: `names` is not empty.
    """
    if names:
        shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ConfigError(
            f"{folder} contains files that colm did not write, or that were changed since, under names that colm "
            f"needs: {shown}. Move them, or choose another folder (output_dir, --out)."
        )


def _move(names: list[str], source: Path, target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
    for folder in {name.partition("/")[0] for name in names if "/" in name}:
        remove_empty(source / folder)
