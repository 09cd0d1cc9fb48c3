"""Reject Trainer settings that cannot be combined with selection, before training starts."""

from __future__ import annotations

import logging
import os
from typing import Any

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.step.ranks import rank_and_world
from colm.trainers.engines import check_engine
from colm.trainers.liger import check_liger

logger = logging.getLogger(__name__)


def check_trainer(trainer: Any, selection: SelectionConfig) -> None:
    """Reject Trainer settings that would silently change the training.

    Raises:
        ConfigError: gives the setting, why it does not work, and the remedy.
    """
    args = trainer.args
    _check_processes(args)
    check_engine(trainer)
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs in one process mean DataParallel, which selection does not support. Expose only one "
            "GPU to the process, with CUDA_VISIBLE_DEVICES=0."
        )
    check_arguments(args, selection)
    prompts = [
        name
        for name, config in getattr(trainer.model, "peft_config", {}).items()
        if getattr(config, "is_prompt_learning", False) and str(config.peft_type) != "PeftType.PREFIX_TUNING"
    ]
    if prompts:
        raise ConfigError(
            f"The adapter {prompts[0]!r} learns a prompt, which makes every row longer than its labels. Use LoRA or "
            "another weight adapter."
        )
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        weight = getattr(adapter, "orth_reg_weight", 0)
        if selection.loss == "example" and weight:
            raise ConfigError(
                f"AdaLoRA's orth_reg_weight={weight} adds a loss that the example mean would ignore; set it to 0, or "
                "use loss='token'."
            )
    _check_parallelism(trainer)
    config = getattr(trainer.model, "config", None)
    computes_loss = trainer.compute_loss_func is not None  # TRL's loss includes the router loss
    if selection.loss == "example" and computes_loss and getattr(config, "output_router_logits", False):
        raise ConfigError(
            "output_router_logits=True adds a router loss that the example mean would ignore; set "
            "model.config.output_router_logits=False, or use loss='token'."
        )
    if getattr(args, "enable_jit_checkpoint", False) and args.world_size > 1:
        raise ConfigError(
            "enable_jit_checkpoint can deadlock with several processes: ranks that receive SIGTERM in different steps "
            "wait for each other. Set it to False and add the callback colm.trainers.preemption.StopOnSignal (colm "
            "train includes it)."
        )
    if not getattr(args, "average_tokens_across_devices", True) and args.world_size > 1:
        raise ConfigError("average_tokens_across_devices=False weights ranks, not examples, equally; set it to True.")
    if selection.reuse_forward:
        _check_reuse(trainer)
    pool = pool_rows(args)
    rows = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else pool  # streams fill their pools
    selection.check_pool(pool, args.gradient_accumulation_steps * args.world_size)
    check_batches(args, rows)
    if rows < pool and selection.keep_count is not None and selection.keep_count > rows:
        raise ConfigError(f"keep_count={selection.keep_count} exceeds the {rows} rows of the data; lower it.")


def warn_of_uneven_means(trainer: Any, selection: SelectionConfig) -> None:
    """Log that tokens count differently if the model averages its loss over each micro-batch by itself."""
    args = trainer.args
    counts = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    if selection.loss == "token" and not counts and args.gradient_accumulation_steps * args.world_size > 1:
        logger.warning(
            "%s does not take num_items_in_batch, so the loss of a step is the mean of its micro-batches' means. Those "
            "of short rows have more rows, so their tokens count less. Set loss='example', or let the model's forward "
            "take **kwargs and divide its summed loss by num_items_in_batch.",
            type(trainer.model).__name__,
        )


