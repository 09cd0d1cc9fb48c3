"""FSDP2 and DeepSpeed's ZeRO in two gloo processes select and train what DistributedDataParallel does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import command_on_ranks, deepspeed_on_ranks, engines_on_ranks
from tests.support.commands import write_run
from tests.support.engines import DEEPSPEED, arguments_of
from tests.support.engines_on_ranks import CASES, FAULT, distance, load
from tests.support.files import read_lines
from tests.support.processes import run_to_end, torchrun
from transformers import AutoModelForCausalLM

from colm.models import build_tiny_model, train_tiny_tokenizer

pytestmark = pytest.mark.engines

SAME: dict[str, tuple[str, ...]] = {
    "fsdp2": ("exact", "uneven reuse", "trl", "best shards"),
    "native": ("gpt2",),
    "zero1": ("saved",),
    "zero2": ("reuse", "noise"),
    "zero3": ("exact", "lora", "saved"),
}
"""A selection of what benchmarks/engines.py runs, for its time."""

REFUSED = {
    ("fsdp2", "evaluated first"): "ConfigError: FSDP evaluates only once train() has placed",
    ("zero2", "evaluated first"): "ConfigError: DeepSpeed evaluates only once train() has placed",
    ("zero3", "reuse"): "UnsupportedModelError: reuse_forward=True does not work with DeepSpeed's ZeRO-3",
    ("zero3", "trl"): "ConfigError: TRL reads the output head's weight",
}
KINDS = (("ddp", "native"), ("fsdp2",), ("zero1", "zero2", "zero3"))
RAN_ONLY = {"fsdp2": ("bfloat16",)}
"""FSDP2 casts weights where DistributedDataParallel casts products, so other rows are picked."""

Runs = Callable[[str, str], dict[str, Any]]


def launch(command: Sequence[str], *, deepspeed: bool) -> None:
    if deepspeed and not DEEPSPEED.is_dir():
        pytest.skip("make test-slow installs DeepSpeed")
    run_to_end(command, seconds=400, CUDA_VISIBLE_DEVICES="", **({"PYTHONPATH": str(DEEPSPEED)} if deepspeed else {}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a function that runs an engine's cases, and returns what one of them found.

    Engines of one kind share a launch, which takes longer than their cases.
    """
    folder = tmp_path_factory.mktemp("engines")

    @cache
    def run_kind(kind: tuple[str, ...]) -> None:
        cases = [f"ddp/{case}" for case in CASES if "ddp" in kind and any(case in held for held in SAME.values())]
        cases += [f"{engine}/{case}" for held in (SAME, RAN_ONLY) for engine in kind for case in held.get(engine, ())]
        cases += [f"{engine}/{case}" for engine, case in REFUSED if engine in kind]
        cases += [f"{engine}/{FAULT}" for engine in kind if engine != "native"]
        launch([*torchrun(2), str(engines_on_ranks.__file__), str(folder), *cases], deepspeed="zero2" in kind)

    def run(engine: str, case: str) -> dict[str, Any]:
        run_kind(next(kind for kind in KINDS if engine in kind))
        return load(folder, engine, case)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "case"), [(engine, case) for engine, cases in SAME.items() for case in cases])
def test_engines_train_as_copies_do(runs: Runs, engine: str, case: str) -> None:
    ours, theirs = runs("ddp", case), runs(engine, case)
    assert "error" not in ours
    assert "error" not in theirs, theirs["error"]
    types = {"fsdp2": "FSDP", "native": "MULTI_CPU"}
    assert theirs["type"].endswith(types.get(engine, "DEEPSPEED"))
    assert len(ours["lines"]) == (6 if "best" in case else 7)
    for one, other in zip(ours["lines"], theirs["lines"], strict=True):
        assert other["pool"] == one["pool"]
        assert other["kept"] == one["kept"]
        assert (one.get("noise") is not None) == (case == "noise" and one["step"] in (2, 4, 6))
        assert other.get("noise") is None  # moments or weights are split over ranks
    assert theirs["lean"] == ours["lean"] == ("trl" not in case)
    assert distance(ours["weights"], theirs["weights"]) < 1e-3
    for key in ("losses", "norms", "evaluations"):
        assert theirs[key] == pytest.approx(ours[key], rel=1e-4)
    if "resumed" in ours:
        assert theirs["from"] == ours["from"] == "checkpoint-2"
        assert distance(theirs["weights"], theirs["resumed"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_a_fault_on_one_rank_is_seen(runs: Runs, engine: str) -> None:
    ours, theirs = runs("ddp", "exact"), runs(engine, FAULT)
    assert "error" not in theirs, theirs["error"]
    assert distance(ours["weights"], theirs["weights"]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("case", RAN_ONLY["fsdp2"])
def test_in_bfloat16_the_selection_pass_leaves_no_trace(runs: Runs, case: str) -> None:
    found = runs("fsdp2", case)
    assert "error" not in found, found["error"]
    assert distance(found["weights"], found["replayed"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "case"), REFUSED)
def test_what_an_engine_does_not_do_is_refused_by_name(runs: Runs, engine: str, case: str) -> None:
    assert runs(engine, case)["error"].startswith(REFUSED[engine, case])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_the_command_line_saves_a_whole_model_and_resumes(tmp_path: Path, engine: str) -> None:
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4, "save_steps": 2}
    launcher = torchrun(2)
    if engine == "fsdp2":  # in the run's own settings
        training |= arguments_of(engine, state_dict_type="SHARDED_STATE_DICT")
        del training["accelerator_config"]
    else:  # in accelerate's
        training["use_cpu"] = False
        example = Path(__file__).parents[2] / "examples" / "launch" / f"{engine}.yaml"
        accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
        launcher = [*accelerate, "--config_file", str(example), "--num_processes=2"]
    tokenizer = train_tiny_tokenizer(["Name number 1: 2", "Rare 3? 4 + 1 = 5"])
    build_tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = write_run(tmp_path, model=str(tmp_path / "model"), training=training)
    command = [*launcher, str(command_on_ranks.__file__), engine, "train", config]
    launch(command, deepspeed=engine == "zero3")
    run = tmp_path / "run"
    first = AutoModelForCausalLM.from_pretrained(run).state_dict()
    evaluations = read_lines(run / "evaluations.jsonl")
    assert (evaluations[0]["step"], evaluations[-1]["step"]) == (0, 4)  # the first one within training
    shutil.rmtree(run / "checkpoint-4")
    launch([*command, "--resume"], deepspeed=engine == "zero3")
    again = AutoModelForCausalLM.from_pretrained(run).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert read_lines(run / "evaluations.jsonl")[-1]["losses"] == evaluations[-1]["losses"]


@pytest.mark.slow
def test_a_plain_loop_of_deepspeed_selects_and_trains_as_copies_do(tmp_path: Path) -> None:
    launch([*torchrun(2), str(deepspeed_on_ranks.__file__), str(tmp_path)], deepspeed=True)
    found = torch.load(tmp_path / "found.pt")
    copies = found.pop(None)
    assert list(found) == [1, 2, 3]
    for engine in found.values():
        assert engine["kept"] == copies["kept"]
        assert torch.allclose(engine["weights"], copies["weights"], atol=1e-6)
