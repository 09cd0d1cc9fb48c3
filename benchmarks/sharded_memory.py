"""What two processes hold of a sharded model, compared with what `colm plan` says for two GPUs.

    python benchmarks/sharded_memory.py            # FSDP2, and ZeRO where deepspeed is installed

Each case starts two gloo processes on the CPU, takes a step, and measures rank 0 in another one: the bytes of its
weights, gradients and optimizer states, and the largest allocation at any moment, from PyTorch's own record. The
threads of gloo copy what they send and free it late, so the least of several steps counts.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from setting import describe_setting
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.allocations import peak_bytes  # noqa: E402

from colm import CoresetSelector, SelectionConfig  # noqa: E402
from colm.losses import example_losses  # noqa: E402

WORLD, ROWS, MICRO_BATCHES, TOKENS, KEEP, TIMES = 2, 4, 2, 64, 0.5, 5
LORA = {"r": 8, "target_modules": "all-linear"}
BUCKET = 100_000
SELECTION = SelectionConfig(keep=KEEP, small_sources="none", noise_every=0, train_head="all")
CASES = [
    ("fsdp2", {}),
    ("fsdp2", {"deferred": False}),
    ("fsdp2", {"checkpointing": True}),
    ("fsdp2", {"deferred": False, "checkpointing": True}),
    ("fsdp2", {"reshard": False}),
    ("fsdp2", {"lora": True}),
    *((f"zero{stage}", {"lora": lora} if lora else {}) for stage in (1, 2, 3) for lora in (False, True)),
]


def shape() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )


def build(options: dict[str, Any]) -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(shape())
    if options.get("lora"):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    if options.get("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of different storages; those of a DTensor are its own part."""
    own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(
        storage.nbytes() for storage in {tensor.untyped_storage() for tensor in own if tensor.is_floating_point()}
    )


def live() -> int:
    """Return the bytes of all floating-point tensors of this process."""
    gc.collect()
    return size(found for found in gc.get_objects() if type(found) in (Tensor, torch.nn.Parameter))


def least_peak(action: Callable[[], None]) -> int:
    """Return the bytes at the peak of an action, the least of several times."""
    return min(live() + peak_bytes(action) for _ in range(TIMES))


def batches(rows: int) -> list[dict[str, Tensor]]:
    ids = torch.randint(1, 1024, (MICRO_BATCHES, rows, TOKENS))
    return [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one.clone()} for one in ids]


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return example_losses(model(**inputs, use_cache=False).logits, batch["labels"]).mean()


