"""Read the fields of other packages' dataclasses from their source: importing transformers and PEFT takes seconds."""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal


@cache
def training_fields() -> dict[str, Any]:
    """Return the type hint of each field of `transformers.TrainingArguments`, with its choices; `Any` if not known.

    Nothing is returned if the source is not as expected; then only the import tells.
    """
    modules = _parse("transformers", "training_args.py", "trainer_utils.py")
    # Written as "Enum | str", but transformers refuses any other text.
    choices = {f"{name} | str": Literal[values] for name, values in _enums(modules)}
    return _fields(modules, {"TrainingArguments": []}, choices)


@cache
def lora_fields() -> dict[str, Any]:
    """Return the type hint of each field of `peft.LoraConfig`, as `training_fields` does."""
    modules = _parse("peft", "tuners/lora/config.py", "config.py")
    bases = {"PeftConfigMixin": ["PushToHubMixin"], "PeftConfig": ["PeftConfigMixin"], "LoraConfig": ["PeftConfig"]}
    return _fields(modules, bases, {})


def _parse(package: str, *files: str) -> list[ast.stmt]:
    """Return the statements of a package's files, without importing it."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        return []
    paths = [Path(found.submodule_search_locations[0], name) for name in files]
    return [each for path in paths if path.is_file() for each in ast.parse(path.read_text(encoding="utf-8")).body]


def _enums(statements: Iterable[ast.stmt]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names and values of enumerations of text."""
    for node in statements:
        if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["ExplicitEnum"]:
            values = [line.value for line in node.body if isinstance(line, ast.Assign)]
            yield node.name, tuple(str(value.value) for value in values if isinstance(value, ast.Constant))


def _fields(statements: Iterable[ast.stmt], bases: dict[str, list[str]], known: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of classes with the given bases; none if a class is missing or has others.

    Args:
        statements: the modules.
        bases: class -> its bases as written, base classes first.
        known: annotation as written -> hint.
    """
    classes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}
    found: dict[str, Any] = {}
    for name, expected in bases.items():
        node = classes.get(name)
        if node is None or [ast.unparse(base) for base in node.bases] != expected:
            return {}
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = ast.unparse(line.annotation)
                found[line.target.id] = known[text] if text in known else _evaluate(text)
    return found


def _evaluate(text: str) -> Any:
    try:
        return eval(
            text, {}, vars(typing)
        )  # an installed package's own annotation, which its import would evaluate too
    except Exception:  # names that only the package has
        return Any
