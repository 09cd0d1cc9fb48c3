"""Text stays text, and a key stands once."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from colm.errors import ConfigError
from colm.lab.run.yaml12 import read_yaml, write_yaml

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "word",
    [
        *("no", "yes", "on", "off", "y", "No", "ON", "007", "1_000", "1:30", "2020-01-01", "2020-01-01 10:00:00", "="),
        *("0o17", "1e", "e5", "+", ".", "1.2.3", "nan", "inf", "08.5", "0b1", "1,000"),
    ],
)
def test_text_stays_text(word: str) -> None:
    assert read_yaml(f"a: {word}") == {"a": word}
    assert read_yaml(f"{word}: 1") == {word: 1}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *(
            ("5", 5),
            ("-5", -5),
            ("+5", 5),
            ("0", 0),
            ("1.5", 1.5),
            ("1.", 1.0),
            (".5", 0.5),
            ("1e-5", 1e-5),
            ("2E3", 2e3),
        ),
        *(("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("0x1F", 31), (".inf", math.inf)),
    ],
)
def test_numbers_truth_values_and_null(word: str, value: Any) -> None:
    found = read_yaml(f"a: {word}")["a"]
    assert found == value
    assert type(found) is type(value)
    assert math.isnan(read_yaml("a: .nan")["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"the key 'a' appears twice \(lines 1 and 3\)"),
        ("x:\n  y:\n    a: 1\n    b: 2\n    a: 3", r"'a' appears twice \(lines 3 and 5\)"),
        ("x: {a: 1, a: 1}", "'a' appears twice"),
        ("x: {0: 1, false: 2}", r"the keys 0 and False \(lines 1 and 1\) count as one; quote them"),
        ("x: [{b: {a: 1, 'a': 2}}]", "'a' appears twice"),
        ("{1: a, 1: b}", "1 appears twice"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  b: 2\n  b: 3", r"'b' appears twice \(lines 4 and 5\)"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x", "'<<' appears twice"),
        ("--- {a: 1}\n--- {a: 2}", "expected a single document"),
        ("a: &x [*x]", "an anchor refers to what it stands in"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "1" * 5000, "4300 digits"),
        ("a:\n\t- b", "cannot start any token"),
        ("!!int abc", "invalid literal"),
        ("a: *b", "undefined alias"),
        ("{[1]: 2}", "unhashable key"),
        ("a: !!python/object:os.x 1", "could not determine a constructor"),
        ("\0", "special characters are not allowed"),
    ],
)
def test_what_is_refused_is_said_in_a_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(text)
    assert "\n" not in str(error.value)


def test_anchors_and_merge_keys_work() -> None:
    assert read_yaml("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3\ne: *x") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 3, "c": 2},
        "e": {"b": 1, "c": 2},
    }


WORDS = st.one_of(
    st.text(max_size=8),
    st.from_regex(r"[-+]?[0-9_.:]{1,6}([eE][-+]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["no", "yes", "on", "null", "~", "", "<<", "=", "007", "0x1F", "1e5", ".nan"]),
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WORDS)


@given(st.dictionaries(WORDS, st.one_of(PLAIN, st.lists(PLAIN, max_size=3), st.dictionaries(WORDS, PLAIN, max_size=3))))
def test_what_is_written_is_read_as_it_was(values: dict[str, Any]) -> None:
    assert read_yaml(write_yaml(values)) == values
    assert read_yaml(write_yaml(values, flow=True)) == values


class _Before(yaml.SafeLoader):
    """As settings were read before: YAML 1.1 with exponents."""


_Before.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("examples/*.yaml")]), ids=lambda path: path.name
)
def test_configurations_that_there_are_read_as_before(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert read_yaml(text) == yaml.load(text, Loader=_Before)
