"""The target of `colm eval`: a finished run, or a model by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from colm.errors import ConfigError
from colm.lab.run.adapters import load_adapted
from colm.lab.run.folder import RunFolder
from colm.lab.run.named import ADAPTER_NAME, find_model, load_base, load_named_tokenizer
from colm.lab.run.settings import RunSettings, load_run_settings, resolve_settings
from colm.models import pad_within
from colm.step.record import COMPARE_NAME, CONFIG_NAME, SUMMARY_NAME

ALLOWED = ("data.chat_template", "data.columns", "data.format", "data.source_column", "dtype")
"""Settings that may be overridden for an evaluation."""


class Target(NamedTuple):
    """A model to evaluate."""

    name: str
    folder: Path | None  # of the run; None for a model by name
    settings: RunSettings
    trained: frozenset[str] | None  # the sources in the run's training data

    @property
    def model(self) -> str:
        """What to load: the run's folder, or the model's name."""
        return self.settings.model if self.folder is None else str(self.folder)


def find_target(name: str, overrides: Sequence[str]) -> Target:
    """Find out what `name` refers to, without loading it.

    Args:
        name: output folder of a finished run; a model's folder, hub name, .gguf file, or ``demo``.
        overrides: overrides of the settings in `ALLOWED`.

    Raises:
        ConfigError: the folder contains neither, or a comparison, or an unfinished run; or an override has no effect.
    """
    for override in overrides:
        if not override.startswith(tuple(f"{key}{end}" for key in ALLOWED for end in "=.")):
            raise ConfigError(
                f"{override!r} has no effect on an evaluation. You can override only: {', '.join(ALLOWED)}."
            )
    folder = Path(name)
    if (folder / CONFIG_NAME).is_file():
        settings = load_run_settings(folder, overrides)
        if not (folder / SUMMARY_NAME).is_file():
            raise ConfigError(
                f"The run {name} has not finished (there is no {SUMMARY_NAME}); resume it with colm train --resume."
            )
        try:
            sources = RunFolder(folder).read(SUMMARY_NAME)["sources"]
            trained = frozenset(source for source, held in sources.items() if held["rows"])
        except (ConfigError, TypeError, KeyError, AttributeError) as error:
            why = type(error.__cause__ or error).__name__
            raise ConfigError(
                f"{folder / SUMMARY_NAME} is damaged ({why}); restore a full copy, or train again."
            ) from error
        return Target(name, folder, settings, trained)
    if (folder / COMPARE_NAME).is_file():
        raise ConfigError(f"{name} contains a comparison; give its runs, {name}/<method>/seed-<seed>.")
    if name == "tiny":
        raise ConfigError("'tiny' is a random model without a tokenizer of its own; give the folder of a run.")
    if folder.is_dir() and not any((folder / file).is_file() for file in ("config.json", ADAPTER_NAME)):
        raise ConfigError(
            f"{name} is neither the output folder of colm train (no {CONFIG_NAME}) nor a model (no config.json)."
        )
    return Target(name, None, resolve_settings({"model": name, "output_dir": "none"}, overrides), None)


def load_target(target: Target) -> tuple[Any, Any]:
    """Return the model in eval mode, on the GPU if there is one, and its tokenizer. Raises ConfigError."""
    import torch

    try:
        named = find_model(target.model)
        tokenizer = load_named_tokenizer(target.model)
        model = load_base(named, target.settings.dtype, tokenizer)
    except ConfigError as error:
        if target.folder is not None:
            raise
        raise ConfigError(f"{target.name!r} is neither an output folder of colm train nor a model. {error}") from error
    if named.adapter is not None:
        model = load_adapted(model, named.adapter)
    pad_within(tokenizer, model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def describe_weights(target: Target) -> list[list[Any]]:
    """Return name, size and time of each weights file; they change when a run resumes."""
    folder = target.folder or Path(target.name)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
