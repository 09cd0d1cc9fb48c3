"""Started by torchrun in test_engines.py: trains cases in engines, and saves what must not depend on the engine.

torchrun --standalone --nproc_per_node=2 engines_on_ranks.py FOLDER ENGINE/CASE [...]

One launch has either ddp and native, or fsdp2, or zero1 to zero3: accelerate finds one kind of processes.
"""

from __future__ import annotations

import faulthandler
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.engines import arguments_of, forget_settings, prepare_engine
from tests.support.models import tiny_model
from tests.support.sft import sft_settings
from tests.support.trainers import coreset_trainer, lines, mixture

from colm import SelectionConfig
from colm.config import PRESETS
from colm.models import train_tiny_tokenizer
from colm.step.ranks import leave_ranks, rank_and_world
from colm.trainers.trl import CoresetSFTTrainer

ROWS = 78  # of pools of 16: the last pool has 14 rows
CHECKPOINTED = {"gradient_checkpointing": True}
SAVED = {"save_strategy": "steps", "save_steps": 2}
SHARDS = {"state_dict_type": "SHARDED_STATE_DICT"}
BEST = {**SAVED, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "max_steps": 6}

FAULT = "a fault on one rank"

CASES: dict[str, dict[str, Any]] = {
    "exact": {"evaluate": True},
    "trl": {"trl": True},
    "trl without features": {"trl": True, "selection": {"features": "none"}},
    "spsa": {"selection": {"features": "spsa"}},
    "mean_hidden": {"selection": {"features": "mean_hidden"}},
    "last_hidden": {"selection": {"features": "last_hidden"}},
    "loss": {"selection": {"features": "loss"}},
    "gradient_norm": {"selection": {"features": "gradient_norm"}},
    "none": {"selection": {"features": "none"}},
    "fitted": {"selection": {**PRESETS["matched"], "weights": "fitted", "coordinates": 200}},
    "uneven": {"selection": {"pass_tokens": 14}, "args": {"train_sampling_strategy": "sequential"}, "sorted": True},
    "token": {"selection": {"loss": "token"}},
    "balanced": {"selection": {"features": "none", "order": "balanced"}},
    "joined": {"selection": {"features": "none", "padding_free": True}},
    "all positions": {"selection": {"train_head": "all"}},
    "chunked": {"selection": {"train_head": "chunked", "head_chunk_tokens": 3}},
    "clip": {"args": {"max_grad_norm": 0.05}},
    "noise": {"selection": {"noise_every": 2}},
    "lora": {"lora": True, "evaluate": True},
    "tied": {"model": {"tie_word_embeddings": True}},
    "gpt2": {"family": "gpt2"},
    "phi3": {"family": "phi3"},
    "sgd": {"args": {"optim": "sgd"}},
    "checkpointed": {"args": CHECKPOINTED},
    "reuse": {"selection": {"reuse_forward": True}, "args": CHECKPOINTED},
    "uneven reuse": {
        "selection": {"reuse_forward": True, "pass_tokens": 14},
        "args": {**CHECKPOINTED, "train_sampling_strategy": "sequential"},
        "sorted": True,
    },
    "evaluations": {"args": {"eval_strategy": "steps", "eval_steps": 2}},
    "saved": {"args": SAVED},
    "saved lora": {"args": SAVED, "lora": True},
    "best": {"args": BEST},
    "evaluated first": {"evaluate first": True},
    "bfloat16": {"args": {"bf16": True}, "replay": True},
    "lora bfloat16": {"lora": True, "args": {"bf16": True}, "replay": True},
    "lora reuse": {"lora": True, "selection": {"reuse_forward": True}, "args": CHECKPOINTED},
    "qlora": {"quantised": True},
    "shards": {"args": SAVED, "fsdp2": SHARDS},
    "shards of lora": {"args": SAVED, "fsdp2": SHARDS, "lora": True},
    "best shards": {"args": BEST, "fsdp2": SHARDS},
    "not resharded": {"fsdp2": {"reshard_after_forward": False}},
    "loaded once": {"fsdp2": {"cpu_ram_efficient_loading": True}},
    "checkpointed by fsdp": {"fsdp2": {"activation_checkpointing": True}},
}


