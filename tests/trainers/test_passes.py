"""A resumed run is the same run, in every pass over the data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.support import resume_on_ranks
from tests.support.interrupted import FACTORS, differences, interrupt, possible
from tests.support.pairs import all_pairs, pairs_of
from tests.support.processes import torchrun
from tests.support.sft import sft_settings
from tests.support.trainers import coreset_trainer, lines, mixture, same_weights, weights
from torch.utils.data import RandomSampler
from transformers import TrainerCallback

from colm import ConfigError, CoresetSFTTrainer
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.trainers.checkpoints import mark_complete
from colm.trainers.passes import SeededOrder

FEW = {
    "data": ["random", "grouped", "stream", "own generator"],
    "mixing": ["plain", "weights", "cap"],
    "workers": ["none"],  # forked from xdist processes, they take seconds to end; the slow tests include them
}
CASES = all_pairs({**FACTORS, **FEW}, possible)[0]
ALL = all_pairs(FACTORS, possible)[0]


def name(case: dict[str, Any]) -> str:
    return "-".join(map(str, case.values()))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_resumed_run_is_the_run_that_was_never_killed(tmp_path: Path, case: dict[str, Any]) -> None:
    assert differences(*interrupt(tmp_path, case)) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=name)
def test_also_in_other_orders(tmp_path: Path, case: dict[str, Any]) -> None:
    assert differences(*interrupt(tmp_path, case)) == []


@pytest.mark.slow
def test_also_on_two_ranks(tmp_path: Path) -> None:
    script = Path(resume_on_ranks.__file__)
    command = torchrun(2)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert {name(case): each for case, each in zip(resume_on_ranks.CASES, found, strict=True) if each} == {}


@pytest.mark.slow
def test_also_when_killed_by_the_system() -> None:
    kills = Path(__file__).parents[2] / "benchmarks" / "kills.py"
    command = [sys.executable, str(kills), "--passes", "--sample", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "never killed: 2 of 2" in done.stdout


def test_a_short_last_pool_of_a_stream_is_a_step_of_its_own(tmp_path: Path) -> None:
    args = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = coreset_trainer(tmp_path, train_dataset=mixture(5).to_iterable_dataset(), args=args)
    trainer.train()
    pools = [sorted(row for rows in line["pool"].values() for row in rows) for line in lines(tmp_path)]
    assert pools == [[0, 1, 2, 3], [4], [0, 1, 2, 3], [4]]
    assert [sum(map(len, line["kept"].values())) for line in lines(tmp_path)] == [2, 1, 2, 1]
    counted = coreset_trainer(
        tmp_path / "counted", train_dataset=mixture(5), args={**args, "train_sampling_strategy": "sequential"}
    )
    counted.train()
    for one, other in zip(weights(trainer), weights(counted), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("steps", [3, 4, 5])
def test_an_extended_run_finishes_its_pass(tmp_path: Path, streams: bool, steps: int) -> None:
    data: Any = mixture(48)  # of four steps a pass
    data = data.to_iterable_dataset().shuffle(seed=0, buffer_size=9) if streams else data
    args = {"save_strategy": "epoch"}  # also saves if training ends within a pass
    for folder, lengths in (("whole", [9]), ("longer", [steps, 9])):
        for length in lengths:
            trainer = coreset_trainer(tmp_path / folder, train_dataset=data, args={**args, "max_steps": length})
            trainer.train(resume_from_checkpoint=length > lengths[0])
    whole, longer = (lines(tmp_path / folder) for folder in ("whole", "longer"))
    assert [line["pool"] for line in longer] == [line["pool"] for line in whole]


class ThreeSteps(TrainerCallback):
    """Ends the first pass after three steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step == 3


@pytest.mark.parametrize("streams", [False, True])
def test_a_pass_that_a_callback_ended_is_over_after_a_resume(tmp_path: Path, streams: bool) -> None:
    data: Any = mixture(48)  # of four steps a pass
    data = data.to_iterable_dataset().shuffle(seed=0, buffer_size=9) if streams else data
    args = {"max_steps": 5, "save_strategy": "epoch"}
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):
        trainer = coreset_trainer(tmp_path, train_dataset=data, args=args, callbacks=[ThreeSteps()])
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append((lines(tmp_path), weights(trainer)))
    assert found[0][0] == found[1][0]
    assert same_weights(found[0][1], found[1][1])


