"""`colm train`: from a configuration to a fine-tuned model with a summary."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
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

from colm.cli.check import check_run
from colm.cli.console import make_console
from colm.cli.kept import describe_kept
from colm.cli.lock import hold_folder
from colm.cli.named import check_adapter, load_named
from colm.cli.prepare import PreparedData, largest_token, longest_row, prepare_data
from colm.cli.resume import WriteConfig, check_data, check_settings, fingerprint_run, write_beginning
from colm.cli.settings import RunSettings, load_settings
from colm.cli.summary import best_step, summarise, summary_table
from colm.errors import ColmError, ConfigError, StoppedEarly, suggest
from colm.integrations.checkpoints import last_complete_checkpoint
from colm.integrations.evaluation import MACRO, EvaluationRecorder, SourceTrainer, name_metric, peak_memory
from colm.integrations.preemption import StopOnSignal
from colm.integrations.profiling import TABLE_NAME, TRACE_NAME, StepProfiler
from colm.models import add_lora, check_positions, check_vocabulary, count_positions, pad_within
from colm.record import (
    ANSWER_LINES_NAME,
    ANSWERS_NAME,
    CONFIG_NAME,
    DATA_NAME,
    EVALUATIONS_NAME,
    EXAMPLES_NAME,
    FILE_NAME,
    HARNESS_NAME,
    SUMMARY_NAME,
    StepLog,
    replace_file,
)

logger = logging.getLogger(__name__)


def train_command(
    config: str, overrides: Sequence[str], *, resume: bool, overwrite: bool, profile: bool = False
) -> None:
    """Train as the configuration says, save, and print the summary table."""
    settings = load_settings(config, overrides)
    check_run(settings)
    with hold_output(settings.output_dir):
        checkpoint = check_output(settings, resume=resume, overwrite=overwrite)
        profiler = StepProfiler(settings.output_dir) if profile and _is_first_rank() else None
        summary = train(settings, checkpoint, callbacks=[profiler] if profiler else [])
    if not _is_first_rank():
        return
    console = make_console()
    console.print(summary_table(summary))
    share = summary["selection_seconds"] / summary["seconds"] if summary["seconds"] else 0.0
    console.print(
        f"{summary['steps']} steps in {summary['seconds']:.0f} s, of which selection {share:.0%}. "
        f"Saved in {settings.output_dir}."
    )
    if profiler is not None and profiler.report is not None:
        print(f"\n{profiler.report}\n\nOperations: {TABLE_NAME}; trace: {TRACE_NAME}, for ui.perfetto.dev.")


def hold_output(folder: Path) -> AbstractContextManager[None]:
    """Keep other trainings out of the output folder, in the process that writes there. Raises as `hold_folder`."""
    return hold_folder(folder) if _is_first_rank() else nullcontext()


def check_output(settings: RunSettings, *, resume: bool, overwrite: bool) -> Path | None:
    """Check that the output folder may be written, and return the checkpoint to go on from, if any.

    Nothing is deleted yet. Of several ranks the first one checks; all find the same checkpoint.

    Raises:
        ConfigError: the folder holds a run and neither flag is given, there is nothing to resume, or the run that is to
            go on has other settings.
    """
    folder = settings.output_dir
    held = _run_files(folder)
    if resume:
        if not held:
            raise ConfigError(f"There is no run to resume in {folder}; leave --resume out.")
        if (folder / CONFIG_NAME).exists() and _is_first_rank():
            check_settings(settings)
        # The configuration goes first when a run is replaced, and comes last: without it the checkpoints are another's.
        checkpoint = last_complete_checkpoint(folder) if (folder / CONFIG_NAME).exists() else None
        if checkpoint is None:
            logger.warning("%s holds no complete checkpoint; the run starts from the beginning.", folder)
        return checkpoint
    if held and not overwrite and _is_first_rank():
        raise ConfigError(
            f"{folder} already holds a run ({held[0].name}). Go on with --resume, replace it with --overwrite, or "
            "choose another output_dir."
        )
    return None


def _run_files(folder: Path) -> list[Path]:
    names = (CONFIG_NAME, SUMMARY_NAME, EVALUATIONS_NAME, EXAMPLES_NAME, FILE_NAME, DATA_NAME)
    return [folder / name for name in names if (folder / name).exists()] + list(folder.glob("checkpoint-*"))


def train(
    settings: RunSettings,
    checkpoint: Path | None = None,
    *,
    replay: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Run one training and return what `summary.json` holds.

    Args:
        settings: the run.
        checkpoint: to go on from. Without one, a run that the folder holds is deleted, once data, model and settings
            have been checked.
        replay: a record whose choices are trained on, instead of selecting.
        callbacks: more of the Trainer's.

    Raises:
        DataError: the checkpoint is of a run on other data.
        StoppedEarly: SIGTERM came; the checkpoint of the step is written.
    """
    set_seed(settings.seed)
    data = prepare_data(settings, resume=checkpoint is not None)
    fingerprint = fingerprint_run(settings, data) if _is_first_rank() else None
    if checkpoint is not None:
        check_data(settings.output_dir, fingerprint)
    set_seed(settings.seed)  # tokenising must not move the model's initialisation
    model = build_model(settings, data.tokenizer)
    pad_within(data.tokenizer, model)
    check_vocabulary(model, largest_token(data), "The stream may have" if data.window is not None else "The data has")
    if settings.data["max_length"] > (count_positions(model) or math.inf):  # else no row can be too long
        check_positions(model, longest_row(data, settings))
    trainer = build_trainer(settings, model, data, replay=replay)
    folder = settings.output_dir
    if _is_first_rank():
        names = (ANSWERS_NAME, ANSWER_LINES_NAME, HARNESS_NAME, TABLE_NAME, TRACE_NAME)
        stale = [folder / name for name in names if (folder / name).exists()]
        for path in [*_run_files(folder), *stale] if checkpoint is None else stale:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            write_beginning(settings, fingerprint)
    trainer.accelerator.wait_for_everyone()  # the first rank may still have been clearing the folder
    evaluations = StepLog(folder / EVALUATIONS_NAME)
    resumed_at = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    recorder = EvaluationRecorder(trainer, evaluations, resumed_at=resumed_at)
    trainer.add_callback(recorder)
    if data.validation and recorder.last_step is None:
        trainer.evaluate()
    set_seed(settings.seed)  # a resumed run does not evaluate first, and must shuffle the same
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    stop = StopOnSignal()
    for callback in (stop, *([WriteConfig(settings)] if checkpoint else []), *callbacks):
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        raise StoppedEarly(
            f"told to stop (SIGTERM) in step {trainer.state.global_step}, whose checkpoint is written to {folder}; go "
            "on with --resume"
        )
    memory = peak_memory()
    best = best_step(trainer)
    if data.validation and best is None and recorder.last_step != trainer.state.global_step:
        trainer.evaluate()
    trainer.save_model(str(folder))
    if not _is_first_rank():
        return {}
    data.tokenizer.save_pretrained(str(folder))
    examples: dict[str, Any] = {"most_kept": [], "least_kept": []}  # the rows of a stream are gone
    if data.window is None:
        lines = StepLog(folder / FILE_NAME).read()
        examples = describe_kept(lines, trainer.selector.small, data.train, data.tokenizer)
    replace_file(folder / EXAMPLES_NAME, json.dumps(examples, indent=2) + "\n")
    summary = summarise(trainer, list(evaluations.read()), best) | memory
    replace_file(folder / SUMMARY_NAME, json.dumps(summary, indent=2) + "\n")  # last: it says that the run is done
    return summary


