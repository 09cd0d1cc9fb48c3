"""Convert values written by hand to the type that a hint asks for; the one place that reports invalid values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from colm.errors import ConfigError, suggest
from colm.hints import (
    LARGEST,
    Arm,
    Convert,
    Form,
    Range,
    arms_of,
    extras_of,
    hints_of,
    is_enum,
    options_of,
    stem_of,
    takes_none,
)

NUMBER = r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
"""The pattern of a number written as text."""

BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}

S = TypeVar("S", bound="Settings")


class Settings:
    """Base of dataclasses that hold settings: every value is read by the hint of its field.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(self, name, read_value(name, hint, getattr(self, name)))

    @classmethod
    def read(cls: type[S], section: str, values: Any) -> S:
        """Make the settings from a section of a file. Raises as `read_section`, and if a needed key is missing."""
        given = read_section(section, hints_of(cls), values)
        for field in fields(cls):  # type: ignore[arg-type]  # a dataclass
            if field.name not in given and field.default is field.default_factory is MISSING:
                raise _wrong(f"{section}.{field.name}".lstrip("."), hints_of(cls)[field.name], None)
        return cls(**given)


def check_keys(values: Mapping[Any, Any], known: Iterable[str], place: str = "", *, kind: str = "setting") -> None:
    """Reject unknown keys.

    Args:
        values: a mapping whose keys are checked.
        known: the known keys.
        place: text after the key in the message, such as ``in data``.
        kind: what a key is called in the message.

    Raises:
        ConfigError: a key is unknown; suggests the closest known key.
    """
    names = list(known)
    for key in values:
        if key not in names:
            where = f" {place}" if place else ""
            options = ", ".join(sorted(names)) if len(names) < 40 else "see the documentation"
            raise ConfigError(f"Unknown {kind} {key!r}{where}.{suggest(str(key), names)} Known: {options}.")


def read_section(section: str, hints: Mapping[str, Any], values: Any, place: str = "") -> dict[str, Any]:
    """Read a mapping of settings.

    Args:
        section: section name, such as ``data``; empty at the top level of a file.
        hints: the type hint of each setting.
        values: values as written; None for an empty section.
        place: text for the section in the message about unknown keys.

    Returns:
        The given settings. A null for a setting that does not allow null is dropped, so that its default applies.

    Raises:
        ConfigError: not a mapping, an unknown key, or a value with the wrong type or out of range.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} is {show(values)}; it must be a mapping of settings.")
    check_keys(values, hints, place or (f"in {section}" if section else ""))
    return {
        key: read_value(f"{section}.{key}" if section else key, hints[key], value)
        for key, value in values.items()
        if value is not None or takes_none(hints[key])
    }


def read_value(name: str, hint: Any, value: Any) -> Any:
    """Read one value: unchanged if it has the right type, else converted from a number or boolean written as text.

    Args:
        name: name of the setting, for the message.
        hint: a type, with a rule of `colm.hints` in ``Annotated``; unions, literals, enums, lists, tuples and mappings
            of these; or a dataclass, for a mapping of its fields, of which `Settings` become instances.
        value: value as parsed from YAML.

    Raises:
        ConfigError: gives the setting, the value and the allowed values.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # of NumPy or torch: neither a Python int nor a value that YAML can hold
    arms = arms_of(hint)
    for arm in arms:
        if isinstance(arm.rule, Convert) and not (value is None and takes_none(hint)):
            return arm.rule.value(name, value)
    if isinstance(value, Mapping):
        for kind, _ in arms:
            if get_origin(kind) is dict:
                return _read_mapping(name, kind, value)
            if kind is dict or kind is Any:
                return value
            if isinstance(kind, type) and issubclass(kind, Settings):
                return kind.read(name, value)
            if is_dataclass(kind) and isinstance(kind, type):
                return read_section(name, hints_of(kind), value)
    elif isinstance(value, list | tuple):
        for kind, _ in arms:
            if get_origin(kind) in (list, tuple):
                return _read_list(name, kind, value)
            if kind in (list, tuple, Any):
                return value
    else:
        for fit in (_fits, _converted):
            for kind, rule in arms:
                found = fit(kind, value)
                if found is not _NOTHING and (kind is Any or _allows(rule, found)):
                    return found
                if found is not _NOTHING:
                    raise _wrong(name, hint, value)
    raise _wrong(name, hint, value)


def show(value: Any) -> str:
    """Format a value for a message, on one short line."""
    try:
        text = repr(value)
    except ValueError:  # a number with thousands of digits
        return "a number with thousands of digits"
    return text if len(text) <= 100 else f"{text[:80]}..."


