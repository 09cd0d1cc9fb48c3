"""Put a `MixtureBatchSampler` into a Trainer or SFTTrainer that exists already, without a subclass."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader

from colm.errors import ConfigError, DataError
from colm.row_features import make_token_features
from colm.sampler import MixtureBatchSampler
from colm.step.labels import find_learnable, has_label
from colm.step.sources import name_sources
from colm.trainers.columns import require_column
from colm.trainers.mixin import CoresetMixin
from colm.trainers.streams import is_stream

LOADER_SETTINGS = (
    *("collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context"),
    *("generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
)
"""What a data loader has besides its data set and its sampler."""


def use_mixture_sampler(
    trainer: Any, sources: str | Iterable[Any] = "source", keep: float = 0.5, **settings: Any
) -> MixtureBatchSampler:
    """Make a Trainer train on the rows of a `MixtureBatchSampler`, and return the sampler.

    Everything else stays the Trainer's: its loss, collator, packing, kernels, evaluation and checkpoints. A micro-batch
    has ``per_device_train_batch_size`` kept rows, so pools are 1 / `keep` times as large. A resumed run trains on the
    batches that it would have had. Call this before ``train()``, after any change of ``train_dataset``.

    Args:
        trainer: a `transformers.Trainer`, or a subclass such as `trl.SFTTrainer`, with a map-style ``train_dataset``.
        sources: the column with each row's source, or the source of each row.
        keep: fraction of each pool to keep, in (0, 1].
        **settings: further arguments of `MixtureBatchSampler`, such as `temperature`, or ``order="balanced"`` with
            ``features="tokens"``. Batch size, accumulation, ranks,
            seed and ``drop_last`` are the Trainer's.

    Raises:
        ConfigError: the Trainer has settings that the sampler cannot follow, or `settings` need weights in the loss.
        DataError: the data is a stream, has no such column, or none of its rows has a label.

    Example::

        trainer = SFTTrainer(model, SFTConfig("out"), train_dataset=dataset)
        colm.use_mixture_sampler(trainer, "source", keep=0.5)
        trainer.train()
    """
    _check_trainer(trainer)
    args, dataset = trainer.args, trainer.train_dataset
    settings = {"learnable": _find_learnable(dataset), "shuffle": args.train_sampling_strategy == "random", **settings}
    settings = make_token_features(settings, dataset)
    sampler = MixtureBatchSampler(
        _labels(dataset, sources) if isinstance(sources, str) else sources,
        args.train_batch_size,
        keep,
        accumulation=args.gradient_accumulation_steps,
        rank=args.process_index,
        world_size=args.world_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        drop_last=args.dataloader_drop_last,
        **settings,
    )
    if sampler.needs_weights:
        raise ConfigError(
            f"weights={sampler.config.weights!r} and balance={sampler.config.balance} need weights in the loss, which "
            "this Trainer does not have. Use temperature or shares instead, CoresetTrainer with features='none', or "
            "sampler.loader in your own loop."
        )
    build = trainer.get_train_dataloader

    def get_train_dataloader() -> DataLoader[Any]:
        if trainer.train_dataset is not dataset:
            raise ConfigError("train_dataset was replaced after use_mixture_sampler; call use_mixture_sampler again.")
        return _with_batch_sampler(build(), sampler, trainer.accelerator)

    trainer.get_train_dataloader = get_train_dataloader
    return sampler


def pack_by_source(
    dataset: Dataset, seq_length: int, *, source_column: str = "source", strategy: str = "bfd"
) -> Dataset:
    """Pack the rows of each source by themselves with `trl.pack_dataset`, so that each packed row has one source.

    Args:
        dataset: tokenized rows, with ``input_ids`` and, if only some tokens are targets, ``labels``: after its
            construction an SFTTrainer has them as ``train_dataset``.
        seq_length: tokens of a packed row.
        source_column: the column with each row's source; the result has it, too.
        strategy: as in TRL. For "bfd" and "bfd_split", set ``padding_free=True`` in the SFTConfig, so that examples do
            not attend to each other.

    Raises:
        DataError: there is no such column, or the rows are not tokenized.
    """
    try:
        from trl import pack_dataset
    except ImportError as error:
        raise ImportError("pack_by_source needs TRL: pip install 'colm[trl]'") from error
    if "input_ids" not in dataset.column_names:
        raise DataError(
            f"The data has no column 'input_ids', only {', '.join(dataset.column_names)}. Tokenize it first, or pass "
            "the train_dataset of an SFTTrainer, which is tokenized."
        )
    names = np.array(name_sources(_labels(dataset, source_column), source_column))
    packed = []
    for name in sorted(set(names.tolist())):
        rows = dataset.select((names == name).nonzero()[0])
        rows = pack_dataset(
            rows.select_columns([column for column in ("input_ids", "labels") if column in rows.column_names]),
            seq_length,
            strategy,
        )
        packed.append(rows.add_column(source_column, [name] * len(rows)))
    return concatenate_datasets(packed)


def _check_trainer(trainer: Any) -> None:
    """Raise ConfigError or DataError if the Trainer has settings that the sampler would silently change."""
    args = trainer.args
    if isinstance(trainer, CoresetMixin):
        raise ConfigError(
            f"{type(trainer).__name__} selects rows itself; set SelectionConfig(features='none') there, or use a plain "
            "Trainer."
        )
    if trainer.train_dataset is None or is_stream(trainer.train_dataset):
        raise DataError(
            f"train_dataset has type {type(trainer.train_dataset).__name__}. Expected a map-style dataset (with "
            "__len__); for streams, use CoresetTrainer with features='none'."
        )
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name, None):
            raise ConfigError(f"{name}=True in accelerator_config splits batches over processes; set it to False.")
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ConfigError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} would be ignored; set it to 'random' or "
            "'sequential'."
        )
    if getattr(args, "auto_find_batch_size", False):
        raise ConfigError("auto_find_batch_size=True changes the pool during its search; set it to False.")
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    if parallelism is not None and prod(getattr(parallelism, f"{kind}_size", 1) for kind in ("tp", "cp", "sp")) > 1:
        raise ConfigError(
            "Tensor, context and sequence parallelism share a batch between processes, which use_mixture_sampler does "
            "not support; give the data loader a MixtureBatchSampler with the data-parallel rank and world_size."
        )


def _labels(dataset: Any, column: str) -> list[Any]:
    require_column(dataset, column, "Name the right one, or pass the source of each row.")
    if isinstance(dataset, Dataset):
        labels: list[Any] = dataset.with_format(None)[column][:]
        return labels
    return [dataset[row][column] for row in range(len(dataset))]


def _find_learnable(dataset: Any) -> np.ndarray:
    if isinstance(dataset, Dataset):
        return find_learnable(dataset)
    return np.array([has_label(dataset[row]) for row in range(len(dataset))])


def _with_batch_sampler(loader: Any, sampler: MixtureBatchSampler, accelerator: Any) -> DataLoader[Any]:
    """Return a loader like a prepared one, with a batch sampler that knows its rank.

    With one process in `prepare_data_loader`, accelerate does not deal the batches out again, and `set_epoch` reaches
    the sampler, also after skipping batches on a resume.
    """
    settings = {name: getattr(loader, name) for name in LOADER_SETTINGS if hasattr(loader, name)}
    plain: DataLoader[Any] = DataLoader(loader.dataset, batch_sampler=sampler, **settings)
    prepared: DataLoader[Any] = prepare_data_loader(
        plain,
        device=accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        non_blocking=getattr(loader, "_non_blocking", False),
    )
    return prepared
