"""Passes over the data: the order of each pass, the position in it, and restoring that position on resume.

The Trainer counts steps to find the position, and the order depends on the current random state. After a resume, this
gives different rows for a stream, which the Trainer treats as one endless pass, and for an order drawn from the global
generator. Here the order of a pass depends only on the seed and the pass number, and every checkpoint stores the
position.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import DataLoaderDispatcher
from torch.utils.data import RandomSampler, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from colm.errors import ConfigError
from colm.trainers.ahead import prepare_ahead
from colm.trainers.checkpoints import STATE_NAME
from colm.trainers.checks import pool_rows
from colm.trainers.columns import silence_repeats
from colm.trainers.streams import NumberedPasses, is_stream, readers

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerSeams
else:
    _TrainerSeams = object  # the subclass adds the Trainer, or TRL's


class Place(NamedTuple):
    """A run's position in the data."""

    epoch: int = 0  # passes before this one
    steps: int = 0  # optimizer steps of this pass
    ended: bool = False  # end-of-pass actions, such as evaluation, are done


class SeededOrder(Sampler[int]):
    """A sampler whose order depends only on the seed and the pass, on every rank.

    Args:
        sampler: a sampler that draws from its attribute ``generator``.
        seed: seed of the first pass; later passes increment it, as accelerate does.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.initial_seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.initial_seed + self.epoch)
        return iter(self.sampler)


class PassesMixin(_TrainerSeams):
    """Makes each pass of a Trainer over its data identical after a resume."""

    place = Place()
    _pass_start: dict[str, Any] | None = None  # random states at the start of the pass
    _resumed_from: dict[str, Any] | None = None
    _order_seed: int | None = None
    _steps_of_pass = 0  # 0 if unknown
    _exhausted = False  # a stream's pass has ended

    def pass_state(self) -> dict[str, Any]:
        """Return the checkpoint state for the position in the data."""
        return {**self.place._asdict(), "seed": self._order_seed, "readers": self._readers()}

    def count_step(self) -> None:
        """Count one more step of this pass."""
        self.place = self.place._replace(steps=self.place.steps + 1)

    def end_pass(self) -> None:
        """Record that the end of the pass is reached, unless training stops within the pass.

        A callback may end a pass early (``should_epoch_stop``); the next pass then follows, also after a resume.
        """
        goes_on = not self.control.should_training_stop
        self.place = self.place._replace(ended=goes_on or self._exhausted or self.place.steps == self._steps_of_pass)

    def fill_pool(self, batches: list[Any], wanted: int) -> list[Any]:
        """Fill up a stream's last micro-batches with rows that train nothing, so that they make a full step.

        Without the length of the data, the Trainer would take no step here: it would add the gradients of a short pool
        to those of the next pass.
        """
        if not is_stream(self.train_dataset):
            return batches
        if not batches:
            self._exhausted = True
            self.control.should_epoch_stop = True  # avoids another request for each remaining step
            return batches
        return batches + [silence_repeats(batches[-1], 0)] * (wanted - len(batches))

    # ---- Overridden Trainer methods ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Make an order that would be drawn from the global generator depend on the seed and the pass instead."""
        sampler = super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size = pool_rows(self.args)  # on any number of ranks
            return SeededOrder(sampler, seed)
        if isinstance(sampler, RandomSampler) and not self.args.accelerator_config.use_seedable_sampler:
            return SeededOrder(sampler, seed)
        return sampler

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """Let training workers prepare a whole pool, and start persistent evaluation workers without random draws.

        A resume changes when evaluation workers start.
        """
        loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        if is_training:
            prepare_ahead(loader, self.args, self.data_collator)
        elif self.args.dataloader_persistent_workers:
            detach_from_global(loader)
        return loader

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """Return the pass and the number of its micro-batches already done, from the checkpoint's position."""
        found: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        self._resumed_from = read_pass_state(checkpoint) if checkpoint is not None else None
        if self._resumed_from is None:
            return found
        self._check_readers(self._resumed_from["readers"])
        place = Place(*(self._resumed_from[name] for name in Place._fields))
        if place.ended:
            return place.epoch + 1, 0
        if self.args.ignore_data_skip:
            logger.warning(
                "ignore_data_skip=True restarts the pass over the data, so the run differs from an uninterrupted one: "
                "some rows are trained on again before others are seen at all."
            )
            return (place.epoch, 0) if is_stream(self.train_dataset) else found
        return place.epoch, place.steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Start the pass with the order determined by its number and, on resume, with its random state."""
        epoch, loader, checkpoint = kwargs["epoch"], kwargs["train_dataloader"], kwargs["resume_from_checkpoint"]
        resumed = checkpoint is not None and epoch == kwargs["epochs_trained"]
        done = kwargs["steps_trained_in_current_epoch"] if resumed else 0
        accumulated = self.args.gradient_accumulation_steps
        if resumed:
            self._come_back(loader, checkpoint, within=done > 0)
        set_epoch(loader, epoch)  # reaches parts that the Trainer misses after wrapping the loader to skip batches
        if epoch > 0 and self.args.dataloader_persistent_workers:
            detach_from_global(loader)  # the workers run since the first pass, unless the run was resumed
        part: Any = self.train_dataset
        while isinstance(part, NumberedPasses):
            part.stays = self.args.dataloader_num_workers == 0 or self.args.dataloader_persistent_workers
            part = part.rows
        self._order_seed = next((part.initial_seed for part in samplers(loader) if hasattr(part, "initial_seed")), None)
        self._pass_start = random_states()
        self.place = Place(epoch, done // accumulated)
        self._steps_of_pass = 0 if is_stream(self.train_dataset) else kwargs["num_update_steps_per_epoch"]
        self._exhausted = False
        if done and done >= kwargs["num_update_steps_per_epoch"] * accumulated:
            self._load_rng_state(checkpoint)  # the Trainer does this only when the next batch arrives
        if (
            done
            and isinstance(loader, DataLoaderDispatcher)
            and not loader.split_batches
            and not is_stream(loader.dataset)
        ):
            # Each of its batches combines all ranks' batches, but accelerate would skip only one rank's number of them.
            kwargs["train_dataloader"] = skip_first_batches(loader, done * (self.args.world_size - 1))
        super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """Also save the random states at the start of the pass."""
        super()._save_rng_state(output_dir)
        torch.save(self._pass_start, self._pass_start_path(output_dir))

    # ---- Resuming ----

    def _come_back(self, loader: Any, checkpoint: str, *, within: bool) -> None:
        """Restore the order and random state from the start of the checkpoint's pass."""
        seed = (self._resumed_from or {}).get("seed")
        for part in samplers(loader):
            if seed is not None and hasattr(part, "initial_seed"):
                part.initial_seed = seed
        path = self._pass_start_path(checkpoint)
        if not within:
            self._load_rng_state(checkpoint)
        elif path.exists():  # missing if there are more ranks than before
            restore_random_states(torch.load(path, weights_only=True))

    def _pass_start_path(self, folder: str) -> Path:
        return Path(folder) / f"pass_start_{self.args.process_index}.pth"

    def _readers(self) -> int:
        return readers(self.train_dataset, self.args.dataloader_num_workers)

    def _check_readers(self, before: int) -> None:
        """Reject a number of workers that would change the order of a stream's rows.

        Raises:
            ConfigError: gives both numbers and the remedy.
        """
        if before != self._readers():
            raise ConfigError(
                f"The run read its stream in {before} data loader processes but would now use {self._readers()}, which "
                f"changes the order of the rows; set dataloader_num_workers={before} to resume."
            )


