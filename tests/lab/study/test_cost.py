"""Counted costs against a count of a real forward and backward; steps of equal cost against a search of all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from colm.errors import ConfigError
from colm.lab.run.prepare import PreparedData
from colm.lab.run.settings import resolve_settings
from colm.lab.study.cost import Meter, steps_of_cost
from colm.lab.study.methods import method_settings
from colm.lab.study.planning import with_steps
from colm.lean import LeanHead
from colm.models import load_config

SHORT, LONG = 24, 48  # tokens of the rows of the large and of the small source; the second half is labeled
STEPS = 20
VALUES = resolve_settings(
    {
        "model": "tiny",
        "selection": {"noise_every": 0},  # counted below
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "max_steps": STEPS,
            "use_cpu": True,
        },
        "output_dir": "out",
    }
).values


@given(st.integers(1, 400), st.integers(1, 7), st.integers(0, 9), st.integers(1, 50))
def test_steps_of_equal_cost(budget: int, each: int, fixed: int, start: int) -> None:
    within = [steps for steps in range(1, budget + 1) if fixed + each * steps <= budget]
    assert steps_of_cost(budget, lambda steps: fixed + each * steps, start=start) == max(within, default=1)


def build_meter(rows: int = 200, small: int = 10) -> Meter:
    def row(name: str, tokens: int) -> dict[str, Any]:
        return {"source": name, "input_ids": [1] * tokens, "labels": [-100] * (tokens // 2) + [1] * (tokens // 2)}

    of_small = [row("small", LONG) for _ in range(small)]
    data = Dataset.from_list([*of_small, *(row("large", SHORT) for _ in range(rows - small))])
    return Meter(resolve_settings(VALUES), PreparedData(None, data, None))


@pytest.fixture(scope="module")
def meter() -> Meter:
    return build_meter()


def count_of_a_row(tokens: int) -> int:
    """Count the operations of a row's forward and backward in a real model."""
    model = AutoModelForCausalLM.from_config(load_config("tiny"))
    ids = torch.ones(1, tokens, dtype=torch.int64)
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    head = LeanHead(model)
    with FlopCounterMode(display=False) as counter:
        head(model, {"input_ids": ids, "labels": labels}).sum().backward()
    return int(counter.get_total_flops())


def test_training_costs_what_its_rows_cost(meter: Meter) -> None:
    only = build_meter(small=0)
    random = only.operations(method_settings("random", VALUES))
    assert random == pytest.approx(STEPS * 8 * count_of_a_row(SHORT), rel=0.05)
    assert only.operations(method_settings("random-n", VALUES)) == pytest.approx(2 * random, rel=1e-9)
    assert only.operations(method_settings("random+rows=4", VALUES)) == pytest.approx(random / 2, rel=1e-9)
    # Half of the rows that the control trains are those of the small source, if it has so many in a pool.
    longer = meter.operations(method_settings("control", VALUES))
    assert longer > meter.operations(method_settings("random", VALUES))


@pytest.mark.slow
def test_a_selection_costs_a_forward_of_the_large_sources_rows_and_less_than_their_training(meter: Meter) -> None:
    control, colm, every, late = (
        meter.operations(method_settings(name, VALUES))
        for name in ("control", "colm", "colm+every=4", "colm+warmup_steps=10")
    )
    selection = colm - control
    training = 20 * 16 * count_of_a_row(SHORT)
    assert 0.25 * training < selection < 0.75 * training
    assert every - control == pytest.approx(selection / 4, rel=0.01)
    assert late - control == pytest.approx(selection / 2, rel=0.01)


def test_noise_measurements_cost_a_forward_of_the_kept_rows() -> None:
    meter = build_meter(small=0)
    off, every_third = (meter.operations(method_settings(f"random+noise_every={n}", VALUES)) for n in (0, 3))
    measurements = (STEPS - 1) // 3  # none before the first step
    training = measurements * 8 * count_of_a_row(SHORT)
    assert 1 / 3 * training < every_third - off < 1 / 2 * training  # the head of labeled positions runs backward too


def test_a_schedule_of_kept_rows_costs_its_mean(meter: Meter) -> None:
    growing = meter.operations(method_settings("growing", VALUES))  # from a quarter of the pool to all
    whole = meter.operations(method_settings("random-n", VALUES))
    assert growing == pytest.approx(0.625 * whole, rel=0.05)


def test_runs_of_equal_cost_have_as_many_evaluations() -> None:
    values = {"training": {"max_steps": 100, "eval_strategy": "steps", "eval_steps": 20, "save_steps": 50}}
    found = with_steps(values, 250)["training"]
    assert (found["max_steps"], found["eval_steps"], found["save_steps"]) == (250, 50, 125)
    assert with_steps(values, 3)["training"]["eval_steps"] == 1
    shares = {"max_steps": 100, "eval_strategy": "steps", "eval_steps": 0.1, "warmup_steps": 0.05}
    assert with_steps({"training": shares}, 50)["training"] == {**shares, "max_steps": 50}
    warm = {"max_steps": 100, "warmup_steps": 10}
    assert with_steps({"training": warm}, 250)["training"] == {"max_steps": 250, "warmup_steps": 25}
    logged = {"max_steps": 100, "eval_strategy": "steps", "logging_steps": 10}  # when the Trainer evaluates then
    assert with_steps({"training": logged}, 50)["training"]["eval_steps"] == 5
    best = {**values["training"], "load_best_model_at_end": True}
    assert with_steps({"training": best}, 250)["training"]["save_steps"] == 100
    del best["save_steps"]
    assert with_steps({"training": best}, 45)["training"]["save_steps"] % 9 == 0
    assert values["training"]["max_steps"] == 100


def test_schedules_of_runs_of_equal_cost_end_with_them() -> None:
    decay = {"num_decay_steps": 20, "min_lr_ratio": 0.1}
    schedule = {"keep_schedule": [[0, 1.0], [1, 0.75], [2, 0.7], [50, 0.5]], "warmup_steps": 10, "keep": None}
    values = {"training": {"max_steps": 100, "lr_scheduler_kwargs": decay}, "selection": schedule}
    longer, shorter = with_steps(values, 250), with_steps(values, 30)
    assert longer["training"]["lr_scheduler_kwargs"] == {"num_decay_steps": 50, "min_lr_ratio": 0.1}
    assert longer["selection"]["keep_schedule"] == [[0, 1.0], [2, 0.75], [5, 0.7], [125, 0.5]]
    assert (longer["selection"]["warmup_steps"], shorter["selection"]["warmup_steps"]) == (25, 3)
    assert shorter["selection"]["keep_schedule"] == [[0, 1.0], [1, 0.7], [15, 0.5]]
    assert schedule["warmup_steps"] == 10


def test_a_stream_cannot_be_counted() -> None:
    values = {**VALUES, "data": {"train": "rows.jsonl", "streaming": True}}
    with pytest.raises(ConfigError, match="--equal time counts .* which is not possible for a stream"):
        Meter(resolve_settings(values), PreparedData(None, Dataset.from_list([]), None))
