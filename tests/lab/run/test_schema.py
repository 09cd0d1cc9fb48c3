"""The schema of a configuration accepts what the reader accepts, but for relations that only the reader checks."""

from __future__ import annotations

import json
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.hints import Also, Range, arms_of, extras_of, hints_of, options_of, stem_of
from colm.lab.cli import main
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.run.arguments import lora_hints, training_hints
from colm.lab.run.schema import describe_fields, make_schema
from colm.lab.run.sections import SECTIONS, TopSettings
from colm.lab.run.settings import resolve_settings
from colm.lab.sources.config import ClusterConfig, SourceRules

ROOT = Path(__file__).parents[3]
BASE: dict[str, Any] = {"model": "tiny", "output_dir": "out"}
SCHEMA = make_schema()
VALIDATOR = Draft202012Validator(SCHEMA)

RELATIONS = {
    "text of a number out of range": r"='\s*[-+]?[.\d][^']*' must be",
    "text of a truth value that is not an option": r"(=|is )'\s*(?i:yes|no|on|off|true|false)\s*'",
    "a whole number too large for a float": r"=-?\d{19,} must be a number",
    "keys of the same source": r"which both name the source",
    "settings of the selection that need others": r"are both set|needs? |no features|rounds away|inner products"
    r"|weigh examples|trains from|moves what|always 0|increasing steps",
    "the data and its stream": r"data\.streaming|only to streams|stream's rows|is the name of a token column"
    r"|Both data\.train|stream does not provide",
    "a range of clusters": r"least must be below most",
    "what transformers and peft refuse": r"was refused by",
    "arguments without effect": r"has no effect|leave it out|has not been tested|must be above 0; set|not valid JSON"
    r"|is set; move",
    "weights of an adapter that cannot be saved": r"not saved with the adapter|needs a pass over the data",
}
"""What only the reader checks, by the words of its message."""


def is_related(message: str) -> bool:
    return any(re.search(words, message) for words in RELATIONS.values())


def accepts(config: Any) -> bool:
    return not list(VALIDATOR.iter_errors(json.loads(json.dumps(config))))


def refusal(config: dict[str, Any]) -> str:
    """Return why the reader refuses a configuration; empty if it does not."""
    try:
        resolve_settings(config)
    except ConfigError as error:
        return str(error)
    return ""


