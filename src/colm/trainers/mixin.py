"""CoresetMixin: coreset training shared by the Hugging Face Trainer and TRL's SFTTrainer.

The Trainer fetches all micro-batches of one optimizer step in `get_batch_samples`. There we replace
the pool by its coreset, in the same number of micro-batches, without copying the training loop:

    Trainer._run_epoch
      get_batch_samples  -> fetch the pool, select, take the kept rows     (prepared)
      training_step ...  -> the Trainer's own forward, backward, optimizer
      on_step_end        -> history and record line                       (committed)
      _save_checkpoint   -> the Trainer's files, then ours, then a completion marker
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset as HubStream
from torch import Tensor, nn
from transformers import TrainerCallback

from colm.config import SelectionConfig
from colm.errors import ConfigError, DataError
from colm.selector import CoresetSelector
from colm.step.exchange import WEIGHT_KEY
from colm.step.pool import ROWS, count_labelled
from colm.step.record import FILE_NAME, StepLog, to_dict
from colm.step.stages import FETCH, TRAIN, stage
from colm.trainers.checks import check_pool_rows, check_trainer, pool_rows, warn_of_uneven_means
from colm.trainers.columns import (
    CODES,
    DEALT_KEY,
    INDEX_KEY,
    ON_HOST_KEY,
    SOURCE_KEY,
    CollatorWithCodes,
    encode_sources,
    set_codes_aside,
    silence_repeats,
)
from colm.trainers.engines import EngineMixin, evaluates_in_training
from colm.trainers.figures import SelectionFigures
from colm.trainers.left import check_listed, count_left
from colm.trainers.ordered import OrderMixin
from colm.trainers.replay import Replayed
from colm.trainers.saving import SavingMixin
from colm.trainers.streams import NumberedPasses, RunningSizes, encode_stream, is_stream


class CoresetMixin(SavingMixin, EngineMixin, OrderMixin):
    """Makes a Trainer train on coresets; list it before the Trainer in the bases.

    The subclass calls `_prepare_data` before and `_prepare_selection` after the Trainer's constructor,
    and provides the loss: the mean over examples, weighted if the rows have weights.
    """

    selector: CoresetSelector
    selection: SelectionConfig
    _signature_columns: Any

    def _prepare_data(
        self, kwargs: dict[str, Any], source_column: str, args: Any, sizes: Mapping[str, int] | None, window: int
    ) -> None:
        """Encode the sources of ``kwargs["train_dataset"]`` before the Trainer sees it."""
        if kwargs.get("train_dataset") is None:
            raise DataError("train_dataset is None; CoresetTrainer needs a train_dataset to count its sources.")
        self._running: RunningSizes | None = None  # only for a stream without source_sizes
        if is_stream(kwargs["train_dataset"]):
            encoded = encode_stream(
                kwargs["train_dataset"],
                source_column,
                sizes,
                window=window,
                max_steps=getattr(args, "max_steps", -1),
                one_process=getattr(args, "dataloader_num_workers", 0) == 0 and getattr(args, "world_size", 1) == 1,
            )
            self._running = RunningSizes(encoded.sizes) if sizes is None else None
            if args.accelerator_config.dispatch_batches is None:
                # Else the first rank concatenates all ranks' batches, which fails if their padded widths differ, or if
                # a batch holds anything but tensors.
                args.accelerator_config.dispatch_batches = False
        elif sizes is not None:
            raise ConfigError("source_sizes is only for streams; train_dataset has a length. Remove source_sizes.")
        else:
            encoded = encode_sources(kwargs["train_dataset"], source_column)
        kwargs["train_dataset"] = encoded.dataset
        self._encoded, self._window = encoded, window
        self.source_sizes = encoded.sizes
        self._source_names = encoded.names
        self._source_column = source_column

    def _prepare_selection(self, selection: SelectionConfig, replay: str | Path | None) -> None:
        """Check the whole setup, then create the selector and connect it to the Trainer's events."""
        self.selection = selection
        check_trainer(self, selection)
        warn_of_uneven_means(self, selection)
        self._count_rows_left()
        self.data_collator: Any = CollatorWithCodes(self.data_collator, self._source_column)
        self.replayed = None if replay is None else Replayed(Path(replay))
        self._prepare_order()
        stream: Any = self.train_dataset
        if self.args.world_size > 1 and isinstance(stream, HubStream):
            self.train_dataset = NumberedPasses(stream)
        self.selector = CoresetSelector(
            self.model,
            selection,
            self.source_sizes,
            pad_token_id=self._pad_token(),
            chooser=self.replayed or self._dealt_rows,
            placed=not evaluates_in_training(self),
        )
        self._selection_log = StepLog(Path(self.args.output_dir) / FILE_NAME)
        self._step_start = 0.0
        self._row_weights: Tensor | None = None
        self._row_sources: Tensor | None = None
        self._row_bounds: Tensor | None = None  # of joined rows
        self.figures = SelectionFigures(self._source_names, by_source=selection.log_sources)
        # Before any callback that saves at the end of a step, such as the Trainer's just-in-time checkpoint.
        self.callback_handler.callbacks.insert(0, _CommitCallback(self))

    def _count_rows_left(self) -> None:
        """Set the source sizes to the number of trainable rows in the Trainer's prepared data; TRL drops some rows.

        Raises:
            DataError: no rows are left.
            ConfigError: `small_sources` names a source with no rows left.
        """
        if is_stream(self.train_dataset) and self._running is None:
            return  # the user gave the sizes
        limit = getattr(self.args, "max_length", None)  # TRL's
        counts = count_left(self.train_dataset, self._encoded, window=self._window, max_length=limit)
        counts.warn()
        check_listed(counts, self.selection.small_sources)
        self.source_sizes = dict(counts.left)
        if self._running is not None:
            self._running = RunningSizes(counts.left)

    def _pad_token(self) -> int | None:
        pad = getattr(self.processing_class, "pad_token_id", None)
        return pad if isinstance(pad, int) else None

    # ---- Overridden Trainer methods ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch one optimizer step's micro-batches and return those of its coreset."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the last step's checkpoint: the Trainer would check max_steps only after one more step.
            self.control.should_training_stop = True
            return [], None
        self._step_start = time.perf_counter()
        with stage(FETCH):
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self.fill_pool(batches, num_batches)
        if not batches:
            return batches, None
        batches[-1] = self._without_repeats(batches[-1])
        pool = set_codes_aside(batches, self._source_names)
        if self._running is not None and self._running.meet(pool.sources):
            self._follow_sizes()
        if self._dealt_rows is not None:
            self._dealt_rows.tell(pool.dealt)
        self.selector.model = self.model  # replaced by model_init
        self.selector.optimizer = self.optimizer
        coreset = self.selector.select(pool.plain, pool.sources, dataset_index=pool.numbers, spans=pool.spans)
        kept = self.selector.take(pool.batches, coreset)  # with the codes, for losses by source
        return kept, self._get_num_items_in_batch(kept, device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Label a micro-batch's forward and backward for the profiler."""
        with stage(TRAIN):
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def _without_repeats(self, batch: Any) -> Any:
        """Exclude the rows that accelerate repeats to fill the last batches of an epoch.

        The last pool then matches that of a single process.
        """
        last = self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last
        if (
            self.args.world_size == 1
            or not last
            or INDEX_KEY not in batch
            or not hasattr(self.train_dataset, "__len__")
            or self.args.train_sampling_strategy == "batch_rebalance"  # batch sizes vary
        ):
            return batch
        rows = len(batch[INDEX_KEY])
        # accelerate's own count is wrong after a resume within an epoch.
        left = self.rows_of_pass() % (rows * self.args.world_size)
        return silence_repeats(batch, min(rows, max(0, left - rows * self.args.process_index))) if left else batch

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | int | None:
        """Count the rows with a labeled token, the divisor of the example mean."""
        if self.selection.loss == "token" or not batch_samples or "labels" not in batch_samples[0]:
            count: Tensor | int | None = super()._get_num_items_in_batch(batch_samples, device)
            return count
        rows = sum((count_labelled(batch["labels"], batch.get(ROWS)) > 0).sum() for batch in batch_samples)
        assert isinstance(rows, Tensor)
        total: Tensor = self.accelerator.gather(rows.to(device).reshape(1)).sum()
        return total

    def _set_signature_columns_if_needed(self) -> None:
        """Keep what rows carry along when columns that the model does not accept are removed."""
        found = self._signature_columns is not None
        super()._set_signature_columns_if_needed()
        if not found:
            self._signature_columns += CODES if self.selection.order == "balanced" else (SOURCE_KEY, INDEX_KEY)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Drop the codes if no other column would remain, so that the Trainer still reports its error."""
        if self.args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            codes = {SOURCE_KEY, INDEX_KEY} & set(dataset.column_names)
            if not (set(dataset.column_names) - codes) & set(self._signature_columns):
                self._signature_columns = [name for name in self._signature_columns if name not in codes]
                dataset = dataset.remove_columns(list(codes))
        return super()._remove_unused_columns(dataset, description)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Remove the rows' weights and sources, which the model does not accept, and store them."""
        prepared = dict(super()._prepare_inputs(inputs))
        prepared.pop(INDEX_KEY, None)
        prepared.pop(DEALT_KEY, None)
        prepared.pop(ON_HOST_KEY, None)
        codes = prepared.pop(SOURCE_KEY, None)
        self._row_bounds = prepared.get(ROWS)
        if codes is not None and "labels" in prepared:  # rows without labels have no loss
            codes = codes.masked_fill(count_labelled(prepared["labels"], self._row_bounds) == 0, -1)
        self._row_sources = codes
        self._row_weights = prepared.pop(WEIGHT_KEY, None)
        return prepared

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate with logits; under `use_liger_kernel` the Trainer would tell the model to skip them."""
        liger, self.args.use_liger_kernel = self.args.use_liger_kernel, False
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.args.use_liger_kernel = liger

    def _note_losses(self, losses: Tensor) -> None:
        """Store the mean losses (n,) of a training micro-batch's rows for the log."""
        if self.model.training and self._row_sources is not None:
            self.figures.add_losses(losses, self._row_sources)

    def _wrap_model(self, model: nn.Module, training: bool = True, **kwargs: Any) -> Any:
        """Wrap the model for training even if it was evaluated before.

        accelerate marks a model that it prepares for evaluation, and later skips marked models. With several ranks, the
        model would silently train without DistributedDataParallel, each rank on its own gradients.
        """
        if training and model is self.model and self.args.world_size > 1:
            model.__dict__.pop("_is_accelerate_prepared", None)
        return super()._wrap_model(model, training=training, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the selection metrics since the last log to the training log."""
        if "loss" in logs:
            logs |= self.figures.take_log()
        super().log(logs, *args, **kwargs)

    def coreset_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds in addition to the Trainer's files."""
        state = {
            "selector": self.selector.state_dict(),
            "figures": self.figures.state_dict(),
            "pool_rows": pool_rows(self.args),
            "pass": self.pass_state(),
        }
        return state if self._running is None else state | {"stream": self._running.state_dict()}

    def load_coreset_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `coreset_state`, and drop later lines of the log."""
        check_pool_rows(self.args, state.get("pool_rows"))
        self.selector.load_state_dict(state["selector"])
        self.figures.load_state_dict(state["figures"])
        if self._running is not None:
            self._running.load_state_dict(state.get("stream", {}))
            self._source_names += [name for name in self._running.sizes if name not in self._source_names]
            self._follow_sizes()
        if self.args.should_save:
            self._selection_log.truncate(state["selector"]["step"])

    def start_afresh(self) -> None:
        """Reset the state of an earlier training run. Called when training starts without resuming."""
        self.selector.reset()
        self.figures.reset()
        if self._running is not None:
            self._running.reset()
            self._follow_sizes()
        if self.args.should_save:
            self._selection_log.truncate(0)

    def commit_step(self) -> None:
        """Commit the step: history, record line, totals. Called after the optimizer step."""
        record = self.selector.commit(stepped=not self.accelerator.optimizer_step_was_skipped)
        record = record._replace(step_seconds=round(time.perf_counter() - self._step_start, 6))
        self.figures.add_step(record)
        self.count_step()
        if self._running is not None:
            self._running.add(record.pool)
            self._follow_sizes()
        if self.args.should_save:
            self._selection_log.write(to_dict(record))

    def _follow_sizes(self) -> None:
        """Update the small sources from the rows seen in the stream so far; the same on all ranks, like the pools."""
        assert self._running is not None
        self.source_sizes = self._running.sizes
        self.figures.add_sources(self._source_names)
        self.selector.follow_sizes(self.source_sizes)


class _CommitCallback(TrainerCallback):
    """Commits at the end of a step, before the Trainer logs, evaluates or saves."""

    def __init__(self, trainer: CoresetMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start with an empty log and history, unless a checkpoint was loaded."""
        check_trainer(self._trainer, self._trainer.selection)  # a hyperparameter search changes them for each trial
        if state.global_step == 0:
            self._trainer.start_afresh()
        self._trainer.restore_loss_since_log()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the end of the pass before any evaluation or save."""
        self._trainer.end_pass()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Commit the selection that this step trained on."""
        self._trainer.commit_step()
        replayed = self._trainer.replayed
        if replayed is not None and self._trainer.selector.state.step == replayed.steps:
            control.should_training_stop = True  # end of the record
