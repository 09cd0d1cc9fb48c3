"""Save checkpoints whole, with the state of the selection, and resume only from whole ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.trainer import TRAINING_ARGS_NAME

from colm.errors import ConfigError
from colm.step.sharding import reshard
from colm.trainers.checkpoints import (
    STATE_NAME,
    begin_checkpoint,
    drop_old_checkpoints,
    holds_optimizer_of,
    is_complete,
    last_complete_checkpoint,
    mark_complete,
)
from colm.trainers.engines import engine_of
from colm.trainers.liger import layer_kernels_only
from colm.trainers.preemption import StopOnSignal

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerSeams
else:
    _TrainerSeams = object  # the subclass adds the Trainer, or TRL's


class SavingMixin(_TrainerSeams):
    """Makes a Trainer mark complete checkpoints and store the selection's state in them."""

    announce: Callable[[str], None] | None = None
    """Called with each checkpoint's name before it is written, in the process that writes it."""

    in_checkpoint = False
    """Whether a checkpoint is being written."""

    _unlogged: Mapping[str, Any] | None = None
    """Training loss since the last log, from the checkpoint that this run resumes from."""

    def coreset_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds in addition to the Trainer's files."""
        raise NotImplementedError

    def load_coreset_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `coreset_state`."""
        raise NotImplementedError

    def _loss_since_log(self) -> dict[str, Any]:
        """Return each rank's training loss summed since the last log, and that log's step. All ranks must call it."""
        sums = self.accelerator.gather(self._tr_loss.detach().reshape(1))
        return {"sums": sums.tolist(), "logged": self._globalstep_last_logged}

    def restore_loss_since_log(self) -> None:
        """Continue the mean of the next log over the steps before the checkpoint; the Trainer starts it over."""
        if self._unlogged is None:
            return
        sums, self._globalstep_last_logged = self._unlogged["sums"], self._unlogged["logged"]
        mean = sum(sums) / len(sums)
        self._tr_loss += sums[self.args.process_index] if len(sums) == self.args.world_size else mean
        self._total_loss_scalar -= mean  # the loss that `train` returns is that of this call's steps
        self._unlogged = None

    # ---- Overridden Trainer methods ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save the Trainer's files, the selection's, and the completion marker; then delete old checkpoints."""
        reshard(self.model)
        run_folder = Path(self._get_output_dir(trial=trial))
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            if self.announce is not None:
                self.announce(folder.name)
            begin_checkpoint(folder)
        self.accelerator.wait_for_everyone()  # other ranks must not write before this
        unlogged = self._loss_since_log()
        # The Trainer would delete the last complete checkpoint before this one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self.in_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit, self.in_checkpoint = limit, False
        if self.args.should_save:
            torch.save(_without_token(self.args), folder / TRAINING_ARGS_NAME)  # with the limit
            torch.save(self.coreset_state() | {"loss": unlogged}, folder / STATE_NAME)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder)
            drop_old_checkpoints(run_folder, limit, self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also load the selection's state."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if not is_complete(folder) or not (folder / STATE_NAME).exists():
            raise ConfigError(
                f"{folder} is not a complete checkpoint of a coreset run (its marker or one of its files is missing). "
                "Resume from an earlier checkpoint."
            )
        held, engine = holds_optimizer_of(folder), engine_of(self)
        if held is not None and held != engine:
            raise ConfigError(
                f"{folder} was saved with {held}, and this run uses {engine}; resume with the launch configuration and "
                "training arguments of the saved run."
            )
        if held is None:
            raise ConfigError(
                f"{folder} contains the model but no optimizer state, as saved with save_only_model=True, so the run "
                "cannot be resumed exactly. Start a new run with save_only_model=False."
            )
        state = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
        self.load_coreset_state(state)
        self._unlogged = state.get("loss")

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; ``True`` resumes from the last complete checkpoint."""
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(Path(self.args.output_dir))
            if found is None:
                raise ConfigError(f"{self.args.output_dir} contains no complete checkpoint to resume from.")
            resume_from_checkpoint = str(found)
        try:
            with layer_kernels_only(self.args):
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, StopOnSignal):
                    callback.restore()


def _without_token(args: Any) -> Any:
    """Return training arguments without an access token, as a checkpoint may be uploaded."""
    args = copy(args)
    args.hub_token = None
    return args