def measure_fsdp2(options: dict[str, Any]) -> dict[str, int]:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    model = build(options)
    base = model.get_base_model() if options.get("lora") else model
    reshard = {"reshard_after_forward": options.get("reshard", True)}
    for layer in base.model.layers:
        fully_shard(layer, **reshard)
    fully_shard(model, reshard_after_forward=False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    selector = CoresetSelector(model, SELECTION, source_sizes={"pool": 10**6}, optimizer=optimizer)
    pool, found = batches(ROWS), {}

    def train(rows: list[dict[str, Tensor]]) -> None:
        for number, batch in enumerate(rows):
            model.set_requires_gradient_sync(not options.get("deferred", True) or number == len(rows) - 1)
            loss_of(model, batch).backward()
        found["gradients"] = size(weight.grad for weight in model.parameters() if weight.grad is not None)
        optimizer.step()
        optimizer.zero_grad()

    def coreset_step() -> None:
        train(selector.take(pool, selector.select(pool, ["pool"] * ROWS * MICRO_BATCHES)))
        selector.commit()

    coreset_step()
    found["weights"] = size([*model.parameters(), *model.buffers()])
    found["optimizer"] = size(value for state in optimizer.state.values() for value in state.values() if value.dim())
    found["coreset_step"] = least_peak(coreset_step)
    selector.reset()
    found["pool"] = least_peak(lambda: train(pool))
    return found


def measure_zero(stage: int, options: dict[str, Any]) -> dict[str, int]:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles for minutes
    deepspeed.init_distributed("gloo")
    model = build(options)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    zero = {
        "stage": stage,
        "overlap_comm": False,
        "reduce_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": 0,
    }
    config = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    pool, found = batches(ROWS), {}

    def train() -> None:
        for batch in pool:
            engine.backward(loss_of(engine, batch))
            shared = engine.optimizer
            parts = [weight.grad for weight in model.parameters() if weight.grad is not None]
            if stage == 3:
                parts = [shared.grad_partitions_flat_buffer]
            elif not parts:  # of the last micro-batch
                parts = [part for parts in shared.averaged_gradients.values() for part in parts or ()]
            found["gradients"] = max(found.get("gradients", 0), size(parts))
            engine.step()

    train()
    shared = engine.optimizer
    states = [v for state in shared.optimizer.state.values() for v in state.values() if v.dim()]
    parts = [weight.ds_tensor if stage == 3 else weight for weight in model.parameters()]
    found["weights"] = size([*parts, *model.buffers()])
    copies = shared.single_partition_of_fp32_groups if stage < 3 else shared.fp32_partitioned_groups_flat
    found["optimizer"] = size([*states, *copies])
    found["pool"] = least_peak(train)
    return found


def plan(engine: str, options: dict[str, Any]) -> dict[str, int]:
    """Return what `colm plan` says for the same run, on the CPU's kernels."""
    from colm.lab.plan.outlook import Outlook, Request
    from colm.lab.plan.shapes import ModelSpec
    from colm.lab.plan.sharding import Sharding
    from colm.lab.plan.steps import Rows

    own = {key: value for key, value in options.items() if key in ("reshard", "deferred")}
    sharding = Sharding(engine, WORLD, bucket=BUCKET, persistent=0, **own)
    spec = ModelSpec(
        "x",
        "float32",
        LORA if options.get("lora") else None,
        checkpointing={"use_reentrant": False} if options.get("checkpointing") else None,
    )
    optimizer = "adamw_torch_fused" if engine == "fsdp2" else "adamw_torch"
    request = Request(spec, SELECTION, Rows(TOKENS), ROWS, MICRO_BATCHES, optimizer, "cpu", sharding)
    outlook = Outlook(request, shape())
    held = outlook.parts
    pool, step = outlook.pool(ROWS, MICRO_BATCHES), outlook.coreset_step(ROWS, MICRO_BATCHES)
    return {
        "weights": held.weights,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "pool": pool.peak,
        "coreset_step": step.peak,
    }


def run(engine: str, options: dict[str, Any]) -> dict[str, int]:
    """Measure a case in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD}", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, engine, json.dumps(options)], env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if done.returncode or not lines:
        raise SystemExit(done.stderr[-3000:])
    found: dict[str, int] = json.loads(lines[-1])
    return found


def main() -> None:
    if "RANK" in os.environ:
        engine, options = sys.argv[1], json.loads(sys.argv[2])
        found = measure_fsdp2(options) if engine == "fsdp2" else measure_zero(int(engine[-1]), options)
        if os.environ["RANK"] == "0":
            print("\n" + json.dumps(found), flush=True)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        return
    wanted = sys.argv[1:]
    parts = ("weights", "gradients", "optimizer", "pool", "coreset_step")
    print(f"`python benchmarks/sharded_memory.py`; {describe_setting('0')}.\n")
    print("KiB measured on rank 0 of 2, and in brackets the plan's share of it.\n")
    print("| engine | case | weights | gradients | optimizer | peak, pool | peak, coreset step |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for engine, options in CASES:
        if (wanted and engine not in wanted) or (engine != "fsdp2" and importlib.util.find_spec("deepspeed") is None):
            continue
        found, planned = run(engine, options), plan(engine, options)
        cells = [
            f"{found[part] / 1024:,.0f} ({planned[part] / found[part]:.3f})" if part in found else "" for part in parts
        ]
        words = ", ".join(name if value is True else f"{name}={value}" for name, value in options.items())
        print(f"| {engine} | {words or 'full'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
