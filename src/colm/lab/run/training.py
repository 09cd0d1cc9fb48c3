"""Read the settings of `training` and `lora`, and check what would fail only during training."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from colm.errors import ConfigError, one_line
from colm.lab.run.adapters import lora_config
from colm.lab.run.arguments import (
    ENGINE_SETTINGS,
    LORA_DEFAULTS,
    LORA_PLACE,
    NEEDS_INIT,
    TRAINING_DEFAULTS,
    TRAINING_PLACE,
    lora_hints,
    restore_no,
    training_hints,
)
from colm.lab.run.yaml12 import read_yaml
from colm.typed import read_section, show

ELSEWHERE = {
    "resume_from_checkpoint": "colm train --resume continues from the last checkpoint",
    "do_predict": "colm eval answers questions",
}
"""Arguments that the Trainer leaves to the calling program; colm does this in another way."""

PREPARED = ("eva", "corda", "lora_ga")
"""Initial LoRA weights that PEFT computes from data."""


def read_training(values: Any) -> dict[str, Any]:
    """Read the section `training`, fields of `transformers.TrainingArguments`, and fill in colm's defaults.

    Raises:
        ConfigError: an unknown field, a value of the wrong type or out of range, or one that has no effect.
    """
    if isinstance(values, Mapping):
        values = {key: _plain(str(key), value) for key, value in values.items()}
    given = read_section("training", training_hints(), values, TRAINING_PLACE)
    for name, instead in ELSEWHERE.items():
        if given.get(name):
            raise ConfigError(f"training.{name}={show(given[name])} has no effect here: {instead}. Leave it out.")
    # Pinning memory without an accelerator only warns; without use_cpu, several processes would train separately.
    machine = {"dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": not torch.accelerator.is_available()}
    merged = {**machine, **TRAINING_DEFAULTS, **given}
    if merged["report_to"] is None:
        merged["report_to"] = "none"
    _check_steps(merged)
    _build(merged, elsewhere=True)
    return merged


def _plain(name: str, value: Any) -> Any:
    """Parse a mapping written as JSON, and restore the Trainer's "no"."""
    if name in TrainingArguments._VALID_DICT_FIELDS and isinstance(value, str) and value.startswith("{"):
        try:
            return read_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"training.{name}={show(value)} is not valid JSON ({error}).") from error
    return restore_no(name, value)


def read_lora(values: Any) -> dict[str, Any] | None:
    """Read the section `lora`, fields of `peft.LoraConfig`; None for full fine-tuning.

    Raises:
        ConfigError: as `read_training`.
    """
    if values is None or values is False:
        return None
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"lora is {show(values)}; it must be a mapping of LoraConfig fields, or null for full training."
        )
    given = {**LORA_DEFAULTS, **read_section("lora", lora_hints(), values, LORA_PLACE)}
    for name, needs in NEEDS_INIT.items():
        if given.get(name) is not None and given.get("init_lora_weights") != needs:
            raise ConfigError(f"lora.{name} has no effect without lora.init_lora_weights={needs}; leave it out.")
    tokens = given.get("trainable_token_indices")
    if tokens is not None and any(
        part == [] for part in (tokens.values() if isinstance(tokens, Mapping) else [tokens])
    ):
        raise ConfigError(f"lora.trainable_token_indices={show(tokens)} names no token; leave it out.")
    if str(given.get("init_lora_weights")).startswith("pissa_niter"):
        raise ConfigError(
            f"lora.init_lora_weights={given['init_lora_weights']} changes the model's weights by a random draw that "
            "is not saved with the adapter, so the adapter could not be loaded; set it to pissa, which is exact."
        )
    if given.get("init_lora_weights") in PREPARED:
        raise ConfigError(
            f"lora.init_lora_weights={given['init_lora_weights']} needs a pass over the data before training, which "
            "colm does not support; choose another one, such as true, olora or pissa."
        )
    make_lora_config(given)
    return given


def make_lora_config(lora: Mapping[str, Any]) -> LoraConfig:
    """Make PEFT's configuration, with nested configurations from mappings.

    Raises:
        ConfigError: PEFT refuses the values.
    """
    with _as_settings("lora", "peft.LoraConfig"):
        return lora_config(lora)


