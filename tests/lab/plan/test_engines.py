"""How GPUs share a model, from options and training arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colm.errors import ConfigError
from colm.lab.plan.engines import read_sharding
from colm.lab.plan.sharding import Sharding


def zero(stage: Any, **more: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage, **more}}}


@pytest.mark.parametrize(
    ("training", "gpus", "shard", "found"),
    [
        ({}, None, None, None),
        ({}, 1, None, None),
        ({}, 4, None, Sharding("ddp", 4)),
        ({}, 4, "zero2", Sharding("zero2", 4)),
        ({"fsdp": True}, 8, None, Sharding("fsdp2", 8)),
        ({"fsdp": "full_shard auto_wrap", "fsdp_config": {"fsdp_version": 2}}, 8, "fsdp2", Sharding("fsdp2", 8)),
        (
            {"fsdp": True, "fsdp_config": {"reshard_after_forward": False}},
            2,
            None,
            Sharding("fsdp2", 2, reshard=False),
        ),
        (
            {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
            2,
            "fsdp2",
            Sharding("fsdp2", 2, deferred=False),
        ),
        (zero(1, overlap_comm=True), 2, None, Sharding("zero1", 2, overlap=True)),
        (
            zero(3, reduce_bucket_size="auto", stage3_max_live_parameters=1e6, stage3_param_persistence_threshold=0),
            2,
            None,
            Sharding("zero3", 2, bucket=None, live=10**6, persistent=0),
        ),
    ],
)
def test_engines(training: dict[str, Any], gpus: int | None, shard: str | None, found: Sharding | None) -> None:
    assert read_sharding(training, gpus, shard) == found


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(zero(2)["deepspeed"]))
    assert read_sharding({"deepspeed": str(path)}, 2) == Sharding("zero2", 2)
    with pytest.raises(ConfigError, match=r"training.deepspeed='.*no.json' cannot be read as JSON"):
        read_sharding({"deepspeed": str(tmp_path / "no.json")}, 2)


@pytest.mark.parametrize(
    ("training", "gpus", "shard", "message"),
    [
        ({}, 0, None, "--gpus=0 must be at least 1"),
        ({}, None, "fsdp2", "--shard shares the model over several GPUs; say how many, such as --gpus 8"),
        ({"fsdp": True}, None, None, "training.fsdp shares the model over several GPUs"),
        ({}, 1, "zero3", "--gpus=1 leaves nothing to share; use at least 2 GPUs, or plan without --shard"),
        (zero(3), 8, "fsdp2", "--shard=fsdp2, but the training arguments set zero3; leave out --shard"),
        ({"fsdp": True, **zero(3)}, 8, None, "training.fsdp and training.deepspeed are both set"),
        ({"fsdp": "shard_grad_op"}, 8, None, "training.fsdp='shard_grad_op' cannot be planned"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, 8, None, "version=1 cannot be planned; set it to 2"),
        ({"fsdp": True, "fsdp_config": {"cpu_offload": True}}, 8, None, "fsdp_config.cpu_offload=True cannot be"),
        (zero(0), 8, None, "zero_optimization.stage=0, which cannot be planned; use 1, 2 or 3"),
        (zero(2, offload_optimizer={"device": "cpu"}), 8, None, "moves memory to 'cpu' .offload_optimizer."),
        (zero(2, reduce_bucket_size="big"), 8, None, "reduce_bucket_size='big'; use a number of elements"),
    ],
)
def test_what_cannot_be_planned(training: dict[str, Any], gpus: int | None, shard: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sharding(training, gpus, shard)
