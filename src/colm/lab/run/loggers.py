"""The loggers of `training.report_to`: one series for each run, with TensorBoard's files in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, get_reporting_integration_callbacks

from colm.lab.run.folder import RunFolder
from colm.lab.run.recognize import EVENTS_FOLDER, EVENTS_PREFIX
from colm.lab.run.staging import refuse
from colm.trainers.evaluation import SourceTrainer


class Loggers(TrainerCallback):
    """Takes the loggers from a trainer, and gives them back with all evaluations of the run.

    A logger's series lasts from the Trainer's ``on_train_begin`` to its ``on_train_end``; a log before or after opens
    another. The first evaluation comes before the run has its folder, so the loggers get it later; the last one is made
    before they close.

    Args:
        trainer: the trainer, whose loggers are taken.
        folder: the run's folder, for TensorBoard's files.
        resumed_at: step of the checkpoint; TensorBoard then drops what it has of later steps. None if the run starts.

    Raises:
        ConfigError: a file has the name of the folder for TensorBoard's files.
    """

    def __init__(self, trainer: SourceTrainer, folder: RunFolder, *, resumed_at: int | None) -> None:
        self._trainer, self._folder, self._resumed_at = trainer, folder, resumed_at
        self._first: Mapping[str, float] = {}
        self._evaluate_last: Callable[[], None] | None = None
        kinds = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
        self._loggers = [each for each in trainer.callback_handler.callbacks if isinstance(each, kinds)]
        for each in self._loggers:
            trainer.remove_callback(each)
            if isinstance(each, TrackioCallback):
                each._trackio = _AtSteps(each._trackio)
        place = folder.path / EVENTS_FOLDER
        if any(isinstance(each, TensorBoardCallback) for each in self._loggers) and place.exists():
            refuse(folder.path, [] if place.is_dir() else [EVENTS_FOLDER])

    def give_back(self, first: Mapping[str, float], evaluate_last: Callable[[], None]) -> None:
        """Add the loggers to the trainer, after its other callbacks.

        Args:
            first: metrics of the first evaluation, which the loggers did not see; empty without one.
            evaluate_last: called after the last step, before the loggers close.
        """
        self._first, self._evaluate_last = first, evaluate_last
        for callback in (self, *self._loggers):
            self._trainer.add_callback(callback)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open TensorBoard's file in the run's folder, and pass on the first evaluation."""
        for each in self._loggers:
            if isinstance(each, TensorBoardCallback) and each.logging_dir is None and state.is_world_process_zero:
                self._open_tensorboard(each)
            if self._first:
                each.on_log(args, state, control, logs=dict(self._first), **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the last time."""
        assert self._evaluate_last is not None
        self._evaluate_last()

    def _open_tensorboard(self, callback: TensorBoardCallback) -> None:
        place = self._folder.path / EVENTS_FOLDER
        before = set(place.glob(f"{EVENTS_PREFIX}*"))
        purge = None if self._resumed_at is None else self._resumed_at + 1
        callback.logging_dir = str(place)
        callback.tb_writer = callback._SummaryWriter(log_dir=str(place), purge_step=purge)
        new = set(place.glob(f"{EVENTS_PREFIX}*")) - before
        self._folder.grow([path.relative_to(self._folder.path).as_posix() for path in new])


class _AtSteps:
    """The module trackio, but each log is at its optimizer step; transformers has trackio count the logs."""

    def __init__(self, trackio: Any) -> None:
        self._trackio = trackio

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trackio, name)

    def log(self, metrics: dict[str, Any]) -> None:
        """Log the metrics at their step."""
        self._trackio.log(metrics, step=metrics["train/global_step"])
