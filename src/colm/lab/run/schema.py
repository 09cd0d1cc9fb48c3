"""The JSON Schema of a configuration, derived from the same hints that read it.

The schema accepts what the reader accepts, except for what only the reader checks: relations between settings, and the
range of a number that is written as text.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from peft import LoraConfig
from transformers import TrainingArguments

from colm.config import PRESETS, SelectionConfig
from colm.hints import (
    LARGEST,
    Also,
    Arm,
    Convert,
    Form,
    Range,
    arms_of,
    defaults_of,
    extras_of,
    hints_of,
    options_of,
    stem_of,
)
from colm.lab.run.arguments import LORA_DEFAULTS, OWNED, TRAINING_DEFAULTS, lora_hints, training_hints
from colm.lab.run.sections import TopSettings
from colm.typed import BOOLEANS, NUMBER, Settings

Schema = dict[str, Any]

TITLE = "A configuration of colm"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
WORDS = "|".join("".join(f"[{letter}{letter.upper()}]" for letter in word) for word in BOOLEANS)
DEFS: Schema = {
    "number_as_text": {"type": "string", "pattern": rf"^\s*{NUMBER}\s*$"},
    "boolean_as_text": {"type": "string", "pattern": rf"^\s*({WORDS})\s*$"},
}
TEXTS: dict[Any, Schema] = {
    int: {"$ref": "#/$defs/number_as_text"},
    float: {"$ref": "#/$defs/number_as_text"},
    bool: {"$ref": "#/$defs/boolean_as_text"},
}
"""What the reader converts to each type."""

TYPES: dict[Any, Schema] = {bool: {"type": "boolean"}, type(None): {"type": "null"}}


def make_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of a configuration file."""
    top = _class_schema(TopSettings)
    lora = _section(lora_hints(), describe_fields(LoraConfig), plain_defaults(LoraConfig) | LORA_DEFAULTS)
    hints = {name: hint for name, hint in training_hints().items() if name not in OWNED}
    training = _section(
        hints, describe_fields(TrainingArguments), plain_defaults(TrainingArguments) | TRAINING_DEFAULTS
    )
    for name, own, others in (("lora", lora, [{"const": False}]), ("training", training, [])):
        kept = {key: top["properties"][name][key] for key in ("description", "default")}
        top["properties"][name] = {"anyOf": [own, {"type": "null"}, *others], **kept}
    return {"$schema": DIALECT, "title": TITLE, "$defs": DEFS, **top}