def build_model(settings: RunSettings, tokenizer: Any) -> Any:
    """Load the model and put LoRA on it where the settings ask for it.

    Raises:
        ConfigError: the model can not be loaded, or LoRA's settings do not fit it.
    """
    named = check_adapter(settings)
    model = load_named(settings, named, tokenizer)
    if settings.lora is None:
        return model
    if named.adapter is None:
        model = add_lora(model, settings.lora)
    if settings.training.get("gradient_checkpointing") or settings.training.get("activation_checkpointing"):
        model.enable_input_require_grads()  # a checkpointed layer with a frozen base needs an input with a gradient
    return model


def build_trainer(
    settings: RunSettings, model: Any, data: PreparedData, *, replay: Path | None = None
) -> SourceTrainer:
    """Make the trainer; every check of its set-up happens here."""
    try:
        trainer = SourceTrainer(
            model=model,
            args=TrainingArguments(output_dir=str(settings.output_dir), seed=settings.seed, **settings.training),
            train_dataset=data.train,
            validation=data.validation,
            data_collator=DataCollatorForSeq2Seq(data.tokenizer, padding=True, label_pad_token_id=-100),
            processing_class=data.tokenizer,
            selection=settings.selection,
            source_column=settings.data["source_column"],
            replay=replay,
            source_sizes=settings.data["source_sizes"] or None,
            window=settings.data["window"],
        )
    except ColmError:
        raise
    except Exception as error:  # of transformers, and of what it asks: packages, the hub
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"The training settings were refused ({said}).") from error
    _check_metric(trainer)
    if not trainer.args.disable_tqdm:
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(_Progress())
    return trainer


def _check_metric(trainer: SourceTrainer) -> None:
    """Refuse a metric to choose by that no evaluation has, which the Trainer finds out after the first one."""
    args = trainer.args
    chooses = args.load_best_model_at_end or args.save_strategy == "best"
    if not chooses and args.lr_scheduler_type not in ("reduce_lr_on_plateau", "greedy"):
        return
    known = ["loss", MACRO, *map(name_metric, trainer.validation)]
    name = str(args.metric_for_best_model).removeprefix("eval_")
    if name not in known:
        raise ConfigError(
            f"training.metric_for_best_model={args.metric_for_best_model!r} is no metric of the evaluation."
            f"{suggest(name, known)} There are: {', '.join(known)}."
        )


def _is_first_rank() -> bool:
    """True in the process that writes, also before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


class _Progress(ProgressCallback):
    """The Trainer's progress bar, with one short line for each log instead of the whole dictionary."""

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show no bar of its own for each source's evaluation, which is short."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write loss, rows and the selection's share of the time."""
        if not state.is_world_process_zero or self.training_bar is None or not logs or "loss" not in logs:
            return
        self.training_bar.write(
            f"step {state.global_step:>5}  loss {logs['loss']:.4f}  "
            f"kept {logs.get('coreset_kept', 0):.0f} of {logs.get('coreset_pool', 0):.0f} "
            f"({logs.get('coreset_small_kept', 0):.1f} of small sources)  "
            f"selection {logs.get('selection_seconds', 0):.2f} s, {logs.get('selection_share', 0):.0%} of the step"
        )
