"""Checkpoints that are whole, or not taken; and which files of a checkpoint's folder are its own."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from colm.step.files import replace_file

MARKER = "coreset_complete.json"
BEGUN = "coreset_begun.json"
"""There while a checkpoint is written, and while it is deleted: a list of what was in its folder before, not by us."""
STATE_NAME = "coreset_state.pt"
PASSING = "checkpoint-is-incomplete.txt"
"""The Trainer's just-in-time checkpoint has this file in the folder until it returns."""

_WRITTEN = re.compile(
    r"(pytorch_model|model|adapter_model)[\w.-]*\.(safetensors|bin|json)|(adapter_|generation_)?config\.json|README\.md"
    r"|(optimizer|scaler|scheduler)\.(pt|bin)|(rng_state|pass_start)[\w]*\.pth|trainer_state\.json|training_args\.bin"
    r"|coreset_(state\.pt|(complete|begun)\.json[.\d]*)|checkpoint-is-incomplete\.txt"
    r"|(tokenizer|special_tokens_map|added_tokens|vocab|merges|chat_template|spiece|sentencepiece)[\w.-]*"
)
"""Names that a Trainer's checkpoint may have: what of an incomplete one is told from another's files by."""


def begin_checkpoint(folder: Path) -> None:
    """Take the marker away from a folder that is about to be written, and note what is in it that is not ours."""
    own = set(own_files(folder))
    held = {name: _state(folder / name) for name in _files(folder) if name not in own}
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / BEGUN, json.dumps(held))
    (folder / MARKER).unlink(missing_ok=True)


def mark_complete(folder: Path) -> None:
    """Write the marker, a list of the checkpoint's files with their sizes in bytes; call it last."""
    before = _read(folder / BEGUN)
    files = {
        name: (folder / name).stat().st_size
        for name in _files(folder)
        if name not in (PASSING, BEGUN, MARKER) and before.get(name) != _state(folder / name)
    }
    replace_file(folder / MARKER, json.dumps(files, indent=2, sort_keys=True))
    (folder / BEGUN).unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Return whether the checkpoint was written to its end, and none of its files is gone or cut short since."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, ValueError, AttributeError):  # never marked, its deletion was begun, or another's file
        return False


def own_files(folder: Path) -> list[str]:
    """Return the files of a checkpoint's folder that its training wrote, and nobody changed since, by relative path."""
    if (folder / MARKER).is_file():
        listed = _read(folder / MARKER)
        names = [name for name, size in listed.items() if _is_file(folder, name) and _state(folder / name)[0] == size]
        return [*names, *(name for name in (MARKER, BEGUN, PASSING) if (folder / name).is_file())]
    if (folder / BEGUN).is_file() or (folder / STATE_NAME).is_file():
        before = _read(folder / BEGUN)
        return [name for name in may_be_written(folder) if before.get(name) != _state(folder / name)]
    return []


def may_be_written(folder: Path) -> list[str]:
    """Return the files under a checkpoint's folder, by relative path, whose names a checkpoint may have."""
    return [name for name in _files(folder) if _WRITTEN.fullmatch(name)]


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint's own files, and the folder if nothing else is in it; harmless when it is killed."""
    own = own_files(folder)
    foreign = {name: _state(folder / name) for name in _files(folder) if name not in own}
    replace_file(folder / BEGUN, json.dumps(foreign))
    for name in sorted(own, key=lambda name: name != MARKER):
        if name != BEGUN:
            (folder / name).unlink(missing_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove the folders under a folder, and itself, as far as they are empty."""
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def drop_old_checkpoints(run: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest of a run's complete checkpoints until `limit` are left; never the newest, nor the best.

    What kills left of others goes too. Call it while none is being written.

    Args:
        run: the output folder.
        limit: the Trainer's ``save_total_limit``; None for no limit.
        best: the path of the best checkpoint, if any.
    """
    if limit is None or limit <= 0:
        return
    for folder in list_checkpoints(run):
        if (folder / BEGUN).is_file() and not is_complete(folder):
            delete_checkpoint(folder)
    # By time, as a run that began again in the same folder may have saved fewer steps; by step where times are equal.
    found = sorted(
        (folder for folder in list_checkpoints(run) if is_complete(folder)),
        key=lambda folder: ((folder / MARKER).stat().st_mtime, step_of(folder)),
    )
    kept = {found[-1], *([Path(best)] if best else [])} if found else set()
    surplus = len(found) - max(limit, len(kept))
    for folder in [folder for folder in found if folder not in kept][: max(0, surplus)]:
        delete_checkpoint(folder)


def list_checkpoints(run: Path) -> Iterator[Path]:
    """Yield the folders under a run's folder that are named as checkpoints are."""
    return (path for path in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir())


def step_of(folder: Path) -> int:
    """Return the step that a checkpoint's name says."""
    return int(folder.name.rpartition("-")[2])


def last_complete_checkpoint(output_dir: Path, among: Container[str] | None = None) -> Path | None:
    """Return the checkpoint of the latest step that is complete, or None.

    Args:
        output_dir: of the run.
        among: names of checkpoints that count; None for all.
    """
    found = [
        (step_of(folder), folder)
        for folder in list_checkpoints(output_dir)
        if (among is None or folder.name in among) and is_complete(folder)
    ]
    return max(found)[1] if found else None


def _files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or (path.exists() and not path.is_dir())
    )


def _is_file(folder: Path, name: str) -> bool:
    return ".." not in Path(name).parts and (folder / name).is_file() and not (folder / name).is_symlink()


def _state(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns]


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
