"""The library does not know the lab, imports go one way, and each power and each helper of tests has one owner."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from colm.__main__ import LAB
from colm.lab.cli import COMMANDS

REPOSITORY = Path(__file__).parents[1]
ROOT = REPOSITORY / "src" / "colm"

LAYERS = [
    {"errors", "types", "hints", "typed", "config_checks", "token_features"},
    {"step"},
    {"config_parts", "config", "losses", "mixing", "models", "ordering", "row_features"},
    {"features", "select"},
    {"picking", "reuse", "lean", "joined", "noise"},
    {"choosing"},
    {"balanced"},
    {"selector", "sampler"},
    {"trainers"},
    {"integrations"},  # old names
    {"lab.answers", "lab.intervals"},
    {"lab.data"},
    {"lab.sources", "lab.evaluate"},
    {"lab.run"},
    {"lab.plan", "lab.report", "lab.study", "lab.probe"},
    {"lab.cli"},
]
"""A module may import from layers before its own, and from its own package; the lab begins behind the library."""

SIBLINGS = {("lab.sources", "lab.evaluate"), ("lab.evaluate", "lab.sources"), ("lab.plan", "lab.report")}
"""Packages of one layer that must not know each other."""

LIBRARY_USES = {"accelerate", "datasets", "numpy", "pyarrow", "torch", "transformers"}
"""What `dependencies` of pyproject.toml installs."""

OPTIONAL = {"trl", "liger_kernel", "tokenizers"}
"""Of the library: two extras, and a package that transformers brings."""

PUBLIC = {
    "colm": [
        "CoresetSelector",
        "LeanHead",
        "SelectionConfig",
        "CoresetTrainer",
        "CoresetSFTTrainer",
        "Coreset",
        "example_mean",
        "MixtureBatchSampler",
        "pack_by_source",
        "use_mixture_sampler",
    ],
    "colm.sampler": ["MixtureBatchSampler"],
    "colm.features.exact": ["value_gradients"],
    "colm.features.spsa": ["spsa_gradients"],
    "colm.select.facility": ["facility_location"],
    "colm.select.quota": ["source_quotas"],
    "colm.lean": ["LeanHead"],
    "colm.losses": ["example_mean", "mean_over_examples"],
    "colm.models": ["load_model"],
    "colm.trainers.preemption": ["StopOnSignal"],
    "colm.integrations.preemption": ["StopOnSignal"],
}
"""Import paths that documents and messages name."""


def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(tree: ast.AST, *, run: bool = False) -> list[str]:
    """Return what is imported, also within functions; with `run`, without what only type checkers read."""
    found = []
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        if not (run and is_for_types(node)):
            todo += ast.iter_child_nodes(node)
    return found


def package(name: str) -> str:
    return ".".join(name.split(".")[: 2 if name.startswith("lab.") else 1])


def test_imports_go_one_way() -> None:
    layer = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    for name, tree in modules().items():
        own = package(name)
        if own in ("__init__", "__main__", "lab"):
            continue
        assert own in layer, f"{name} has no layer; add it to LAYERS"
        for target in imports(tree, run=True):
            other = package(target.removeprefix("colm."))
            if not target.startswith("colm.") or other in (own, "__version__"):
                continue
            assert layer[other] <= layer[own], f"{name} imports {target}, which comes later"
            assert (own, other) not in SIBLINGS, f"{name} imports its sibling {target}"


def test_no_module_needs_itself() -> None:
    known = modules()
    needs = {}
    for name, tree in known.items():
        targets = {target.removeprefix("colm.") for target in imports(tree, run=True) if target.startswith("colm.")}
        found = {target if target in known else target.rpartition(".")[0] for target in targets}
        needs[name] = {target for target in found if target in known and target != name}
    while free := {name for name, targets in needs.items() if not targets}:
        needs = {name: targets - free for name, targets in needs.items() if name not in free}
    assert needs == {}


def test_the_library_imports_neither_the_lab_nor_what_only_the_lab_installs() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {"scikit-learn": "sklearn", "pyyaml": "yaml"}

    def modules_of(requirements: list[str]) -> set[str]:
        installed = {line.partition(">=")[0] for line in requirements}
        return {names.get(name, name) for name in installed}

    assert modules_of(settings["dependencies"]) == LIBRARY_USES
    assert modules_of(settings["optional-dependencies"]["lab"]) == set(LAB)
    allowed = LIBRARY_USES | OPTIONAL | sys.stdlib_module_names
    for name, tree in modules().items():
        outside = {target.partition(".")[0] for target in imports(tree)} - {"colm"}
        if name.startswith("lab"):
            optional = {"lm_eval", "reasoning_gym", "sentence_transformers"}
            optional |= {"huggingface_hub", "markupsafe"}  # come with transformers and jinja2
            assert outside <= allowed | set(LAB) | optional, name
        elif name != "__main__":
            assert outside <= allowed, name
            assert not any(target.startswith("colm.lab") for target in imports(tree)), f"{name} imports the lab"


def test_each_command_is_one_file_that_knows_no_other() -> None:
    known = modules()
    for name in COMMANDS:
        tree = known[f"lab.cli.{name}"]
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {"register", "run"} <= functions, name
        others = {f"colm.lab.cli.{other}" for other in COMMANDS}
        assert not any(target.startswith(f"{other}.") for target in imports(tree) for other in others), name


def test_public_names_are_there_without_the_lab() -> None:
    script = "import sys, warnings; sys.modules['colm.lab'] = None; warnings.simplefilter('ignore')\n"
    script += "".join(f"from {module} import {', '.join(names)}\n" for module, names in PUBLIC.items())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_old_name_says_the_new_one() -> None:
    sys.modules.pop("colm.integrations.preemption", None)
    with pytest.warns(DeprecationWarning, match=r"is now colm\.trainers\.preemption; the old name goes with version"):
        import colm.integrations.preemption  # noqa: F401


def test_the_command_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("colm.__main__.LAB", ("sys", "not_there", "nor_this"))
    from colm.__main__ import main

    assert main() == 2
    assert "(not_there, nor_this); install them with pip install 'colm[lab]'" in capsys.readouterr().err


def test_each_power_has_one_owner() -> None:
    owners = {
        # The plan follows fully_shard, which is made of hooks, on a model without values.
        "register_forward": lambda name: name in ("features.capture", "lab.plan.fully_shard"),
        "register_full_backward": lambda name: name == "features.capture",
        "register_hook": lambda name: name in ("features.capture", "lab.plan.fully_shard"),
        "torch.distributed": lambda name: name in ("step.ranks", "step.sharding"),
        "Console(": lambda name: name == "lab.cli.console",
    }
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        code = path.read_text()
        for word, owned in owners.items():
            if word in code:
                assert owned(name), f"{name} uses {word}"
    for name, tree in modules().items():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if any(isinstance(call, ast.Name) and call.id == "print" for call in calls):
            assert name.startswith("lab.cli") or name == "__main__", f"{name} prints"
        uses_trainer = any(target.startswith(("transformers.Trainer", "trl")) for target in imports(tree))
        if uses_trainer and not name.startswith("lab."):  # a run names TrainingArguments
            assert name.startswith("trainers"), f"{name} imports the Trainer"


def test_what_tests_share_is_in_support() -> None:
    """No file imports from a test or from conftest; the tests for a GPU stand alone."""
    tests = REPOSITORY / "tests"
    for path in [*tests.rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]:
        home = "tests.gpu." if path.is_relative_to(tests / "gpu") else "tests.support."
        for target in imports(ast.parse(path.read_text())):
            parts = target.split(".")
            assert parts[0] != "tests" or target.startswith(home), f"{path} imports {target}; move it to {home}"
            assert not any(part == "conftest" or part.startswith("test_") for part in parts), f"{path} imports {target}"