def describe(hint: Any) -> str:
    """Describe in words what a hint asks for.

    >>> describe(int | None)
    'a whole number or null'
    """
    given = extras_of(hint, str)
    words = given or list(dict.fromkeys(_describe_arm(arm) for arm in arms_of(hint)))
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


_NOTHING: Any = object()


def _fits(kind: Any, value: Any) -> Any:
    """Return the value if it already has the type, else `_NOTHING`."""
    if kind is Any:
        return value
    if get_origin(kind) is Literal:
        same = any(type(value) is type(option) and value == option for option in get_args(kind))
        return value if same or _has_stem(kind, value) else _NOTHING
    if is_enum(kind):
        return value if value in options_of(kind) or isinstance(value, kind) else _NOTHING
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return value if number else _NOTHING
    if kind is str:
        return value if isinstance(value, str) and "\0" not in value else _NOTHING
    return value if isinstance(kind, type) and isinstance(value, kind) else _NOTHING


def _has_stem(kind: Any, value: Any) -> bool:
    """Return whether a string is one of the options with a number in place of the brackets."""
    stems = [stem for option in get_args(kind) if (stem := stem_of(option)) is not None]
    return isinstance(value, str) and any(re.fullmatch(re.escape(stem) + r"\d+", value) for stem in stems)


def _converted(kind: Any, value: Any) -> Any:
    """Convert text to a number or boolean if the hint asks for one, and 1e3 to a whole number."""
    if get_origin(kind) is Literal:
        found = [_converted(type(option), value) for option in get_args(kind) if isinstance(option, bool | int)]
        return next((one for one in found if one is not _NOTHING and _fits(kind, one) is not _NOTHING), _NOTHING)
    if isinstance(value, str):
        if kind is bool:
            return BOOLEANS.get(value.strip().lower(), _NOTHING)
        if kind in (int, float) and re.fullmatch(NUMBER, value.strip()) and len(value) < 100:
            text = value.strip()
            value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    if kind is int and isinstance(value, float):
        value = int(value) if value.is_integer() else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if kind in (int, float) and number else _NOTHING


def _allows(rule: Range | Form | Convert | None, value: Any) -> bool:
    """Return whether a number is in its range (NaN never is), and a string of its form; other values always are."""
    if isinstance(value, str):
        return not isinstance(rule, Form) or re.search(rule.pattern, value) is not None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    too_large = isinstance(value, int) and abs(value) > LARGEST
    return not too_large and (rule if isinstance(rule, Range) else Range(open="both")).holds(value)


def _read_mapping(name: str, kind: Any, value: Mapping[Any, Any]) -> dict[Any, Any]:
    key_hint, inner = get_args(kind)
    for arm in arms_of(key_hint):
        if isinstance(arm.rule, Convert):
            value = arm.rule.keys(name, value)
    return {key: read_value(f"{name}.{key}", inner, part) for key, part in value.items()}


def _read_list(name: str, kind: Any, value: Sequence[Any]) -> list[Any]:
    inner = get_args(kind) or (Any,)
    if get_origin(kind) is tuple and Ellipsis not in inner:
        if len(value) != len(inner):
            raise ConfigError(f"{name} is {show(value)}; it must be a list of {len(inner)} items.")
        return [
            read_value(f"{name}[{at}]", hint, part) for at, (hint, part) in enumerate(zip(inner, value, strict=True))
        ]
    return [read_value(f"{name}[{at}]", inner[0], part) for at, part in enumerate(value)]


def _wrong(name: str, hint: Any, value: Any) -> ConfigError:
    kinds = [arm.kind for arm in arms_of(hint)]
    options = [option for kind in kinds for option in options_of(kind)]
    hinted = suggest(value, map(str, options)) if isinstance(value, str) else ""
    if isinstance(value, str) and options and not {int, float} & set(kinds) and not extras_of(hint, str):
        return ConfigError(f"{name}={show(value)} is not one of {', '.join(map(repr, options))}.{hinted}")
    scalar = any(kind in (int, float, bool) for kind in kinds)
    joint = f"={show(value)} must be" if scalar else f" is {show(value)}; it must be"
    return ConfigError(f"{name}{joint} {describe(hint)}.{hinted}")


def _describe_arm(arm: Arm) -> str:
    kind, rule = arm
    if kind in (int, float):
        return f"a {'whole ' if kind is int else ''}number {rule or ''}".rstrip()
    if isinstance(rule, Form):
        return rule.words
    if options_of(kind):
        return "one of " + ", ".join(map(repr, options_of(kind)))
    if get_origin(kind) in (list, tuple) or kind in (list, tuple):
        return "a list of strings" if get_args(kind) == (str,) else "a list"
    if get_origin(kind) is dict or kind is dict or is_dataclass(kind):
        return "a mapping"
    words = {bool: "true or false", str: "a string", type(None): "null"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
