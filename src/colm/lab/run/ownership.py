"""Which files in a run's folder are colm's: those that its manifest lists, or that an older version wrote."""

from __future__ import annotations

from pathlib import Path

from colm.lab.run.manifest import Manifest
from colm.lab.run.recognize import RECOGNIZED, identify, is_recognized
from colm.step.record import ANSWER_NAMES, FILE_NAME
from colm.trainers import checkpoints


def own_files(folder: Path, manifest: Manifest) -> list[str]:
    """Return the relative paths of the files in `folder` that colm wrote and nobody changed since."""
    older = _is_older_run(folder, manifest)
    found = [name for name in manifest.files if is_listed(folder, name, manifest)]
    if not manifest.run:  # an older version wrote a run, or answers, without a list
        names = RECOGNIZED if older else () if manifest.files else ANSWER_NAMES
        found += [name for name in names if name not in manifest.files and is_recognized(folder / name)]
    saves = own_checkpoints(folder, manifest)
    found += [f"{save.name}/{name}" for save in saves for name in checkpoints.own_files(save)]
    if older:  # only a copy in a checkpoint shows that the model and tokenizer are ours
        complete = [save for save in saves if checkpoints.is_complete(save)]
        for path in folder.iterdir():
            if path.name not in found and is_plain_file(path) and any(is_copy(path, save) for save in complete):
                found.append(path.name)
    return found


def own_checkpoints(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the folders of the run's checkpoints."""
    return [
        path
        for path in checkpoints.list_checkpoints(folder)
        if not path.is_symlink() and (path.name in manifest.checkpoints or not manifest.run)
    ]


def is_listed(folder: Path, name: str, manifest: Manifest) -> bool:
    """Return whether a file is as the manifest lists it; a log under way is recognized by its content."""
    path, held = folder / name, manifest.files[name]
    if not is_plain_file(path):
        return False
    return is_recognized(path) if held is None else identify(path) in held


def is_plain_file(path: Path) -> bool:
    """Return whether a path is a file and not a link to one."""
    return path.is_file() and not path.is_symlink()


def is_copy(path: Path, folder: Path) -> bool:
    """Return whether `folder` has a file of the same name and content."""
    other = folder / path.name
    return other.is_file() and other.stat().st_size == path.stat().st_size and identify(other) == identify(path)


def _is_older_run(folder: Path, manifest: Manifest) -> bool:
    """Return whether a version without a manifest has trained here: there are steps or a checkpoint of ours."""
    if manifest.run:
        return False
    steps = folder / FILE_NAME
    if is_recognized(steps) and steps.stat().st_size > 0:
        return True
    return any(map(checkpoints.is_complete, checkpoints.list_checkpoints(folder)))