NUMBERS = st.one_of(
    st.sampled_from([-1, 0, 1, 2, -0.5, 0.5, 1.0, -1.0, 1e3, 2**31, 2**32, 2**63 - 1]), st.integers(-3, 200)
)
TEXTS = st.one_of(
    st.sampled_from(["", " ", "a", "no", "yes", "off", "5", "-1", " 0.5 ", "1e-3", "1_0", "abc", "auto", "x.parquet"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ODD = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from(["a", "b", ""]), SCALARS, max_size=2)
)


def values_of(hint: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Return values near what a hint asks for, valid or not."""
    arms = [*arms_of(hint), *(arm for also in extras_of(hint, Also) for arm in arms_of(also.hint))]
    near = st.one_of(*(values_of_arm(arm.kind, arm.rule, depth) for arm in arms))
    return st.integers(0, 5).flatmap(lambda draw: near if draw else ODD)


def values_of_arm(kind: Any, rule: Any, depth: int) -> st.SearchStrategy[Any]:
    if options_of(kind):
        return st.sampled_from([f"{stem}4" if (stem := stem_of(option)) else option for option in options_of(kind)])
    if kind in (int, float):
        ends = [int(end) for end in (rule.least, rule.most) if abs(end) < 2**60] if isinstance(rule, Range) else []
        near = [end + change for end in ends for change in (-1, 0, 1)]
        return st.one_of(NUMBERS, st.sampled_from(near)) if near else NUMBERS
    if kind is bool:
        return st.booleans()
    if kind is str:
        return TEXTS
    if get_origin(kind) is dict:
        return st.dictionaries(TEXTS, values_of(get_args(kind)[1], depth + 1), max_size=2)
    if get_origin(kind) in (list, tuple):
        inner = [part for part in get_args(kind) if part is not Ellipsis]
        if get_origin(kind) is tuple and len(inner) > 1:
            return st.tuples(*(values_of(part, depth + 1) for part in inner)).map(list)
        return st.lists(values_of(inner[0], depth + 1), max_size=3)
    if is_dataclass(kind) and depth < 3:
        hints = hints_of(kind)  # type: ignore[arg-type]
        some = {name: values_of(hint, depth + 1) for name, hint in hints.items()}
        return st.fixed_dictionaries({}, optional=some | {"unknown": NUMBERS})
    return ODD


HINTS: dict[str, dict[str, Any]] = {
    "data": hints_of(DataSettings),
    "sources": hints_of(SourceRules),
    "selection": {**hints_of(SelectionConfig), "preset": Literal["colm", "matched", "other"]},
    "training": training_hints(),
    "lora": lora_hints(),
}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a configuration with one setting, at the top, in a section, or in an entry of the mixture."""
    section = draw(st.sampled_from([*HINTS, "mixture", "top"]))
    if section == "mixture":
        return {"mixture": draw(values_of(list[MixtureEntry]))}
    if section == "top":
        name = draw(st.sampled_from([*SECTIONS, *hints_of(TopSettings), "unknown"]))
        hint = hints_of(TopSettings).get(name)
        return {name: draw(ODD if name in (*SECTIONS, "unknown") else values_of(hint))}
    name = draw(st.sampled_from(sorted(HINTS[section])))
    return {section: {name: draw(values_of(HINTS[section][name]))}}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configurations())
def test_the_schema_accepts_what_the_reader_accepts(change: dict[str, Any]) -> None:
    config = {**BASE, **change}
    refused, accepted = refusal(config), accepts(config)
    if refused:
        assert not accepted or is_related(refused), refused
    else:
        assert accepted, [error.message for error in VALIDATOR.iter_errors(config)]


@pytest.mark.parametrize("path", sorted((*ROOT.glob("examples/*.yaml"), *ROOT.glob("recipes/*.yaml"))), ids=str)
def test_every_example_fits(path: Path) -> None:
    assert accepts(yaml.safe_load(path.read_text()))


BAD: list[dict[str, Any]] = [
    {"modle": "x"},
    {"model": ""},
    {"seed": -1},
    {"seed": 2**32},
    {"dtype": "float8"},
    {"data": {"trian": "x"}},
    {"data": {"max_length": 1}},
    {"data": {"max_length": 8.5}},
    {"data": {"cap": {"a": 0}}},
    {"data": {"columns": ["a"]}},
    {"data": {"format": "csv"}},
    {"data": {"streaming": 1}},
    {"mixture": {"path": "x"}},
    {"mixture": [{"source": "a"}]},
    {"mixture": [{"path": "x", "source": " "}]},
    {"sources": {"cluster": 1}},
    {"sources": {"cluster": {"clusters": {"least": 2}}}},
    {"sources": {"labels": "labels.csv"}},
    {"sources": {"split": {"a": {"sample": 10}}}},
    {"selection": {"keep": 0}},
    {"selection": {"keep": 1.5}},
    {"selection": {"coordinates": None}},
    {"selection": {"spsa_eps": 0}},
    {"selection": {"preset": "paper"}},
    {"selection": {"keep_schedule": [[0]]}},
    {"training": {"learning_rat": 1}},
    {"training": {"max_steps": 0}},
    {"training": {"max_grad_norm": -1}},
    {"training": {"optim": "adamw"}},
    {"training": {"prediction_loss_only": True}},
    {"training": {"seed": 1}},
    {"training": {"gradient_checkpointing_kwargs": {"reentrant": True}}},
    {"lora": 16},
    {"lora": {"r": 0}},
    {"lora": {"lora_dropout": 1}},
    {"lora": {"init_lora_weights": "pissa_niter_x"}},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_both_refuse_bad_values(change: dict[str, Any]) -> None:
    assert refusal({**BASE, **change})
    assert not accepts({**BASE, **change})


def test_both_need_a_model_and_a_folder() -> None:
    for name in BASE:
        config = {key: value for key, value in BASE.items() if key != name}
        assert f"{name} is None; it must be set to a string" in refusal(config)
        assert not accepts(config)


def test_every_setting_has_a_description() -> None:
    for kind in (TopSettings, DataSettings, MixtureEntry, SourceRules, ClusterConfig, SelectionConfig):
        assert describe_fields(kind).keys() == hints_of(kind).keys(), kind
    keep = SCHEMA["properties"]["selection"]["anyOf"][0]["properties"]["every"]
    assert keep["description"].startswith("Run the selection pass every `every` steps")
    assert keep["default"] == 1


def test_the_command_prints_or_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SCHEMA))
    path = tmp_path / "schema.json"
    assert main(["schema", "--out", str(path)]) == 0
    Draft202012Validator.check_schema(json.loads(path.read_text()))
    assert main(["schema", "--out", str(path)]) == 0
    path.write_text("mine")
    assert main(["schema", "--out", str(path)]) == 2
    assert "was not written by colm" in capsys.readouterr().err
    assert path.read_text() == "mine"
