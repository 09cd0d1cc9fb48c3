"""Use only complete checkpoints, and track which files in a checkpoint's folder belong to it."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from colm.step.files import replace_file

MARKER = "coreset_complete.json"
BEGUN = "coreset_begun.json"
"""Exists while a checkpoint is written or deleted; lists files already in its folder that are not ours."""
STATE_NAME = "coreset_state.pt"
PASSING = "checkpoint-is-incomplete.txt"
"""The Trainer's just-in-time checkpoint keeps this file in the folder until it finishes."""

_WRITTEN = re.compile(
    r"(pytorch_model|model|adapter_model)[\w.-]*\.(safetensors|bin|json)|(adapter_|generation_)?config\.json|README\.md"
    r"|(optimizer|scaler|scheduler)\.(pt|bin)|(rng_state|pass_start)[\w]*\.pth|trainer_state\.json|training_args\.bin"
    r"|coreset_(state\.pt|(complete|begun)\.json[.\d]*)|checkpoint-is-incomplete\.txt"
    r"|(pytorch_model_fsdp|optimizer)_\d+/[\w.]+|global_step\d+/[\w.-]+|latest|zero_to_\w+\.py"  # FSDP's, DeepSpeed's
    r"|(tokenizer|special_tokens_map|added_tokens|vocab|merges|chat_template|spiece|sentencepiece)[\w.-]*"
)
"""File names that a Trainer's checkpoint may have; used to tell an incomplete checkpoint's files from others."""


def begin_checkpoint(folder: Path) -> None:
    """Remove the marker from a folder about to be written, and record its files that are not ours."""
    own = set(own_files(folder))
    held = {name: _state(folder / name) for name in _files(folder) if name not in own}
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / BEGUN, json.dumps(held))
    (folder / MARKER).unlink(missing_ok=True)


def mark_complete(folder: Path) -> None:
    """Write the marker, a list of the checkpoint's files with their sizes in bytes; call this last."""
    before = _read(folder / BEGUN)
    files = {
        name: (folder / name).stat().st_size
        for name in _files(folder)
        if name not in (PASSING, BEGUN, MARKER) and before.get(name) != _state(folder / name)
    }
    replace_file(folder / MARKER, json.dumps(files, indent=2, sort_keys=True))
    (folder / BEGUN).unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Return whether the checkpoint was fully written, and none of its files was removed or truncated since."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, ValueError, AttributeError):  # never marked, partly deleted, or not our file
        return False


def holds_optimizer_of(folder: Path) -> str | None:
    """Return the engine whose optimizer state a checkpoint holds; None if it holds none."""
    names = {path.name for path in folder.iterdir()}
    if "optimizer.pt" in names:
        return "no engine"
    if names & {"optimizer.bin", "optimizer_0"}:
        return "FSDP"
    return "DeepSpeed" if any(name.startswith("global_step") for name in names) else None


def own_files(folder: Path) -> list[str]:
    """Return the files in a checkpoint's folder that its run wrote and that are unchanged since, as relative paths."""
    if (folder / MARKER).is_file():
        listed = _read(folder / MARKER)
        names = [name for name, size in listed.items() if _is_file(folder, name) and _state(folder / name)[0] == size]
        return [*names, *(name for name in (MARKER, BEGUN, PASSING) if (folder / name).is_file())]
    if (folder / BEGUN).is_file() or (folder / STATE_NAME).is_file():
        before = _read(folder / BEGUN)
        return [name for name in may_be_written(folder) if before.get(name) != _state(folder / name)]
    return []


def may_be_written(folder: Path) -> list[str]:
    """Return the files in a checkpoint's folder, as relative paths, whose names a checkpoint may have."""
    return [name for name in _files(folder) if _WRITTEN.fullmatch(name)]


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint's own files, and its folder if nothing else is left; safe if killed midway."""
    own = own_files(folder)
    foreign = {name: _state(folder / name) for name in _files(folder) if name not in own}
    replace_file(folder / BEGUN, json.dumps(foreign))
    for name in sorted(own, key=lambda name: name != MARKER):
        if name != BEGUN:
            (folder / name).unlink(missing_ok=True)
    (folder / BEGUN).unlink(missing_ok=True)
    remove_empty(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder and the folders under it if they are empty."""
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        if not any(inner.iterdir()):
            inner.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def drop_old_checkpoints(run: Path, limit: int | None, best: str | None) -> None:
    """Delete a run's oldest complete checkpoints until `limit` are left, but never the newest or the best.

    Also deletes partial checkpoints left by killed runs. Call it while no checkpoint is being written.

    Args:
        run: the output folder.
        limit: the Trainer's ``save_total_limit``; None means no limit.
        best: path of the best checkpoint, if any.
    """
    if limit is None or limit <= 0:
        return
    for folder in list_checkpoints(run):
        if (folder / BEGUN).is_file() and not is_complete(folder):
            delete_checkpoint(folder)
    # Sort by time, as a run restarted in the same folder may have saved fewer steps; break ties by step.
    found = sorted(
        (folder for folder in list_checkpoints(run) if is_complete(folder)),
        key=lambda folder: ((folder / MARKER).stat().st_mtime, step_of(folder)),
    )
    # Compare places, not names: a resumed run may write the same folder's name in another way.
    kept = {*found[-1:], *(folder for folder in found if best and folder.resolve() == Path(best).resolve())}
    surplus = len(found) - max(limit, len(kept))
    for folder in [folder for folder in found if folder not in kept][: max(0, surplus)]:
        delete_checkpoint(folder)


def list_checkpoints(run: Path) -> Iterator[Path]:
    """Yield the folders in a run's folder that have a checkpoint's name."""
    return (path for path in run.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir())


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(folder.name.rpartition("-")[2])


def last_complete_checkpoint(output_dir: Path, among: Container[str] | None = None) -> Path | None:
    """Return the complete checkpoint with the latest step, or None.

    Args:
        output_dir: the run's output folder.
        among: names of checkpoints to consider; None means all.
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
