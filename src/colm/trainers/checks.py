"""What a trainer cannot combine with selection, refused before training."""

from __future__ import annotations

import os
from typing import Any

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.step.ranks import rank_and_world


def check_trainer(trainer: Any, selection: SelectionConfig) -> None:
    """Refuse settings of the Trainer that would silently change what is trained.

    Raises:
        ConfigError: what is set, why it does not work, and what to do instead.
    """
    args = trainer.args
    _check_processes(args)
    for name, enabled in (("FSDP", "is_fsdp_enabled"), ("DeepSpeed", "is_deepspeed_enabled")):
        if getattr(trainer, enabled, False):
            raise ConfigError(
                f"{name} has not been tested with selection in the Trainer; use DistributedDataParallel (accelerate "
                "launch or torchrun without it)."
            )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process mean DataParallel, which selection cannot see into. "
            "Show one GPU to the process, with CUDA_VISIBLE_DEVICES=0."
        )
    check_arguments(args, selection)
    prompts = [
        name
        for name, config in getattr(trainer.model, "peft_config", {}).items()
        if getattr(config, "is_prompt_learning", False) and str(config.peft_type) != "PeftType.PREFIX_TUNING"
    ]
    if prompts:
        raise ConfigError(
            f"The adapter {prompts[0]!r} learns a prompt, which lengthens every row beyond its labels; use LoRA "
            "or another adapter of weights."
        )
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        weight = getattr(adapter, "orth_reg_weight", 0)
        if selection.loss == "example" and weight:
            raise ConfigError(
                f"AdaLoRA's orth_reg_weight={weight} adds a loss that the example mean would leave out; set it to 0, "
                "or loss='token'."
            )
    _check_parallelism(trainer)
    config = getattr(trainer.model, "config", None)
    computes_loss = trainer.compute_loss_func is not None  # TRL's loss has a place for the router's
    if selection.loss == "example" and computes_loss and getattr(config, "output_router_logits", False):
        raise ConfigError(
            "output_router_logits=True adds a router loss that the example mean would leave out; set "
            "model.config.output_router_logits=False, or loss='token'."
        )
    if getattr(args, "enable_jit_checkpoint", False) and args.world_size > 1:
        raise ConfigError(
            "enable_jit_checkpoint lets each rank save on its own clock after SIGTERM, and ranks that are told a step "
            "apart wait for each other for ever; set it to False and add the callback "
            "colm.trainers.preemption.StopOnSignal (colm train has it)."
        )
    if not getattr(args, "average_tokens_across_devices", True) and args.world_size > 1:
        raise ConfigError("average_tokens_across_devices=False weighs ranks, not examples; set it to True.")
    if selection.reuse_forward:
        _check_reuse(trainer)
    pool = pool_rows(args)
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else pool  # a stream fills its pools
    selection.check_pool(pool, args.gradient_accumulation_steps * args.world_size)
    if rows < pool and selection.keep_count is not None and selection.keep_count > rows:
        raise ConfigError(f"keep_count={selection.keep_count} is above the {rows} rows of the data; lower it.")


def check_arguments(args: Any, selection: SelectionConfig) -> None:
    """Refuse arguments of the Trainer that would count for nothing, or for something else, beside the selection's.

    Raises:
        ConfigError: what is set, why it does not work, and what to do instead.
    """
    if args.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor={args.label_smoothing_factor} is ignored beside the example mean; set it to 0."
        )
    if getattr(args, "loss_type", None) == "dft":
        raise ConfigError("loss_type='dft' is not a mean of token losses that can be weighed by example; use 'nll'.")
    if getattr(args, "use_liger_kernel", False):
        raise ConfigError(
            "use_liger_kernel fuses the head with the cross-entropy, which hides the logits from the selection pass "
            "and the example mean; set it to False."
        )
    if getattr(args, "auto_find_batch_size", False):
        raise ConfigError(
            "auto_find_batch_size changes the pool while it searches; set it to False and choose the batch size."
        )
    if getattr(args.accelerator_config, "split_batches", False):
        raise ConfigError(
            "split_batches=True in accelerator_config makes per_device_train_batch_size that of all processes "
            "together, by which the pool is not counted; set it to False."
        )
    if getattr(args, "neftune_noise_alpha", None) and selection.reuse_forward:
        raise ConfigError(
            f"neftune_noise_alpha={args.neftune_noise_alpha} adds noise to the embeddings in training, but "
            "reuse_forward=True trains from the selection pass, which has none; set one of them to null or False."
        )
    if getattr(args, "torch_compile", False) and selection.reuse_forward:
        raise ConfigError(
            "torch_compile=True builds in the layers' checkpoint function, which reuse_forward=True exchanges at each "
            "step; set one of them to False."
        )


def pool_rows(args: Any) -> int:
    """Return N, the rows of a whole pool over all ranks."""
    rows: int = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return rows


def check_pool_rows(args: Any, saved: int | None) -> None:
    """Check that a run goes on with pools of as many rows as before, on whatever number of ranks.

    Rows that were trained on are passed by as so many pools: with others, some would be trained on again, or never.

    Raises:
        ConfigError: the pools differ.
    """
    now = pool_rows(args)
    if saved is not None and saved != now:
        raise ConfigError(
            f"The run's pools have {saved} rows, but now {args.per_device_train_batch_size} rows x "
            f"{args.gradient_accumulation_steps} accumulation steps x {args.world_size} processes make {now}. With "
            "fewer processes take more accumulation steps, so that the product stays."
        )


def _check_processes(args: Any) -> None:
    """Refuse processes that the Trainer takes for one: each would train, and save, for itself."""
    started = max(rank_and_world()[1], int(os.environ.get("WORLD_SIZE") or 1))
    if started != args.world_size:
        raise ConfigError(
            f"{started} processes were started, but the Trainer trains on {args.world_size}, so gradients would not be "
            "shared and each process would save over the others. On CPUs set use_cpu=True in the training arguments; "
            "on GPUs see that torch finds them (torch.cuda.is_available())."
        )


def _check_reuse(trainer: Any) -> None:
    """Refuse what would leave `reuse_forward` without layers to work on; the model itself the selector looks at."""
    args = trainer.args
    named = ("activation_checkpointing", "gradient_checkpointing")  # the newer name first
    if not any(getattr(args, name, False) for name in named) and not any(
        getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules()
    ):
        raise ConfigError(
            "reuse_forward=True saves a forward of gradient checkpointing, which is off; set "
            "gradient_checkpointing=True in the training arguments, or reuse_forward=False."
        )


def _check_parallelism(trainer: Any) -> None:
    for kind in ("tp", "cp", "sp"):
        size = getattr(trainer, f"get_{kind}_size", lambda: 1)()
        if size > 1:
            name = {"tp": "Tensor", "cp": "Context", "sp": "Sequence"}[kind]
            raise ConfigError(
                f"{name} parallelism of {size} ranks splits examples or weights in ways that selection cannot "
                "follow; use data parallelism."
            )
