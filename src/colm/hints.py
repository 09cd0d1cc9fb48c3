"""What the type hint of a setting can say beyond its type: ranges, forms, conversions, and words for messages.

A string among the metadata of an `Annotated` hint describes its values in messages: ``Annotated[int, "a prime"]``.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1
"""The limit for a whole number without its own range; libraries cannot store larger ones."""


@dataclass(frozen=True)
class Range:
    """The allowed range of a number: from `least` to `most`; an open end excludes its limit.

    Infinity is allowed only if `most` is infinite and that end is closed.
    """

    least: float = -math.inf
    most: float = math.inf
    open: Literal["", "least", "most", "both"] = "most"

    @property
    def open_least(self) -> bool:
        """Whether `least` itself is excluded."""
        return self.open in ("least", "both")

    @property
    def open_most(self) -> bool:
        """Whether `most` itself is excluded."""
        return self.open in ("most", "both")

    def holds(self, number: float) -> bool:
        """Return whether a number is in the range; NaN never is."""
        above = number > self.least if self.open_least else number >= self.least
        below = number < self.most if self.open_most else number <= self.most
        return above and below

    def __str__(self) -> str:
        words = []
        if self.least > -LARGEST:
            words.append(f"{'above' if self.open_least else 'of at least'} {self.least:,}")
        if self.most < LARGEST:
            words.append(f"{'below' if self.open_most else 'at most'} {self.most:,}")
        return " and ".join(words)


@dataclass(frozen=True)
class Form:
    """The form of a string."""

    pattern: str  # found anywhere in the string
    words: str  # what such a string is, for messages


@dataclass(frozen=True, eq=False)
class Convert:
    """A function that reads a value, and one that reads a mapping's keys; both get the setting's name first.

    The functions raise ConfigError for values that they do not accept.
    """

    value: Callable[[str, Any], Any]
    keys: Callable[[str, Mapping[Any, Any]], Mapping[Any, Any]]
    schema: Mapping[str, Any]  # JSON Schema of the values


@dataclass(frozen=True)
class Also:
    """A short form of a value, which is spelled out before the value is read."""

    hint: Any


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1, open="")]
"""NumPy does not accept larger seeds."""

Fraction = Annotated[float, Range(0, 1, open="")]
Positive = Annotated[float, Range(0, open="both")]
Filled = Annotated[str, Form(".", "a string that is not empty")]

_HINTS: dict[type[Any], dict[str, Any]] = {}


def hints_of(settings: type[Any]) -> dict[str, Any]:
    """Return the type hints of a dataclass's fields, by name."""
    if settings not in _HINTS:
        hints = get_type_hints(settings, include_extras=True)
        _HINTS[settings] = {field.name: hints[field.name] for field in fields(settings) if field.init}
    return _HINTS[settings]


def defaults_of(settings: type[Any]) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields, by name; a field that must be given has none."""
    made = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(settings)
        if field.init
    }
    return {name: value for name, value in made.items() if value is not MISSING}


class Arm(NamedTuple):
    """One of the alternatives of a hint."""

    kind: Any  # a type, or a generic such as list[int]
    rule: Range | Form | Convert | None


def arms_of(hint: Any) -> list[Arm]:
    """Return the alternatives of a hint, each with its rule; next to an enum, plain strings are not accepted."""
    if id(hint) not in _ARMS:  # equal unions may differ in order, so they cannot be keys
        _ARMS[id(hint)] = hint, _find_arms(hint, None)
    return _ARMS[id(hint)][1]


_ARMS: dict[int, tuple[Any, list[Arm]]] = {}


def _find_arms(hint: Any, rule: Range | Form | Convert | None) -> list[Arm]:
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        return _find_arms(inner, next((extra for extra in extras if isinstance(extra, Range | Form | Convert)), rule))
    if get_origin(hint) in (Union, types.UnionType):
        arms = [arm for part in get_args(hint) for arm in _find_arms(part, rule)]
        named = any(is_enum(arm.kind) for arm in arms)
        return [arm for arm in arms if not (named and arm.kind is str)]
    return [Arm(type(None) if hint is None else hint, rule)]


def extras_of(hint: Any, kind: type[Any]) -> list[Any]:
    """Return the metadata of a kind in a hint that is `Annotated` as a whole."""
    return [extra for extra in get_args(hint)[1:] if isinstance(extra, kind)] if get_origin(hint) is Annotated else []


def takes_none(hint: Any) -> bool:
    """Return whether a hint accepts None."""
    return any(arm.kind in (type(None), Any) for arm in arms_of(hint))


def is_enum(kind: Any) -> bool:
    """Return whether an arm is an enumeration."""
    return isinstance(kind, type) and issubclass(kind, Enum)


def options_of(kind: Any) -> list[Any]:
    """Return the values of a literal or an enumeration; none for other arms."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [option.value for option in kind] if is_enum(kind) else []


def stem_of(option: Any) -> str | None:
    """Return what comes before the number in an option such as ``niter_[number of iterations]``, else None."""
    return option.partition("[")[0] if isinstance(option, str) and option.endswith("]") else None
