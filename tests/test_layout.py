"""Imports go one way, and each outside power has one owner."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "colm"

LAYERS = [
    {"types", "errors", "config", "config_checks", "schedule", "sources", "stages", "values", "typed", "yaml12"}
    | {"transfer"},
    {"batch", "losses", "gather", "sharding", "record", "methods", "answers", "sandbox"},
    {"features", "select", "facts", "exchange", "data", "models", "adapters", "state"},
    {"picking", "survey", "cluster", "reuse"},
    {"selector"},
    {"replay", "plan"},
    {"integrations", "report", "evaluate"},
    {"cli"},
]
"""A module may import from layers before its own, and from its own package."""

SIBLINGS = {
    ("facts", "features"),
    ("features", "select"),
    ("select", "features"),
    ("integrations", "report"),
    ("evaluate", "report"),
    ("report", "evaluate"),
}
"""Stages of one layer that must not know each other."""

ONLY = {
    "report": {"record", "types", "errors", "survey", "cluster", "sources", "values"},
    "survey": {"config", "errors", "select", "sources", "values"},
    "cluster": {"batch", "data", "errors", "record", "sources", "typed", "values"},
}
"""Packages that know of no more than these."""


def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


def imports(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_imports_go_one_way() -> None:
    layer = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    for name, tree in modules().items():
        top = name.partition(".")[0]
        if top in ("__init__", "__main__"):
            continue
        assert top in layer, f"{name} has no layer; add it to LAYERS"
        for target in imports(tree):
            if not target.startswith("colm."):
                continue
            other = target.split(".")[1]
            if other in (top, "__version__"):
                continue
            assert layer[other] <= layer[top], f"{name} imports {target}, which comes later"
            assert (top, other) not in SIBLINGS, f"{name} imports its sibling {target}"
            assert other in ONLY.get(top, {other}), f"{name} imports {target}, which it has no need of"


def test_each_power_has_one_owner() -> None:
    owners = {
        "register_forward": lambda name: name == "features.capture",
        "register_full_backward": lambda name: name == "features.capture",
        "register_hook": lambda name: name == "features.capture",
        "torch.distributed": lambda name: name in ("gather", "sharding"),
        "Console(": lambda name: name == "cli.console",
    }
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        code = path.read_text()
        for word, owned in owners.items():
            if word in code:
                assert owned(name), f"{name} uses {word}"
    for name, tree in modules().items():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Name) and call.id == "print" for call in calls):
            assert name.startswith("cli") or name == "__main__", f"{name} prints"
        uses_trainer = any(target.startswith(("transformers.Trainer", "trl")) for target in imports(tree))
        if uses_trainer and not name.startswith("cli"):  # the command line names TrainingArguments
            assert name.startswith("integrations"), f"{name} imports the Trainer"