@pytest.mark.parametrize("streams", [False, True])
def test_trl_resumes_in_the_second_pass(tmp_path: Path, streams: bool) -> None:
    made = [{"source": "ab"[i % 5 == 0], "prompt": f"What of {i}?", "completion": f" {i * i}."} for i in range(18)]
    tokenizer = train_tiny_tokenizer(f"{row['prompt']}{row['completion']}" for row in made)
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):  # of two steps a pass
        data: Any = Dataset.from_list(made)
        torch.manual_seed(0)
        trainer = CoresetSFTTrainer(
            build_tiny_model(tokenizer),
            sft_settings(tmp_path, max_steps=5, save_strategy="steps", save_steps=3),
            train_dataset=data.to_iterable_dataset().shuffle(seed=0, buffer_size=5) if streams else data,
            processing_class=tokenizer,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append((weights(trainer), lines(tmp_path)))
    assert found[0][1] == found[1][1]
    assert same_weights(found[0][0], found[1][0])


def test_runs_that_cannot_be_resumed_exactly_are_refused(tmp_path: Path) -> None:
    stream = mixture(40).to_iterable_dataset(num_shards=2)
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "save_only_model": True}
    coreset_trainer(tmp_path, train_dataset=stream, args=saving).train()
    more = {"max_steps": 3, "dataloader_num_workers": 2}
    trainer = coreset_trainer(tmp_path, train_dataset=stream, source_sizes=dict.fromkeys("abcd", 1), args=more)
    with pytest.raises(
        ConfigError, match=r"read its stream in 1 data loader processes but would now use 2, .*workers=1"
    ):
        trainer.train(resume_from_checkpoint=True)
    trainer = coreset_trainer(tmp_path, train_dataset=stream, args={"max_steps": 3})
    with pytest.raises(ConfigError, match="no optimizer state, as saved with save_only_model=True"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("name", "engine"), [("optimizer.pt", "no engine"), ("optimizer_0", "FSDP"), ("global_step2", "DeepSpeed")]
)
def test_a_checkpoint_of_another_engine_is_refused(tmp_path: Path, name: str, engine: str) -> None:
    coreset_trainer(tmp_path, args={"save_strategy": "steps", "save_steps": 2, "max_steps": 2}).train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / "optimizer.pt").rename(checkpoint / name)
    mark_complete(checkpoint)
    trainer = coreset_trainer(tmp_path, args={"max_steps": 3})
    if engine == "no engine":
        trainer.train(resume_from_checkpoint=True)
        return
    with pytest.raises(ConfigError, match=f"was saved with {engine}, and this run uses no engine"):
        trainer.train(resume_from_checkpoint=True)


def test_ignoring_the_position_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, args = mixture(24), {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    coreset_trainer(tmp_path, train_dataset=data, args=args).train()
    whole = lines(tmp_path)
    for folder in ("checkpoint-6",):
        shutil.rmtree(tmp_path / folder)
    coreset_trainer(tmp_path, train_dataset=data, args={**args, "ignore_data_skip": True}).train(True)
    assert "ignore_data_skip=True restarts the pass over the data" in caplog.text
    assert lines(tmp_path)[3]["pool"] == whole[2]["pool"]  # the first of its pass of two


def test_an_order_depends_only_on_seed_and_pass() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = SeededOrder(RandomSampler(range(50)), seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(3, 1) == order(3, 1)
    assert sorted(order(3, 1)) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((3, 0), (3, 1), (5, 0))}) == 3


@pytest.mark.parametrize(
    ("cases", "factors"),
    [(CASES, FACTORS | FEW), (ALL, FACTORS), (resume_on_ranks.CASES, FACTORS | resume_on_ranks.FEW)],
    ids=["fast", "slow", "ranks"],
)
def test_all_pairs_of_factors_are_tried(cases: list[dict[str, Any]], factors: dict[str, list[Any]]) -> None:
    tried = set().union(*map(pairs_of, cases))
    names = list(factors)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            for one in factors[first]:
                for other in factors[second]:
                    impossible = first == "data" and second == "mixing" and not possible({"data": one, "mixing": other})
                    assert (((first, one), (second, other)) in tried) != impossible
