"""A run's configuration: a YAML file with overrides, checked key by key."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.run.arguments import check_early, fill_training
from colm.lab.run.clustering import read_rules
from colm.lab.run.sections import SECTIONS, TopSettings
from colm.lab.run.yaml12 import read_config_file, read_yaml
from colm.lab.sources.config import SourceRules
from colm.step.record import CONFIG_NAME
from colm.step.sources import source_name
from colm.typed import read_value, show


class RunSettings(NamedTuple):
    """A resolved configuration.

    Attributes:
        lora: given fields of `peft.LoraConfig`; None for full fine-tuning.
        training: given fields of `transformers.TrainingArguments`, with colm's defaults; to read one, see `arguments`.
    """

    model: str
    dtype: str
    attention: str
    lora: dict[str, Any] | None
    data: DataSettings
    mixture: list[MixtureEntry]
    sources: SourceRules
    selection: SelectionConfig
    training: dict[str, Any]
    output_dir: Path
    seed: int

    @property
    def values(self) -> dict[str, Any]:
        """The content of `config.yaml` in the output folder: plain values, which `resolve_settings` reads again."""
        entries = (asdict(entry) for entry in self.mixture)
        return {
            **self._asdict(),
            "data": asdict(self.data),
            "mixture": [{key: value for key, value in entry.items() if value is not None} for entry in entries],
            "sources": asdict(self.sources),
            "selection": self.selection.to_dict(),
            "output_dir": str(self.output_dir),
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """Every field of `transformers.TrainingArguments`, as given or by default."""
        return fill_training(self.training)

    @property
    def data_seed(self) -> int:
        """Seed of the held-out rows, the clusters and the demo's tasks."""
        return self.seed if self.data.seed is None else self.data.seed


OLDER = {"chat_template": False}
"""Settings of `data` that the ``config.yaml`` of older versions lacks, with the values that describe what they did."""


def load_run_settings(folder: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read the settings that a run was made with, see `load_settings`; newer ones are as the run's version behaved."""
    values = read_config_file(folder / CONFIG_NAME)
    data = values.get("data") or {}
    return resolve_settings({**values, "data": {**OLDER, **data} if isinstance(data, Mapping) else data}, overrides)


def load_settings(path: str, overrides: Sequence[str], *, resume: bool = False) -> RunSettings:
    """Read, override and check a configuration.

    Args:
        path: a YAML file.
        overrides: ``key=value`` with dotted keys and YAML values: ``training.max_steps=20``. The last override of a
            key counts.
        resume: take the settings that the configuration does not have from the run in its folder, if an older version
            made it.

    Raises:
        ConfigError: the file is missing or not a mapping, a key is unknown (gives the closest one) or a duplicate, or a
            value has the wrong type or is out of range.
    """
    values = read_config_file(Path(path))
    settings = resolve_settings(values, overrides)
    if not resume or not (settings.output_dir / CONFIG_NAME).is_file():
        return settings
    held = read_config_file(settings.output_dir / CONFIG_NAME).get("data") or {}
    missing = {key: value for key, value in OLDER.items() if key not in held}
    given = values.get("data") or {}
    return resolve_settings({**values, "data": {**missing, **given}}, overrides) if missing else settings


def resolve_settings(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSettings:
    """Override, fill in defaults and check every key. Raises as `load_settings`."""
    given = copy.deepcopy(dict(values))
    for override in overrides:
        _apply(given, override)
    top = TopSettings.read("", {key: value for key, value in given.items() if key not in SECTIONS})
    data = DataSettings.read("data", given.get("data"))
    selection = {} if given.get("selection") is None else given["selection"]
    if not isinstance(selection, dict):
        raise ConfigError(f"selection is {show(selection)}; it must be a mapping of settings.")
    mixture = _read_mixture(given.get("mixture"), data)
    config = SelectionConfig.from_dict({"seed": top.seed, **selection})
    rules = read_rules(given.get("sources"), data, top.seed if data.seed is None else data.seed)
    check_early(given.get("training"), given.get("lora"))
    # Imports transformers and PEFT, which takes seconds: not for an error that is already known.
    from colm.lab.run.training import read_lora, read_training

    training = read_training(given.get("training"))
    return RunSettings(
        model=top.model,
        dtype=top.dtype,
        attention=top.attention,
        lora=read_lora(given.get("lora")),
        data=data,
        mixture=mixture,
        sources=rules,
        selection=config,
        training=training,
        output_dir=Path(top.output_dir),
        seed=top.seed,
    )


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"Invalid override {override!r}. Use key=value, for example selection.keep=0.25.")
    *parents, leaf = key.split(".")
    place = values
    for parent in parents:
        parent = _find_key(place, parent)
        inner = place.setdefault(parent, {})
        if inner is None:
            inner = place[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r} cannot be set: {parent} is {show(inner)}, not a mapping.")
        place = inner
    try:
        place[_find_key(place, leaf)] = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{show(override)}: the value is not valid YAML ({error}).") from error


def _find_key(place: Mapping[Any, Any], name: str) -> Any:
    """Return the mapping key that a part of a dotted key names: ``data.cap.0`` names the source 0."""
    return next((key for key in place if not isinstance(key, tuple) and source_name(key) == name), name)


def _read_mixture(values: Any, data: DataSettings) -> list[MixtureEntry]:
    hint = Annotated[list[MixtureEntry], "a list of entries such as {path: a.jsonl, source: a}"]
    entries: list[MixtureEntry] = [] if values is None else read_value("mixture", hint, values)
    if entries and data.train:
        raise ConfigError(
            "Both data.train and mixture are set; list every file under mixture, or use data.train alone."
        )
    return entries
