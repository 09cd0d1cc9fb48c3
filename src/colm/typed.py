"""Convert values written by hand to the type that a hint asks for; the one place that reports invalid values."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from colm.errors import ConfigError, suggest

LARGEST = 2**63 - 1
"""The limit for a whole number without its own range; libraries cannot store larger ones."""

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class Range:
    """The allowed range of a number: from `least` to `most`; an open end excludes its limit.

    Infinity is allowed only if `most` is infinite and that end is closed.
    """

    least: float = -math.inf
    most: float = math.inf
    open: Literal["", "least", "most", "both"] = "most"

    def holds(self, number: float) -> bool:
        """Return whether a number is in the range; NaN never is."""
        above = number > self.least if self.open in ("least", "both") else number >= self.least
        below = number < self.most if self.open in ("most", "both") else number <= self.most
        return above and below

    def __str__(self) -> str:
        words = []
        if self.least > -LARGEST:
            words.append(f"{'above' if self.open in ('least', 'both') else 'of at least'} {self.least:,}")
        if self.most < LARGEST:
            words.append(f"{'below' if self.open in ('most', 'both') else 'at most'} {self.most:,}")
        return " and ".join(words)


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1, open="")]
"""NumPy does not accept larger seeds."""


_HINTS: dict[type[Any], dict[str, Any]] = {}


def hints_of(settings: type[Any]) -> dict[str, Any]:
    """Return the type hints of a dataclass's fields, by name."""
    if settings not in _HINTS:
        hints = get_type_hints(settings, include_extras=True)
        _HINTS[settings] = {field.name: hints[field.name] for field in fields(settings) if field.init}
    return _HINTS[settings]


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
            options = ", ".join(sorted(names)) if len(names) < 20 else "see the documentation"
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
        if value is not None or _takes_none(hints[key])
    }


def read_value(name: str, hint: Any, value: Any) -> Any:
    """Read one value: unchanged if it has the right type, else converted from a number or boolean written as text.

    Args:
        name: name of the setting, for the message.
        hint: a type, ``Annotated`` with a `Range` for numbers; unions, literals, enums, lists, tuples and mappings
            of these; or a dataclass, for a mapping of its fields.
        value: value as parsed from YAML.

    Raises:
        ConfigError: gives the setting, the value and the allowed values.
    """
    arms = _arms(hint)
    if isinstance(value, Mapping):
        for arm, _ in arms:
            if get_origin(arm) is dict:
                inner = get_args(arm)[1]
                return {key: read_value(f"{name}.{key}", inner, part) for key, part in value.items()}
            if arm is dict or arm is Any:
                return value
            if is_dataclass(arm) and isinstance(arm, type):
                return read_section(name, hints_of(arm), value)
    elif isinstance(value, list | tuple):
        for arm, _ in arms:
            if get_origin(arm) in (list, tuple):
                return _read_list(name, arm, value)
            if arm in (list, tuple, Any):
                return value
    else:
        for fit in (_fits, _converted):
            for arm, bounds in arms:
                found = fit(arm, value)
                if found is not _NOTHING and arm is Any:
                    return value
                if found is not _NOTHING:
                    return _within(name, hint, found, bounds)
    raise _wrong(name, hint, value)


