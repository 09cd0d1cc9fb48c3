"""One training: from settings to a fine-tuned model with a summary."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from colm.errors import ColmError, ConfigError, StoppedEarly, one_line, suggest
from colm.lab.data.held_rows import write_rows
from colm.lab.run.adapters import add_lora
from colm.lab.run.cadence import settle_evaluation
from colm.lab.run.card import write_card
from colm.lab.run.folder import CARD_NAME, RunFolder
from colm.lab.run.hub import HubTrainer, UploadCheckpoints, upload_run
from colm.lab.run.kept import describe_kept
from colm.lab.run.loader import loader_defaults
from colm.lab.run.loggers import Loggers
from colm.lab.run.losses import LossRecorder
from colm.lab.run.named import check_adapter, load_named
from colm.lab.run.output import is_first_rank
from colm.lab.run.prepare import PreparedData, largest_token, longest_row, prepare_data
from colm.lab.run.resume import BeginRun, Texts, beginning, changed_settings, check_data, check_order, fingerprint_run
from colm.lab.run.settings import RunSettings
from colm.lab.run.summary import best_step, summarise
from colm.models import check_positions, check_vocabulary, count_positions, pad_within
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
from colm.trainers.evaluation import MACRO, EvaluationRecorder, name_metric, peak_memory
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
    kept = settings.output_dir if checkpoint is not None else replay.parent if replay is not None else None
    with _timed("Reading and tokenizing the data"):
        data = prepare_data(settings, resume=checkpoint is not None, kept=kept)._replace(texts=())  # no longer needed
    if data.validation and replay is None:  # a replay evaluates when its run did
        settings = settle_evaluation(settings, resumed=checkpoint is not None)
    fingerprint = fingerprint_run(settings, data) if is_first_rank() else None
    if kept is not None and fingerprint is not None:
        trained = {key: value for key, value in fingerprint.items() if key == "train"}
        check_data(kept, fingerprint if checkpoint is not None else trained)  # a replay may evaluate on other rows
    if fingerprint is not None:
        check_order(settings, data, fingerprint)
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
    if torch.cuda.is_available():
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
    with _timed("Training"):
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


def make_trainer(settings: RunSettings, data: PreparedData, *, replay: Path | None = None) -> HubTrainer:
    """Load the model and make its trainer, with all checks that need the data. Raises ColmError."""
    args = build_arguments(settings, data)  # DeepSpeed's ZeRO-3 then splits the weights as they are loaded
    return build_trainer(settings, make_model(settings, data), data, args, replay=replay)


def make_model(settings: RunSettings, data: PreparedData) -> Any:
    """Load the model that a run starts with, and check that it can read the data. Raises ColmError."""
    set_seed(settings.seed)  # tokenizing must not affect the model's initialization
    with _timed("Loading the model"):
        model = build_model(settings, data.tokenizer)
    pad_within(data.tokenizer, model)
    check_vocabulary(model, largest_token(data), "The stream may have" if data.window is not None else "The data has")
    if settings.data.max_length > (count_positions(model) or math.inf):  # otherwise no row can be too long
        check_positions(model, longest_row(data, settings))
    return model


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    logger.debug("%s took %.1f s.", what, time.perf_counter() - start)


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


def build_model(settings: RunSettings, tokenizer: Any) -> Any:
    """Load the model, with LoRA if the settings ask for it.

    Raises:
        ConfigError: the model cannot be loaded, or the LoRA settings do not fit it.
    """
    named = check_adapter(settings)
    model = load_named(settings, named, tokenizer)
    if settings.lora is None:
        return model
    if named.adapter is None:
        model = add_lora(model, settings.lora)
    if settings.arguments["gradient_checkpointing"] or settings.arguments.get("activation_checkpointing"):
        model.enable_input_require_grads()  # with a frozen base, a checkpointed layer needs an input with a gradient
    return model


def build_arguments(settings: RunSettings, data: PreparedData) -> TrainingArguments:
    """Make the Trainer's arguments, which also connects the processes. Raises ConfigError."""
    training = {**loader_defaults(settings), **settings.training}
    if data.held_out and not data.validation:  # all rows are too long to measure
        training = {**training, "eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False}
    with _as_refused():
        return TrainingArguments(output_dir=str(settings.output_dir), seed=settings.seed, **training)


def build_trainer(
    settings: RunSettings, model: Any, data: PreparedData, args: TrainingArguments, *, replay: Path | None = None
) -> HubTrainer:
    """Make the trainer, with all checks of its setup; it shows its steps if this module's logger logs information."""
    with _as_refused():
        trainer = HubTrainer(
            model=model,
            args=args,
            train_dataset=data.train,
            validation=data.validation,
            data_collator=DataCollatorForSeq2Seq(data.tokenizer, padding=True, label_pad_token_id=-100),
            processing_class=data.tokenizer,
            selection=settings.selection,
            source_column=settings.data.source_column,
            replay=replay,
            source_sizes=settings.data.source_sizes or None,
            window=settings.data.window,
        )
    _check_metric(trainer)
    shows = logger.isEnabledFor(logging.INFO)
    if not shows or not trainer.args.disable_tqdm:
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
    if shows and not trainer.args.disable_tqdm:
        trainer.add_callback(_Progress())
    return trainer


@contextmanager
def _as_refused() -> Iterator[None]:
    """Within the block, report any other error than ours as a refused setting."""
    try:
        yield
    except ColmError:
        raise
    except Exception as error:  # from transformers and what it calls: packages, the Hub
        raise ConfigError(f"The training settings were refused ({one_line(error)}).") from error


def _check_metric(trainer: HubTrainer) -> None:
    """Refuse a metric that evaluations lack; the Trainer would notice only after the first evaluation."""
    args = trainer.args
    if args.metric_for_best_model is None or not trainer.validation:
        return  # if it is set, each evaluation looks it up
    known = ["loss", MACRO, *map(name_metric, trainer.validation)]
    name = str(args.metric_for_best_model).removeprefix("eval_")
    if name not in known:
        raise ConfigError(
            f"training.metric_for_best_model={args.metric_for_best_model!r} is not a metric of the evaluation."
            f"{suggest(name, known)} Available: {', '.join(known)}."
        )


class _Progress(ProgressCallback):
    """The Trainer's progress bar, with one short line per log instead of the whole dictionary."""

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do not show a bar for each source's evaluation, which is short."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write the loss, the rows, the selection's share of the time, and the noise scale after a measurement."""
        if not state.is_world_process_zero or self.training_bar is None or not logs or "loss" not in logs:
            return
        noise = f"  noise scale {logs['noise_scale']:.3g} rows" if "noise_scale" in logs else ""
        self.training_bar.write(
            f"step {state.global_step:>5}  loss {logs['loss']:.4f}  "
            f"kept {logs.get('coreset_kept', 0):.0f} of {logs.get('coreset_pool', 0):.0f} "
            f"({logs.get('coreset_small_kept', 0):.1f} of small sources)  "
            f"selection {logs.get('selection_seconds', 0):.2f} s, {logs.get('selection_share', 0):.0%} of the step"
            f"{noise}"
        )
