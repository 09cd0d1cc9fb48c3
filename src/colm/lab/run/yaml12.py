"""A YAML reader for settings: plain words as in YAML 1.2, and strict about errors."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from colm.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Text stays text: no, yes, on, off, dates, 007, 1_000 and 1:30 are not booleans, dates or numbers."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key, of which PyYAML silently takes the last."""
        if isinstance(node, yaml.MappingNode):
            self._refuse_doubled(node)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Look before merge keys put others' keys in, which the mapping's own may replace."""
        self._refuse_doubled(node)
        super().flatten_mapping(node)

    def _refuse_doubled(self, node: yaml.MappingNode) -> None:
        if getattr(node, "looked_at", False):
            return
        node.looked_at = True  # type: ignore[attr-defined]
        first: dict[Any, tuple[Any, int]] = {}
        for key_node, _ in node.value:
            key = "<<" if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML refuses it
            line = key_node.start_mark.line + 1
            if key in first:
                other, place = first[key]
                if type(other) is not type(key):  # 0 and false, 1 and 1.0: Python has one key for both
                    raise _Refused(
                        f"the keys {other!r} and {key!r} (lines {place} and {line}) count as one; quote them"
                    )
                raise _Refused(f"the key {key!r} appears twice (lines {place} and {line})")
            first[key] = key, line


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the loader, or a reader of YAML 1.1, would take for something else."""


class _Refused(yaml.YAMLError):
    """What YAML allows and settings cannot have."""


_MERGE = "tag:yaml.org,2002:merge"
_FLOAT = r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
for _tag, _pattern, _begin in (
    ("null", r"~$|null$|Null$|NULL$|$", ["~", "n", "N", ""]),
    ("bool", r"true$|True$|TRUE$|false$|False$|FALSE$", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9]\d*)$|0x[0-9a-fA-F]+$", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", r"<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _begin)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Return what one YAML document holds.

    Raises:
        ConfigError: it is not YAML, has a duplicate key, refers to itself, or contains a second document; in one line.
    """
    try:
        values = yaml.load(text, Loader=_Loader)
        _refuse_cycles(values, above=set(), done=set())
    except (yaml.YAMLError, ValueError) as error:  # numbers of thousands of digits, tags that do not fit
        raise ConfigError(" ".join(str(error).replace('"<unicode string>", ', "").split())) from error
    except RecursionError as error:
        raise ConfigError("it is nested too deeply") from error
    return values


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: the file is missing, not readable, not YAML, or not a mapping.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, not a file; give a configuration file.")
    if not path.is_file():
        raise ConfigError(f"There is no configuration file {str(path)!r}.")
    try:
        values = read_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}. Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"The configuration {path} cannot be read ({error.strerror}).") from error
    except ConfigError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} contains a {type(values).__name__}; it must be a mapping of settings.")
    return values


def write_yaml(values: Any, *, flow: bool = False) -> str:
    """Return plain values as YAML that `read_yaml` gives back, keys in their order; with `flow` as ``{a: 1}``."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=1000 if flow else 80)


def _refuse_cycles(value: Any, *, above: set[int], done: set[int]) -> None:
    """Refuse an anchor within itself: the walk through it would never end."""
    if id(value) in above:
        raise _Refused("an anchor refers to what it stands in")
    if id(value) in done or not isinstance(value, dict | list):
        return
    for part in value.values() if isinstance(value, dict) else value:
        _refuse_cycles(part, above=above | {id(value)}, done=done)
    done.add(id(value))