def convert_known(hints: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with numbers and booleans written as text converted; all other values are unchanged."""
    read = dict(values)
    for key, hint in hints.items():
        if isinstance(read.get(key), str | float):
            arms = [arm for arm, _ in _arms(hint)]
            if all(_fits(arm, read[key]) is _NOTHING for arm in arms):
                found = [new for arm in arms if (new := _converted(arm, read[key])) is not _NOTHING]
                read[key] = found[0] if found else read[key]
    return read


def show(value: Any) -> str:
    """Format a value for a message, on one short line."""
    try:
        text = repr(value)
    except ValueError:  # a number with thousands of digits
        return "a number with thousands of digits"
    return text if len(text) <= 100 else f"{text[:80]}..."


def describe(hint: Any) -> str:
    """Describe in words what a hint asks for.

    >>> describe(Annotated[int, Range(1)] | None)
    'a whole number of at least 1 or null'
    """
    words = list(dict.fromkeys(_describe_arm(arm, bounds) for arm, bounds in _arms(hint)))
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


_NOTHING: Any = object()


def _arms(hint: Any, bounds: Range | None = None) -> list[tuple[Any, Range | None]]:
    """Return the alternatives of a hint, each with its range; next to an enum, plain strings are not accepted."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        return _arms(inner, next((extra for extra in extras if isinstance(extra, Range)), bounds))
    if get_origin(hint) in (Union, types.UnionType):
        arms = [arm for part in get_args(hint) for arm in _arms(part, bounds)]
        named = any(isinstance(arm, type) and issubclass(arm, Enum) for arm, _ in arms)
        return [arm for arm in arms if not (named and arm[0] is str)]
    return [(hint, bounds)]


def _takes_none(hint: Any) -> bool:
    return any(arm in (None, type(None), Any) for arm, _ in _arms(hint))


def _fits(arm: Any, value: Any) -> Any:
    """Return the value if it already has the type, else `_NOTHING`."""
    if arm is Any:
        return value
    if arm in (None, type(None)):
        return None if value is None else _NOTHING
    if get_origin(arm) is Literal:
        same = any(type(value) is type(option) and value == option for option in get_args(arm))
        return value if same or _has_form(arm, value) else _NOTHING
    if isinstance(arm, type) and issubclass(arm, Enum):
        return value if value in [option.value for option in arm] or isinstance(value, arm) else _NOTHING
    if arm is bool:
        return value if isinstance(value, bool) else _NOTHING
    if arm in (int, float):
        number = isinstance(value, int if arm is int else int | float) and not isinstance(value, bool)
        return value if number else _NOTHING
    if arm is str:
        return value if isinstance(value, str) and "\0" not in value else _NOTHING
    return value if isinstance(arm, type) and isinstance(value, arm) else _NOTHING


def _has_form(arm: Any, value: Any) -> bool:
    """Return whether a string is one of the options with a number in place of the brackets."""
    forms = [option for option in get_args(arm) if isinstance(option, str) and option.endswith("]")]
    return isinstance(value, str) and any(
        re.fullmatch(re.escape(form.partition("[")[0]) + r"\d+", value) for form in forms
    )


def _converted(arm: Any, value: Any) -> Any:
    """Convert text to a number or boolean if the hint asks for one, and 1e3 to a whole number."""
    if isinstance(value, str):
        if arm is bool:
            return _WORDS.get(value.strip().lower(), _NOTHING)
        if arm in (int, float) and _NUMBER.fullmatch(value.strip()) and len(value) < 100:
            text = value.strip()
            value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    if arm is int and isinstance(value, float):
        value = int(value) if value.is_integer() else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if arm in (int, float) and number else _NOTHING


def _within(name: str, hint: Any, value: Any, bounds: Range | None) -> Any:
    """Return a number if it is in its range (NaN never is); return other values unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    too_large = isinstance(value, int) and abs(value) > LARGEST
    if too_large or not (bounds or Range(open="both")).holds(value):
        raise _wrong(name, hint, value)
    return value


def _read_list(name: str, arm: Any, value: Sequence[Any]) -> list[Any]:
    inner = get_args(arm) or (Any,)
    if get_origin(arm) is tuple and Ellipsis not in inner:
        if len(value) != len(inner):
            raise ConfigError(f"{name} is {show(value)}; it must be a list of {len(inner)} items.")
        return [
            read_value(f"{name}[{at}]", hint, part) for at, (hint, part) in enumerate(zip(inner, value, strict=True))
        ]
    return [read_value(f"{name}[{at}]", inner[0], part) for at, part in enumerate(value)]


def _wrong(name: str, hint: Any, value: Any) -> ConfigError:
    arms = [arm for arm, _ in _arms(hint)]
    options = [option for arm in arms for option in _options(arm)]
    if isinstance(value, str) and options and not {int, float} & set(arms):
        listed = ", ".join(map(repr, options))
        return ConfigError(f"{name}={show(value)} is not one of {listed}.{suggest(value, map(str, options))}")
    scalar = any(arm in (int, float, bool) for arm in arms)
    joint = f"={show(value)} must be" if scalar else f" is {show(value)}; it must be"
    return ConfigError(f"{name}{joint} {describe(hint)}.")


def _options(arm: Any) -> list[Any]:
    if get_origin(arm) is Literal:
        return list(get_args(arm))
    return [option.value for option in arm] if isinstance(arm, type) and issubclass(arm, Enum) else []


def _describe_arm(arm: Any, bounds: Range | None) -> str:
    if arm in (int, float):
        return f"a {'whole ' if arm is int else ''}number {bounds or ''}".rstrip()
    if _options(arm):
        return "one of " + ", ".join(map(repr, _options(arm)))
    if get_origin(arm) in (list, tuple) or arm in (list, tuple):
        return "a list of strings" if get_args(arm) == (str,) else "a list"
    if get_origin(arm) is dict or arm is dict or is_dataclass(arm):
        return "a mapping"
    words = {bool: "true or false", str: "a string", type(None): "null", None: "null"}
    return words.get(arm, getattr(arm, "__name__", str(arm)))