def check_arguments(args: Any, selection: SelectionConfig) -> None:
    """Reject Trainer arguments that selection would ignore or that would change meaning.

    Raises:
        ConfigError: gives the setting, why it does not work, and the remedy.
    """
    if args.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor={args.label_smoothing_factor} would be ignored by the example mean; set it to 0."
        )
    if getattr(args, "loss_type", None) == "dft":
        raise ConfigError("loss_type='dft' is not a mean of token losses that can be weighted by example; use 'nll'.")
    strategy = getattr(args, "train_sampling_strategy", "random")
    if selection.order == "balanced" and strategy != "random":
        raise ConfigError(
            f"train_sampling_strategy={strategy!r} sets the order of the rows, and so does order='balanced'; set "
            "train_sampling_strategy='random', or order='random'."
        )
    check_liger(args)
    if getattr(args, "auto_find_batch_size", False):
        raise ConfigError(
            "auto_find_batch_size changes the pool during its search; set it to False and choose the batch size."
        )
    if getattr(args.accelerator_config, "split_batches", False):
        raise ConfigError(
            "split_batches=True in accelerator_config makes per_device_train_batch_size the total over all processes, "
            "which selection does not support; set it to False."
        )
    if getattr(args, "neftune_noise_alpha", None) and selection.reuse_forward:
        raise ConfigError(
            f"neftune_noise_alpha={args.neftune_noise_alpha} adds noise to the embeddings in training, but "
            "reuse_forward=True trains from the selection pass, which has no noise; set one to null or False."
        )
    if getattr(args, "neftune_noise_alpha", None) and selection.padding_free:
        raise ConfigError(
            f"neftune_noise_alpha={args.neftune_noise_alpha} scales its noise by the length of a row, but "
            "padding_free=True joins rows; set one to null or False."
        )
    if getattr(args, "torch_compile", False) and selection.reuse_forward:
        raise ConfigError(
            "torch_compile=True inlines the layers' checkpoint function, which reuse_forward=True replaces at each "
            "step; set one of them to False."
        )


def pool_rows(args: Any) -> int:
    """Return N, the rows of a full pool over all ranks."""
    rows: int = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return rows


def check_dealt_stream(config: SelectionConfig) -> None:
    """Check what a stream in balanced order needs of the selection's settings.

    Raises:
        ConfigError: features from a file, or a `keep_schedule`.
    """
    if config.order_by not in ("tokens", "sources"):
        raise ConfigError(
            f"order_by={config.order_by!r} is a file with a vector for each row, but the rows of a stream have no "
            "numbers; set order_by to 'tokens' or 'sources'."
        )
    if config.keep_schedule:
        raise ConfigError(
            "order='balanced' deals the rows of a stream before it is known in which step they come, so keep_schedule "
            "cannot say how many to keep; leave it out, or set order='random'."
        )


def check_batches(args: Any, rows: int) -> None:
    """Check that `dataloader_drop_last` leaves a batch on each rank, since the Trainer would end without a step.

    Raises:
        ConfigError: `rows`, those of a pass, are too few.
    """
    batches = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batches:
        raise ConfigError(
            f"dataloader_drop_last=True leaves out all {rows} rows, since they do not fill a batch of {batches} "
            "(batch size x ranks), so nothing would be trained; set it to False, or lower "
            "per_device_train_batch_size."
        )


def check_pool_rows(args: Any, saved: int | None) -> None:
    """Check that a resumed run has the same pool size as before, on any number of ranks.

    Completed rows are skipped as whole pools: with another pool size, some rows would be trained on twice, or never.

    Raises:
        ConfigError: the pool sizes differ.
    """
    now = pool_rows(args)
    if saved is not None and saved != now:
        raise ConfigError(
            f"The run's pools have {saved} rows, but now {args.per_device_train_batch_size} rows x "
            f"{args.gradient_accumulation_steps} accumulation steps x {args.world_size} processes make {now}. Adjust "
            "gradient_accumulation_steps so that the product is unchanged."
        )


def _check_processes(args: Any) -> None:
    """Reject several processes if the Trainer sees only one: each would train and save on its own."""
    started = max(rank_and_world()[1], int(os.environ.get("WORLD_SIZE") or 1))
    if started != args.world_size:
        raise ConfigError(
            f"{started} processes were started, but the Trainer trains on {args.world_size}, so gradients would not be "
            "shared and each process would overwrite the others' files. On CPUs, set use_cpu=True in the training "
            "arguments; on GPUs, make sure that torch finds them (torch.cuda.is_available())."
        )


def _check_reuse(trainer: Any) -> None:
    """Reject settings that leave `reuse_forward` without checkpointed layers; the selector checks the model itself."""
    args = trainer.args
    named = ("activation_checkpointing", "gradient_checkpointing")  # the newer name first
    if not any(getattr(args, name, False) for name in named) and not any(
        getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules()
    ):
        raise ConfigError(
            "reuse_forward=True requires gradient checkpointing, which is off; set gradient_checkpointing=True in the "
            "training arguments, or reuse_forward=False."
        )


def _check_parallelism(trainer: Any) -> None:
    for kind in ("tp", "cp", "sp"):
        size = getattr(trainer, f"get_{kind}_size", lambda: 1)()
        if size > 1:
            name = {"tp": "Tensor", "cp": "Context", "sp": "Sequence"}[kind]
            raise ConfigError(
                f"{name} parallelism of {size} ranks splits examples or weights in ways that selection does not "
                "support; use data parallelism."
            )
