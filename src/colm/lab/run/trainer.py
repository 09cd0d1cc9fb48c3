"""A run's model and trainer, with the checks that need its data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import DataCollatorForSeq2Seq, PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from colm.errors import ColmError, ConfigError, one_line, suggest
from colm.lab.run.adapters import add_lora
from colm.lab.run.check import refuse_evaluation
from colm.lab.run.hub import HubTrainer
from colm.lab.run.loader import loader_defaults
from colm.lab.run.named import check_adapter, load_named
from colm.lab.run.prepare import PreparedData, largest_token, longest_row
from colm.lab.run.settings import RunSettings
from colm.models import check_positions, check_vocabulary, count_positions, pad_within
from colm.trainers.evaluation import MACRO, name_metric

logger = logging.getLogger(__name__)


def make_trainer(settings: RunSettings, data: PreparedData, *, replay: Path | None = None) -> HubTrainer:
    """Load the model and make its trainer, with all checks that need the data. Raises ColmError."""
    args = build_arguments(settings, data)  # DeepSpeed's ZeRO-3 then splits the weights as they are loaded
    return build_trainer(settings, make_model(settings, data), data, args, replay=replay)


def make_model(settings: RunSettings, data: PreparedData) -> Any:
    """Load the model that a run starts with, and check that it can read the data. Raises ColmError."""
    set_seed(settings.seed)  # tokenizing must not affect the model's initialization
    with timed("Loading the model"):
        model = build_model(settings, data.tokenizer)
    pad_within(data.tokenizer, model)
    check_vocabulary(model, largest_token(data), "The stream may have" if data.window is not None else "The data has")
    if settings.data.max_length > (count_positions(model) or math.inf):  # otherwise no row can be too long
        check_positions(model, longest_row(data, settings))
    return model


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log what the block does and its seconds, at level DEBUG."""
    start = time.perf_counter()
    yield
    logger.debug("%s took %.1f s.", what, time.perf_counter() - start)


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
    if not data.validation and not data.held_out:  # no source has rows to spare
        refuse_evaluation(settings)
    elif not data.validation:  # all rows are too long to measure
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
