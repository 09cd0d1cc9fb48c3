"""Weights that an engine splits over ranks, in the Trainers: accelerate's FSDP2 and DeepSpeed's ZeRO."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from colm.errors import ConfigError
from colm.step.sharding import reshard

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerSeams
else:
    _TrainerSeams = object  # the subclass adds the Trainer, or TRL's

GATHER = "stage3_gather_16bit_weights_on_model_save"


def engine_of(trainer: Any) -> str:
    """Return ``FSDP``, ``DeepSpeed``, or ``no engine``."""
    if trainer.is_deepspeed_enabled:
        return "DeepSpeed"
    return "FSDP" if trainer.is_fsdp_enabled else "no engine"


def zero_stage(trainer: Any) -> int | None:
    """Return the stage of DeepSpeed's ZeRO; None without DeepSpeed."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return None if plugin is None else int(plugin.zero_stage)


def fsdp_plugin(trainer: Any) -> Any:
    """Return accelerate's settings of FSDP; None without it."""
    return getattr(trainer.accelerator.state, "fsdp_plugin", None)


def evaluates_in_training(trainer: Any) -> bool:
    """Return whether the model is placed in `train` and not before: by an engine, or for evaluations in half precision.

    Those round the weights if they come before `train`.
    """
    half = trainer.args.bf16_full_eval or trainer.args.fp16_full_eval
    return engine_of(trainer) != "no engine" or bool(half)


def check_engine(trainer: Any) -> None:
    """Reject engines that do not run, or with which selection has not been tested.

    Raises:
        ConfigError: FSDP1, FSDP on a CPU, or ZeRO-3 that would not save the model.
    """
    plugin = fsdp_plugin(trainer)
    if plugin is not None and plugin.fsdp_version == 1:
        raise ConfigError(
            "FSDP1 has not been tested with selection, and transformers will remove it. Set version: 2 in fsdp_config "
            "(fsdp_version: 2 in an accelerate config)."
        )
    if plugin is None and (getattr(trainer.args, "fsdp", None) or os.environ.get("ACCELERATE_USE_FSDP") == "true"):
        raise ConfigError(
            "FSDP shards nothing here: accelerate drops it on CPUs, so each process would hold the whole model. Unset "
            "fsdp, or launch without an FSDP configuration, or train on GPUs."
        )
    zero = trainer.accelerator.state.deepspeed_plugin if zero_stage(trainer) == 3 else None
    if zero is not None and not zero.deepspeed_config["zero_optimization"].get(GATHER):
        raise ConfigError(
            f"{GATHER} is not true in DeepSpeed's configuration, so ZeRO-3 would save no model at the end. Set it to "
            "true (zero3_save_16bit_model: true in an accelerate config)."
        )


@contextmanager
def whole_weights(trainer: Any) -> Iterator[None]:
    """Within the block, the Trainer saves the whole model, also if checkpoints hold FSDP's shards."""
    reshard(trainer.model)
    plugin = fsdp_plugin(trainer)
    if plugin is None:
        yield
        return
    held = plugin.state_dict_type
    plugin.state_dict_type = type(held).FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = held


class EngineMixin(_TrainerSeams):
    """Makes evaluations, the saved model and the best checkpoint work with split weights."""

    in_checkpoint: bool

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does."""
        stage = zero_stage(self)
        early = self.is_fsdp_enabled and not self.accelerator._models
        if early or (stage is not None and stage < 3 and self.deepspeed is None):  # their own errors name no remedy
            raise ConfigError(
                f"{engine_of(self)} evaluates only once train() has placed the model. Set eval_on_start=True in the "
                "training arguments, or evaluate the saved model in one process."
            )
        return super().evaluation_loop(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        if self.is_deepspeed_enabled and self.deepspeed is not None and self.state.global_step == 0:
            raise ConfigError(  # else the first backward would fail
                "DeepSpeed cannot train a model that was evaluated before train(). Remove that evaluate(), and set "
                "eval_on_start=True in the training arguments."
            )
        return super().train(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model; where checkpoints hold FSDP's shards, the Trainer would save no weights."""
        with nullcontext() if self.in_checkpoint else whole_weights(self):  # a checkpoint is as the user asked
            super().save_model(output_dir, _internal_call)

    def _load_best_model(self) -> None:
        """Load it into weights that an evaluation may have gathered."""
        reshard(self.model)
        super()._load_best_model()