def read_pass_state(checkpoint: str) -> dict[str, Any] | None:
    """Return a checkpoint's position in the data; None if an older version wrote the checkpoint."""
    path = Path(checkpoint) / STATE_NAME
    if not path.exists():
        return None
    found: dict[str, Any] | None = torch.load(path, map_location="cpu", weights_only=True).get("pass")
    return found


def samplers(loader: Any) -> list[Any]:
    """Return the samplers of a data loader, outermost first."""
    found: list[Any] = []
    todo = [loader]
    while todo:
        part = todo.pop(0)
        inner = [getattr(part, name, None) for name in ("batch_sampler", "sampler")]
        new = [one for one in inner if one is not None and not any(one is other for other in found)]
        found += new
        todo += new
    return found


def set_epoch(loader: Any, epoch: int) -> None:
    """Set the number of the pass on a data loader and all its samplers."""
    for part in (loader, *samplers(loader)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def detach_from_global(loader: Any) -> None:
    """Keep the start of a data loader's workers from drawing from the global generator."""
    getattr(loader, "base_dataloader", loader).generator = torch.Generator()


def random_states() -> dict[str, Any]:
    """Return the states of the global CPU generators of Python, NumPy and PyTorch, which may affect row order."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  the global one, from which a dataset may draw
    return {"python": random.getstate(), "numpy": (name, list(map(int, keys)), *rest), "torch": torch.get_rng_state()}


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states returned by `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