def schema_of(hint: Any, *, null: bool = False) -> Schema:
    """Return the schema of the values that `typed.read_value` accepts for a hint; with `null`, null is one, too."""
    arms = [*arms_of(hint), *(arm for also in extras_of(hint, Also) for arm in arms_of(also.hint))]
    if any(arm.kind is Any for arm in arms):
        return {}
    found: list[Schema] = []
    for shape in (_is_mapping, _is_list):  # the reader takes the first alternative that is a mapping or a list
        found += [_arm_schema(arm) for arm in arms if shape(arm.kind)][:1]
    for arm in arms:
        if not (_is_mapping(arm.kind) or _is_list(arm.kind)):
            found.append(_arm_schema(arm))
            kinds = {type(option) for option in get_args(arm.kind)} if get_origin(arm.kind) is Literal else {arm.kind}
            found += [TEXTS[kind] for kind in kinds if kind in TEXTS]
    if null:
        found.append({"type": "null"})
    distinct = [one for at, one in enumerate(found) if one not in found[:at]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def describe_fields(settings: type[Any]) -> dict[str, str]:
    """Return what the fields of a dataclass are: the text below each or, from other packages, its ``help``."""
    helps = {field.name: field.metadata["help"] for field in fields(settings) if field.metadata.get("help")}
    tree = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            helps.setdefault(ast.unparse(node.target), str(below.value.value))
    return {name: " ".join(text.replace("``", "`").split()) for name, text in helps.items()}


def plain_defaults(settings: type[Any]) -> dict[str, Any]:
    """Return the defaults of a dataclass's fields as JSON has them; a section's is empty: its fields have their own."""
    return {name: {} if is_dataclass(made) else _plain(made) for name, made in defaults_of(settings).items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else getattr(value, "value", value)


def _section(
    hints: Mapping[str, Any], texts: Mapping[str, str], defaults: Mapping[str, Any], *, null: bool = True
) -> Schema:
    """Return the schema of a mapping of settings; a null keeps the default unless `null` is False."""
    properties = {}
    for name, hint in hints.items():
        about = {"description": texts[name]} if name in texts else {}
        default = {"default": defaults[name]} if name in defaults else {}
        properties[name] = {**schema_of(hint, null=null and name in defaults), **about, **default}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _class_schema(settings: type[Any]) -> Schema:
    """Return the schema of a section that a dataclass reads."""
    if settings is SelectionConfig:  # also the library's, whose fields take no null in place of a default
        section = _section(hints_of(settings), describe_fields(settings), plain_defaults(settings), null=False)
        preset = {"enum": list(PRESETS), "default": "colm", "description": "Values that the other settings change."}
        return {**section, "properties": {"preset": preset, **section["properties"]}}
    section = _section(hints_of(settings), describe_fields(settings), plain_defaults(settings))
    needed = [field.name for field in fields(settings) if field.default is field.default_factory is MISSING]
    if not (needed and issubclass(settings, Settings)):
        return section
    return section | {"required": needed}


def _is_mapping(kind: Any) -> bool:
    return kind is dict or get_origin(kind) is dict or is_dataclass(kind)


def _is_list(kind: Any) -> bool:
    return kind in (list, tuple) or get_origin(kind) in (list, tuple)


def _arm_schema(arm: Arm) -> Schema:
    kind, rule = arm
    if isinstance(rule, Convert):
        return dict(rule.schema)
    if kind in (int, float):
        return {"type": "integer" if kind is int else "number", **_bounds(kind, rule)}
    if kind is str:
        return {"type": "string", **({"pattern": rule.pattern} if isinstance(rule, Form) else {})}
    if options_of(kind):
        return _options(options_of(kind))
    if kind in TYPES:
        return TYPES[kind]
    if _is_list(kind):
        return _list_schema(kind)
    if get_origin(kind) is dict:
        key, inner = get_args(kind)
        names = [arm.rule.schema["pattern"] for arm in arms_of(key) if isinstance(arm.rule, Convert)]
        named = {"propertyNames": {"pattern": names[0]}} if names else {}
        return {"type": "object", "additionalProperties": schema_of(inner), **named}
    return _class_schema(kind) if is_dataclass(kind) and isinstance(kind, type) else {"type": "object"}


def _bounds(kind: Any, rule: Any) -> Schema:
    bounds = rule if isinstance(rule, Range) else Range(open="both")
    least = max(bounds.least, -LARGEST) if kind is int else bounds.least
    most = min(bounds.most, LARGEST) if kind is int else bounds.most
    found: Schema = {}
    if least > -LARGEST or kind is int:
        found["exclusiveMinimum" if bounds.open_least and least == bounds.least else "minimum"] = least
    if most < LARGEST or kind is int:
        found["exclusiveMaximum" if bounds.open_most and most == bounds.most else "maximum"] = most
    return found


def _options(options: list[Any]) -> Schema:
    stems = [stem for option in options if (stem := stem_of(option)) is not None]
    if not stems:
        return {"enum": options}
    plain = {"enum": [option for option in options if stem_of(option) is None]}
    return {"anyOf": [plain, *({"type": "string", "pattern": rf"^{stem}\d+$"} for stem in stems)]}


def _list_schema(kind: Any) -> Schema:
    inner = get_args(kind) or (Any,)
    if get_origin(kind) is tuple and Ellipsis not in inner:
        size = {"minItems": len(inner), "maxItems": len(inner)}
        return {"type": "array", "prefixItems": [schema_of(part) for part in inner], **size}
    return {"type": "array", "items": schema_of(inner[0])}