def whole(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight of which each rank holds a part; all ranks must call it."""
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().float().clone()
    weight = weight.detach()
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).float().clone()


def weights(trainer: Any) -> list[torch.Tensor]:
    return [whole(weight) for weight in trainer.model.parameters()]


def make(engine: str, case: dict[str, Any], folder: Path, **changes: Any) -> Any:
    data = mixture(ROWS)
    model = tiny_model(
        case.get("family", "llama"),
        lora=case.get("lora", False),
        **({} if case.get("family") == "gpt2" else {"num_hidden_layers": 2}),
        **case.get("model", {}),
    )
    if case.get("quantised"):
        model = quantised(model, folder.with_suffix(".model"))
    if engine == "native":
        model = split_at_loading(model, folder.with_suffix(".model"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    selection = SelectionConfig(**{"keep_count": 9, **case.get("selection", {})})
    args = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4 // rank_and_world()[1],
        "max_steps": 7,
        "max_grad_norm": 0.0,
        **arguments_of(engine, **case.get(engine, {})),
        **case.get("args", {}),
    }
    if case.get("trl"):
        tokenizer = train_tiny_tokenizer(["a b c d e f g"] * 10)
        data = data.map(lambda row: {"input_ids": [token % len(tokenizer) for token in row["input_ids"]]})
        settings = sft_settings(folder, **args)
        return CoresetSFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer, selection=selection)
    return coreset_trainer(
        folder,
        model=model,
        selection=selection,
        args=args,
        train_dataset=data.sort("source", reverse=True) if case.get("sorted") else data,
        eval_dataset=mixture(64, seed=1).remove_columns("source"),
        **changes,
    )


def quantised(model: Any, folder: Path) -> Any:
    """Return the model in 4 bits, in storage that FSDP can split as it splits LoRA's weights, and LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    stored = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.float32)
    save_once(model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=stored, dtype=torch.float32)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))


def save_once(model: Any, folder: Path) -> None:
    """Save a model in one process, for all to load."""
    torch.distributed.barrier()
    if rank_and_world()[0] == 0:
        model.save_pretrained(folder)
    torch.distributed.barrier()


def split_at_loading(model: Any, folder: Path) -> Any:
    """Return the model as transformers' own FSDP2 loads it."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    save_once(model, folder)
    return AutoModelForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(fsdp_size=rank_and_world()[1]), dtype=torch.float32
    )


def train(engine: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    trainer = make(engine, case, folder)
    if case.get("fault"):
        trainer.add_callback(StaleShard())
    first = [trainer.evaluate()["eval_loss"]] if case.get("evaluate first") else []
    torch.manual_seed(0)
    trainer.train()
    found = {
        "weights": weights(trainer),
        "type": str(trainer.accelerator.distributed_type),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "norms": [log["grad_norm"] for log in trainer.state.log_history if log.get("grad_norm") is not None],
        "evaluations": first + [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log],
        "lean": (getattr(trainer, "_lean", None) or (None, None))[1] is not None,
    }
    if case.get("evaluate"):
        found["evaluations"].append(trainer.evaluate()["eval_loss"])
    trainer.save_model(str(folder / "saved"))
    if "save_strategy" in case.get("args", {}):
        found |= resumed(engine, case, folder)
    if case.get("replay"):  # the same rows without a selection pass
        forget_settings(engine)
        again = make(engine, case, folder / "again", replay=folder / "selection.jsonl")
        torch.manual_seed(0)
        again.train()
        found["replayed"] = weights(again)
    return found


def resumed(engine: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Remove the last checkpoints and train to the end again."""
    rank = rank_and_world()[0]
    kept = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if rank == 0:
        for path in kept[1:]:
            shutil.rmtree(path)
    torch.distributed.barrier()
    forget_settings(engine)
    again = make(engine, case, folder)
    torch.manual_seed(1)
    again.train(resume_from_checkpoint=True)
    return {"resumed": weights(again), "from": kept[0].name}


class StaleShard(TrainerCallback):
    """Changes one rank's weights, or its shards of them, after the third step."""

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """Change them."""
        if state.global_step == 3 and rank_and_world()[0] == 1:
            for weight in model.parameters():
                held = getattr(weight, "ds_tensor", weight.detach())
                (held.to_local() if isinstance(held, DTensor) else held.data).mul_(1.5)


def path_of(folder: Path, engine: str, case: str) -> Path:
    """Return the file with what a case found."""
    return folder / engine / f"{case.replace(' ', '_')}.pt"


def load(folder: Path, engine: str, case: str) -> dict[str, Any]:
    """Return what a case found."""
    found: dict[str, Any] = torch.load(path_of(folder, engine, case))
    return found


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Return the largest relative distance of a weight."""
    return max(float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in zip(ours, theirs, strict=True))


def main(folder: Path, wanted: list[str]) -> None:
    torch.set_num_threads(1)
    for each in wanted:
        faulthandler.dump_traceback_later(120, exit=True)  # ranks that wait for each other
        engine, name = each.split("/")
        place = path_of(folder, engine, name).with_suffix("")
        found: dict[str, Any] = {}
        try:
            found = train(engine, {"fault": True} if name == FAULT else CASES[name], place)
        except Exception as error:  # the test shows which cases fail
            found = {"error": f"{type(error).__name__}: {error}"}
            import traceback

            traceback.print_exc()
        if rank_and_world()[0] == 0:
            found["lines"] = lines(place) if (place / "selection.jsonl").exists() else []
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save(found, place.with_suffix(".pt"))
        forget_settings(engine)
    leave_ranks()


if __name__ == "__main__":
    prepare_engine(sys.argv[2].split("/")[0])
    main(Path(sys.argv[1]), sys.argv[2:])
