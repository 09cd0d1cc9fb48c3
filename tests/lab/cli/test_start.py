"""What a command imports before it has to: nothing that takes seconds."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.reports import write_run

import colm
from colm.lab.cli import COMMANDS

HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "pandas", "pyarrow", "scipy", "sklearn"}
HEAVY |= {"matplotlib", "jinja2", "reasoning_gym", "trl", "bitsandbytes", "shtab", "numpy"}


def imported(code: str, *arguments: str, status: int = 0) -> set[str]:
    """Return the modules that a process has imported at its end."""
    script = f"import atexit, sys\natexit.register(lambda: print(*sys.modules))\n{code}"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def imported_by(*arguments: str, status: int = 0) -> set[str]:
    return imported("from colm.__main__ import main\nsys.exit(main())", *arguments, status=status)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_a_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported_by(*arguments) & HEAVY == set()


def test_colm_itself_is_imported_on_use() -> None:
    assert imported("import colm; colm.SelectionConfig, colm.ConfigError, colm.StepRecord") & HEAVY == set()
    found = imported("from colm import CoresetSelector, LeanHead")
    assert "torch" in found
    assert "torch._dynamo" not in found  # takes as long


def test_the_names_of_colm() -> None:
    assert set(colm.__all__) <= set(dir(colm))
    assert all(getattr(colm, name) is not None for name in colm.__all__)
    assert colm.losses.example_mean is colm.example_mean
    assert pickle.loads(pickle.dumps(colm.SelectionConfig(keep=0.25))) == colm.SelectionConfig(keep=0.25)
    with pytest.raises(AttributeError, match="module 'colm' has no attribute 'Selector'"):
        _ = colm.Selector


def test_a_report_reads_files_alone(tmp_path: Path) -> None:
    found = imported_by("report", str(write_run(tmp_path / "run", steps=10)))
    assert found & {"torch", "transformers", "peft", "datasets", "accelerate", "pandas", "scipy", "sklearn"} == set()
    assert (tmp_path / "run" / "report.html").is_file()


TRAIN = ("train",)
WRONG = (
    *("dat.train=demo", "data.max_lenght=8", "data.max_length=0", "selection.kep=0.3", "selection.keep=7", "seed=-1"),
    *("sources.cluster=1", "sources.clusters=2", "training.max_step=3", "training.max_steps=-5", "training.seed=1"),
    *("lora.r=-1", "output_dir=null", "mixture=3"),
)


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        *((TRAIN, setting) for setting in WRONG),
        *((command, "selection.keep=7") for command in (("compare",), ("plan", "--gpu-memory", "1GiB"), ("sources",))),
    ],
)
def test_a_wrong_setting_is_reported_before_transformers_is_imported(
    tmp_path: Path, command: tuple[str, ...], setting: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: tiny\noutput_dir: {tmp_path / 'run'}\n")
    found = imported_by(*command, str(config), setting, status=2)
    assert found & (HEAVY - {"numpy", "pyarrow"}) == set()


def test_a_missing_configuration_is_reported_at_once(tmp_path: Path) -> None:
    assert imported_by("train", str(tmp_path / "gone.yaml"), status=2) & (HEAVY - {"numpy", "pyarrow"}) == set()


@pytest.mark.slow
def test_training_imports_only_what_it_uses() -> None:
    modules = "colm.lab.run.train, colm.lab.run.check, colm.lab.run.summary"
    unused = {"sklearn", "matplotlib", "reasoning_gym", "trl", "bitsandbytes", "pytorch_lightning", "lm_eval"}
    assert imported(f"import {modules}") & unused == set()
