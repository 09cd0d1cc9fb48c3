"""Values as written are converted to the hinted type, or one line says what is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from colm.errors import ConfigError
from colm.hints import Count, Form, Range
from colm.typed import Settings, read_section, read_value


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    size: int = 1


@pytest.mark.parametrize(
    ("hint", "given", "read"),
    [
        (int, 5, 5),
        (int, "5", 5),
        (int, 1e3, 1000),
        (int, "1e3", 1000),
        (float, "1e-5", 1e-5),
        (float, 5, 5),
        (bool, "yes", True),
        (bool, "off", False),
        (bool, "No", False),
        (str, "no", "no"),
        (int | str, "5", "5"),
        (float | None, None, None),
        (float | None, "0.5", 0.5),
        (str | bool, True, True),
        (Color | str, "red", "red"),
        (Literal["a", "b"] | bool, "yes", True),
        (Literal["pissa_niter_[number of iters]"], "pissa_niter_16", "pissa_niter_16"),
        (Literal[-1] | Count, -1, -1),
        (Literal[-1] | Count, -1.0, -1),
        (Literal[-1] | Count, "-1", -1),
        (Literal[False], "no", False),
        (list[int] | int | None, ["1", 2], [1, 2]),
        (list[tuple[int, int]], [[0, 4]], [[0, 4]]),
        (dict[Any, Count] | Count, {0: "3", "a": 4}, {0: 3, "a": 4}),
        (Inner | dict | None, {"size": "2"}, {"size": 2}),
        (Annotated[float, Range(0, open="")], math.inf, math.inf),
        (Any, object, object),
        (Count, np.int64(3), 3),
        (float, np.float64(0.5), 0.5),
        (bool, np.True_, True),
    ],
)
def test_values_that_are_read(hint: Any, given: Any, read: Any) -> None:
    found = read_value("x", hint, given)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("hint", "given", "message"),
    [
        (int, "abc", "x='abc' must be a whole number."),
        (int, 1.5, "x=1.5 must be a whole number."),
        (int, True, "x=True must be a whole number."),
        (int, 10**20, "must be a whole number."),
        (Count, 0, "x=0 must be a whole number of at least 1."),
        (float, math.nan, "x=nan must be a number."),
        (float, math.inf, "x=inf must be a number."),
        (float, "nan", "x='nan' must be a number."),
        (float, "1_0", "x='1_0' must be a number."),
        (Annotated[float, Range(0, 1)], 1, "x=1 must be a number of at least 0 and below 1."),
        (Annotated[float, Range(0, 1, open="least")], 0, "x=0 must be a number above 0 and at most 1."),
        (Count | None, "", "x='' must be a whole number of at least 1 or null."),
        (Literal[-1] | Count, 0, "x=0 must be one of -1 or a whole number of at least 1."),
        (bool, 1, "x=1 must be true or false."),
        (str, 5, "x is 5; it must be a string."),
        (str, "a\0b", r"x is 'a\\x00b'; it must be a string."),
        (Color | str, "rde", "x='rde' is not one of 'red', 'blue'. Did you mean 'red'?"),
        (Literal["a", "b"], 5, "x is 5; it must be one of 'a', 'b'."),
        (Literal["niter_[number]"], "niter_x", "x='niter_x' is not one of"),
        (list[str], "abc", "x is 'abc'; it must be a list of strings."),
        (list[str], ["a", 5], r"x\[1\] is 5; it must be a string."),
        (dict[Any, Count], {"a": -1}, "x.a=-1 must be a whole number of at least 1."),
        (dict[str, Any] | None, [1], r"x is \[1\]; it must be a mapping or null."),
        (list[tuple[int, int]], [[1]], r"x\[0\] is \[1\]; it must be a list of 2 items."),
        (Inner, {"sise": 1}, "Unknown setting 'sise' in x. Did you mean 'size'"),
    ],
)
def test_values_that_are_wrong(hint: Any, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_value("x", hint, given)


def test_a_number_that_python_cannot_print_is_still_reported() -> None:
    with pytest.raises(ConfigError, match="x=a number with thousands of digits must be a whole number"):
        read_value("x", int, 10**5000)


def test_a_section_drops_nulls_for_settings_that_cannot_be_null() -> None:
    hints = {"a": int, "b": int | None}
    assert read_section("s", hints, {"a": None, "b": None}) == {"b": None}
    assert read_section("s", hints, None) == {}
    with pytest.raises(ConfigError, match="s is 5; it must be a mapping of settings"):
        read_section("s", hints, 5)
    with pytest.raises(ConfigError, match="Unknown setting 7 in s. .*Known: a, b"):
        read_section("s", hints, {7: 1})


@dataclass(frozen=True)
class Pair(Settings):
    least: Count
    most: Annotated[Count | None, "a count, or null"] = None


@dataclass(frozen=True)
class Named(Settings):
    name: Annotated[str, Form("^[a-z]+$", "lower-case letters")] = "a"
    pairs: dict[str, Pair] | None = None


def test_a_dataclass_of_settings_reads_its_values_wherever_it_is_made() -> None:
    read = Named.read("s", {"name": "b", "pairs": {"x": {"least": "3"}}})
    assert read == Named("b", {"x": Pair(3)})
    assert Named(pairs={"x": {"least": 3}}) == Named("a", {"x": Pair(3)})
    assert Named.read("s", None) == Named()
    for values, message in (
        ({"name": "B"}, "s.name is 'B'; it must be lower-case letters"),
        ({"pairs": {"x": {}}}, "s.pairs.x.least=None must be a whole number of at least 1"),
        ({"pairs": {"x": {"least": None}}}, "s.pairs.x.least=None must"),
        ({"pairs": {"x": {"least": 1, "most": 0}}}, "s.pairs.x.most=0 must be a count, or null"),
        ({"pairs": {"x": 5}}, "s.pairs.x is 5; it must be a mapping"),
        ({"nme": "a"}, "Unknown setting 'nme' in s. Did you mean 'name'"),
        (5, "s is 5; it must be a mapping of settings"),
    ):
        with pytest.raises(ConfigError, match=message):
            Named.read("s", values)
    with pytest.raises(ConfigError, match="least=0 must be a whole number of at least 1"):
        Pair(least=0)
