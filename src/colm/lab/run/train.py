"""One training: from settings to a fine-tuned model with a summary."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from colm.errors import StoppedEarly
from colm.lab.data.fingerprint import Fingerprint
from colm.lab.data.held_rows import write_rows
from colm.lab.run.cadence import settle_evaluation
from colm.lab.run.card import write_card
from colm.lab.run.folder import CARD_NAME, RunFolder
from colm.lab.run.hub import HubTrainer, UploadCheckpoints, upload_run
from colm.lab.run.kept import describe_kept
from colm.lab.run.loggers import Loggers
from colm.lab.run.losses import LossRecorder
from colm.lab.run.output import is_first_rank
from colm.lab.run.prepare import PreparedData, prepare_data
from colm.lab.run.resume import BeginRun, Texts, beginning, changed_settings, check_data, check_order, fingerprint_run
from colm.lab.run.settings import RunSettings
from colm.lab.run.summary import best_step, summarise
from colm.lab.run.trainer import make_trainer, timed
from colm.step.record import (
    EVALUATIONS_NAME,
    EXAMPLES_NAME,
    FILE_NAME,
    LOSSES_NAME,
    PROFILE_NAME,
    SUMMARY_NAME,
    TRACE_NAME,
    StepLog,
    read_records,
)
from colm.step.sharding import whole_shape
from colm.trainers.checkpoints import step_of
from colm.trainers.engines import evaluates_in_training
from colm.trainers.evaluation import EvaluationRecorder, peak_memory
from colm.trainers.preemption import StopOnSignal
from colm.trainers.profiling import StepProfiler

logger = logging.getLogger(__name__)


def train(
    settings: RunSettings,
    folder: RunFolder,
    checkpoint: Path | None = None,
    *,
    replay: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Run one training and return the content of `summary.json`.

    Args:
        settings: the run's settings.
        folder: its output folder, locked.
        checkpoint: checkpoint to resume from. Without one, training replaces the run in the folder, but only after
            data, model and settings have been checked.
        replay: a record to train on instead of selecting.
        callbacks: further callbacks for the Trainer.

    Raises:
        DataError: the checkpoint belongs to a run on other data.
        StoppedEarly: after SIGTERM; the step's checkpoint is written.
    """
    set_seed(settings.seed)
    settings, data, fingerprint = _read_data(settings, resumed=checkpoint is not None, replay=replay)
    if is_first_rank():
        folder.refuse_foreign(_saved_names(data.tokenizer))
    trainer = make_trainer(settings, data, replay=replay)
    if is_first_rank():
        folder.require_room(_saved_bytes(trainer.model))
    trainer.announce = folder.announce
    if checkpoint is None and is_first_rank():
        folder.staging.make()  # the first evaluation comes before the run starts
    evaluations = StepLog((folder.staging.new if checkpoint is None else folder.path) / EVALUATIONS_NAME)
    resumed_at = step_of(checkpoint) if checkpoint else None
    recorder = EvaluationRecorder(trainer, evaluations, resumed_at=resumed_at or 0)
    trainer.add_callback(recorder)
    loggers = Loggers(trainer, folder, resumed_at=resumed_at)
    first: dict[str, float] = {}
    if data.validation and recorder.last_step is None:
        if evaluates_in_training(trainer):
            trainer.args.eval_on_start = True
        else:
            first = trainer.evaluate()
    set_seed(settings.seed)  # a resumed run skips this evaluation, and must shuffle the same way
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()

    def begun() -> None:
        folder.began = True
        evaluations.path = folder.path / EVALUATIONS_NAME

    texts: Texts = {}
    if checkpoint is not None:
        texts = changed_settings(settings, folder)
    elif fingerprint is not None:
        texts = beginning(settings, fingerprint, write_rows(data.held_out, settings.data.format))
    begin = BeginRun(
        folder if is_first_rank() else None,
        texts,
        trainer,
        resumed_at=resumed_at,
        logs=(PROFILE_NAME, TRACE_NAME) if any(isinstance(each, StepProfiler) for each in callbacks) else (),
        then=begun,
    )
    trainer.callback_handler.callbacks.insert(0, begin)  # nothing else may write earlier
    stop = StopOnSignal()
    losses = LossRecorder(StepLog(folder.path / LOSSES_NAME), resumed_at=resumed_at or 0)
    for callback in (losses, stop, UploadCheckpoints(trainer), *callbacks):
        trainer.add_callback(callback)
    memory: dict[str, Any] = {}

    def interrupted() -> bool:
        return stop.stopped and trainer.state.global_step < trainer.state.max_steps

    def evaluate_last() -> None:
        memory.update(peak_memory())
        known = best_step(trainer) is not None or recorder.last_step == trainer.state.global_step
        if data.validation and not known and not interrupted():
            trainer.evaluate()

    loggers.give_back(first, evaluate_last)
    with timed("Training"):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interrupted():
        raise StoppedEarly(
            f"stopped by SIGTERM in step {trainer.state.global_step}; its checkpoint is in {folder.path}. Resume with "
            "--resume"
        )
    saved = _save_model(trainer, folder, data.tokenizer)
    if not is_first_rank():
        return {}
    summary = _write_results(settings, trainer, folder, data, list(evaluations.read())) | memory
    folder.write(SUMMARY_NAME, json.dumps(summary, indent=2) + "\n")  # last: it marks the run as finished
    if trainer.args.push_to_hub:
        upload_run(trainer, [*saved, CARD_NAME])
    return summary