def check_training(training: Mapping[str, Any], *, output_dir: str, seed: int) -> TrainingArguments:
    """Check the settings on the machine that trains: packages, optimizer, schedule, loader.

    Returns:
        The arguments, without a device.

    Raises:
        ConfigError: says what is refused, and by which library.
    """
    args = _build({**training, "seed": seed, "output_dir": output_dir})
    with _as_settings("training.report_to", "transformers"):
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    with _as_settings("training.dataloader_*", "torch's DataLoader"):
        DataLoader(
            [0],  # type: ignore[arg-type]
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
    if args.torch_compile:
        with _as_settings("training.torch_compile_backend or torch_compile_mode", "torch.compile"):
            torch.compile(nn.Identity(), backend=str(args.torch_compile_backend), mode=args.torch_compile_mode)
    _check_schedule(args, _check_optimizer(args))
    return args


WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules for which transformers silently ignores the warm-up."""


class _Unplaced(TrainingArguments):
    """Training arguments that do not set up a device, so that ranks connect only after each has checked."""

    @property
    def _setup_devices(self) -> torch.device:
        return torch.device("cpu")


UNSHARDED: dict[str, None] = dict.fromkeys(ENGINE_SETTINGS)
"""Settings for a single process, which holds the whole model."""

MACHINE = {
    **dict.fromkeys(("bf16", "bf16_full_eval", "fp16", "fp16_full_eval", "torch_compile", "push_to_hub"), False),
    **dict.fromkeys(("tf32", "torch_compile_backend", "torch_compile_mode"), None),
    "use_cpu": True,
    "report_to": "none",
    **UNSHARDED,
}
"""Settings that not every machine supports; neutralized when colm only reads a run's settings."""


def _build(training: Mapping[str, Any], *, elsewhere: bool = False) -> TrainingArguments:
    """Let transformers check its arguments, without side effects."""
    if training.get("fsdp_config") and not training.get("fsdp"):
        raise ConfigError(
            "training.fsdp_config has no effect without FSDP; set training.fsdp to true, or leave it out."
        )
    if training.get("deepspeed") and not elsewhere:
        _check_deepspeed(training["deepspeed"])
    values = {"output_dir": "unused", **training, "deepspeed": None, **(MACHINE if elsewhere else {})}
    with _as_settings("training", "transformers.TrainingArguments"):
        args = _Unplaced(**values)
    if getattr(args.accelerator_config, "use_configured_state", False):
        raise ConfigError("training.accelerator_config.use_configured_state has no effect here; leave it out.")
    return args


def _check_deepspeed(config: Any) -> None:
    """Check for the package and the file; the Trainer's arguments check the content, but only in a started group."""
    if find_spec("deepspeed") is None:
        raise ConfigError("training.deepspeed needs the package deepspeed; install it, or leave the setting out.")
    if isinstance(config, str) and not Path(config).is_file():
        raise ConfigError(f"training.deepspeed={show(config)} is not a file; give DeepSpeed's configuration (JSON).")


def _check_steps(training: Mapping[str, Any]) -> None:
    for what in ("save", "logging"):
        steps, strategy = training.get(f"{what}_steps", 500), training.get(f"{what}_strategy", "steps")
        if strategy == "steps" and steps == 0:
            raise ConfigError(
                f"training.{what}_steps=0 must be above 0; set training.{what}_strategy to 'no' for never."
            )


def _check_optimizer(args: TrainingArguments) -> torch.optim.Optimizer:
    """Make the optimizer for one weight; if it needs the model, only check for its package."""
    name = f"training.optim={show(str(getattr(args.optim, 'value', args.optim)))}"
    weight = nn.Parameter(torch.zeros(2, 2))
    with _as_settings(name, "transformers"):
        try:
            made, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
        except ValueError as error:
            if "need to pass a model" not in str(error):
                raise
            return torch.optim.SGD([weight], lr=args.learning_rate)
        if args.optim_args:
            args.optim_args, given = None, args.optim_args
            if Trainer.get_optimizer_cls_and_kwargs(args) == (made, kwargs):
                raise ConfigError(f"training.optim_args={show(given)} has no effect on {name}; leave it out.")
            args.optim_args = given
        if not isinstance(made, type):
            return torch.optim.SGD([weight], lr=args.learning_rate)
        groups = [{"params": [weight], "weight_decay": args.weight_decay}]
        optimizer: torch.optim.Optimizer = made(groups, **{key: kwargs[key] for key in kwargs if key != "params"})
        return optimizer


def _check_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    """Evaluate the schedule at its start, middle and end."""
    steps = args.max_steps if args.max_steps > 0 else 1000
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if kind in WITHOUT_WARMUP and args.get_warmup_steps(steps):
        raise ConfigError(
            f"training.warmup_steps={args.warmup_steps} has no effect with lr_scheduler_type={kind}, which does not "
            "warm up; leave it out, or choose another schedule, such as constant_with_warmup."
        )
    name = f"training.lr_scheduler_type={show(kind)}"
    with _as_settings(f"{name} with lr_scheduler_kwargs={show(args.lr_scheduler_kwargs)}", "transformers"):
        kwargs: Any = args.lr_scheduler_kwargs
        if kwargs is not None and not isinstance(kwargs, dict):
            raise TypeError("lr_scheduler_kwargs must be a mapping")
        if kwargs and args.lr_scheduler_type in ("constant", "constant_with_warmup"):
            raise ValueError("this schedule accepts none")
        schedule = get_scheduler(
            args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, scheduler_specific_kwargs=kwargs
        )
        for rate in getattr(schedule, "lr_lambdas", ()):
            for step in sorted({0, 1, min(args.get_warmup_steps(steps), steps), steps // 2, steps - 1, steps}):
                if not math.isfinite(rate(step)):
                    raise ValueError(f"the learning rate of step {step} is not a number")
        if not hasattr(schedule, "lr_lambdas"):
            optimizer.step()
            schedule.step(1.0) if "metrics" in inspect.signature(schedule.step).parameters else schedule.step()


@contextmanager
def _as_settings(name: str, judge: str) -> Iterator[None]:
    """Within the block, report any error of a library as a wrong setting."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated when the training is set up
            yield
    except ConfigError:
        raise
    except Exception as error:  # each library raises its own
        raise ConfigError(f"{name} was refused by {judge} ({one_line(error)}).") from error
