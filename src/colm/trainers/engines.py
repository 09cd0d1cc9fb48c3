"""Weights that an engine splits over ranks, in the Trainers: accelerate's FSDP2 and DeepSpeed's ZeRO."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from colm.errors import ConfigError
from colm.step.sharding import reshard

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerSeams
else:
    _TrainerSeams = object  # the subclass adds the Trainer, or TRL's

EVALUATE_FIRST = (
    "{engine} cannot train a model that was evaluated before train(). Remove that evaluate(), and set "
    "eval_on_start=True in the training arguments."
)


def check_engine(trainer: Any) -> None:
    """Reject engines that do not run, or with which selection has not been tested.

    Raises:
        ConfigError: FSDP1, or FSDP on a CPU.
    """
    args = trainer.args
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 1:
        raise ConfigError(
            "FSDP1 has not been tested with selection, and transformers will remove it. Set version: 2 in fsdp_config "
            "(fsdp_version: 2 in an accelerate config)."
        )
    if getattr(args, "fsdp", None) and plugin is None:
        raise ConfigError(
            f"fsdp={args.fsdp} shards nothing here: accelerate drops FSDP on CPUs, so each process would hold the "
            "whole model. Unset fsdp, or train on GPUs."
        )


def evaluates_in_training(trainer: Any) -> bool:
    """Return whether the first evaluation must be one of `train`, which prepares model and optimizer together."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


@contextmanager
def whole_weights(trainer: Any) -> Iterator[None]:
    """Within the block, the Trainer saves the whole model, also if checkpoints hold FSDP's shards."""
    reshard(trainer.model)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    held: Any = None if plugin is None else plugin.state_dict_type
    try:
        if plugin is not None:
            plugin.state_dict_type = type(held).FULL_STATE_DICT
        yield
    finally:
        if plugin is not None:
            plugin.state_dict_type = held


class EngineMixin(_TrainerSeams):
    """Makes evaluations, the saved model and the best checkpoint work with split weights."""

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does."""
        if self.is_fsdp_enabled and not self.accelerator._models:
            raise ConfigError(EVALUATE_FIRST.format(engine="FSDP2"))  # accelerate's error names no remedy
        zero = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if zero is not None and zero.zero_stage < 3 and self.deepspeed is None:
            raise ConfigError(EVALUATE_FIRST.format(engine=f"ZeRO-{zero.zero_stage}"))
        return super().evaluation_loop(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        if self.is_deepspeed_enabled and self.deepspeed is not None and self.state.global_step == 0:
            raise ConfigError(EVALUATE_FIRST.format(engine="DeepSpeed"))  # else the first backward would fail
        return super().train(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model; where checkpoints hold FSDP's shards, the Trainer would save no weights."""
        with nullcontext() if _internal_call else whole_weights(self):  # a checkpoint's files are as the user asked
            super().save_model(output_dir, _internal_call)

    def _load_best_model(self) -> None:
        """Load it into weights that an evaluation may have gathered."""
        reshard(self.model)
        super()._load_best_model()