def _read_data(
    settings: RunSettings, *, resumed: bool, replay: Path | None
) -> tuple[RunSettings, PreparedData, Fingerprint | None]:
    """Return the settings with times of evaluation, the data, and on the first rank what identifies them.

    Raises:
        DataError: the checkpoint or the record belongs to a run on other data.
    """
    kept = settings.output_dir if resumed else replay.parent if replay is not None else None
    with timed("Reading and tokenizing the data"):
        data = prepare_data(settings, resume=resumed, kept=kept)._replace(texts=())  # no longer needed
    if data.validation and replay is None:  # a replay evaluates when its run did
        settings = settle_evaluation(settings, resumed=resumed)
    if not is_first_rank():
        return settings, data, None
    fingerprint = fingerprint_run(settings, data)
    if kept is not None:
        trained = {key: value for key, value in fingerprint.items() if key == "train"}
        check_data(kept, fingerprint if resumed else trained)  # a replay may evaluate on other rows
    check_order(settings, data, fingerprint)
    return settings, data, fingerprint


def _write_results(
    settings: RunSettings, trainer: HubTrainer, folder: RunFolder, data: PreparedData, evaluations: Sequence[Any]
) -> dict[str, Any]:
    """Write the examples kept most and least often and the model card, and return the run's figures."""
    examples: dict[str, Any] = {"most_kept": [], "least_kept": []}  # the rows of a stream are no longer available
    if data.window is None:
        records = read_records(folder.path / FILE_NAME)
        examples = describe_kept(records, trainer.selector.small, data.train, data.tokenizer)
    folder.write(EXAMPLES_NAME, json.dumps(examples, indent=2) + "\n")
    dropped = data.counts.dropped if data.counts else {}
    summary = summarise(trainer, evaluations, best_step(trainer), dropped=dropped)
    write_card(settings, trainer.model, summary, folder)
    return summary


def _saved_names(tokenizer: Any) -> list[str]:
    """Return the names of the files that a tokenizer is saved to."""
    with TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        return os.listdir(place)


def _saved_bytes(model: Any) -> int:
    """Return the size of the saved weights in bytes: the adapter's, or all."""
    adapter = hasattr(model, "peft_config")
    saved = [weight for weight in model.parameters() if weight.requires_grad or not adapter]
    return sum(math.prod(whole_shape(weight)) * weight.element_size() for weight in saved)


def _save_model(trainer: HubTrainer, folder: RunFolder, tokenizer: Any) -> list[str]:
    """Save the model and the tokenizer atomically; return the files' names in the process that writes."""
    if is_first_rank():
        folder.staging.make()
    trainer.save_model(str(folder.staging.new), _internal_call=True)  # does not upload: the files are not in place yet
    if not is_first_rank():
        return []
    tokenizer.save_pretrained(str(folder.staging.new))
    (folder.staging.new / CARD_NAME).unlink(missing_ok=True)  # PEFT's
    saved = folder.staging.files()
    folder.adopt()
    return saved
