"""Passes over the data: the order of each, the place in it, and the way back to that place on a resume.

The Trainer counts steps to find the place, and lets the order follow from whatever random state it meets. So a stream,
in which it sees one endless pass, and an order drawn from the global generator are others after a resume. Here the
order of a pass follows from the seed and the number of the pass, and the place is in every checkpoint.
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
from colm.trainers.checkpoints import STATE_NAME
from colm.trainers.checks import pool_rows
from colm.trainers.columns import silence_repeats
from colm.trainers.streams import NumberedPasses, is_stream, readers

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerSeams
else:
    _TrainerSeams = object  # the subclass brings the Trainer, or TRL's


class Place(NamedTuple):
    """Where in the data a run stands."""

    epoch: int = 0  # passes before this one
    steps: int = 0  # optimizer steps of this pass
    ended: bool = False  # what belongs to the pass's end is done, such as its evaluation


class SeededOrder(Sampler[int]):
    """A sampler whose order follows from the seed and the pass alone, on every rank.

    Args:
        sampler: one that draws from its attribute ``generator``.
        seed: of the first pass; those of later passes count up, as accelerate's do.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.initial_seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.initial_seed + self.epoch)
        return iter(self.sampler)


class PassesMixin(_TrainerSeams):
    """What makes each pass of a Trainer over its data the same after a resume."""

    place = Place()
    _pass_start: dict[str, Any] | None = None  # random states that the pass's reading began with
    _resumed_from: dict[str, Any] | None = None
    _order_seed: int | None = None
    _steps_of_pass = 0  # where that is known
    _exhausted = False  # a stream's pass

    def pass_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of the place in the data."""
        return {**self.place._asdict(), "seed": self._order_seed, "readers": self._readers()}

    def count_step(self) -> None:
        """Note that one more step of this pass is done."""
        self.place = self.place._replace(steps=self.place.steps + 1)

    def end_pass(self) -> None:
        """Note that what belongs to the pass's end comes now, where it is no stop within the pass."""
        self.place = self.place._replace(ended=self._exhausted or self.place.steps == self._steps_of_pass)

    def fill_pool(self, batches: list[Any], wanted: int) -> list[Any]:
        """Return a stream's last micro-batches filled up with rows that train nothing, so that a step is made of them.

        The Trainer steps only where it knows the length of the data: it would add the gradients of a short pool to
        those of the next pass.
        """
        if not is_stream(self.train_dataset):
            return batches
        if not batches:
            self._exhausted = True
            self.control.should_epoch_stop = True  # rather than to ask again for each step that is left
            return batches
        return batches + [silence_repeats(batches[-1], 0)] * (wanted - len(batches))

    # ---- The seams of the Trainer ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Let an order that would be drawn from the global generator follow from the seed and the pass."""
        sampler = super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size = pool_rows(self.args)  # on any number of ranks
            return SeededOrder(sampler, seed)
        if isinstance(sampler, RandomSampler) and not self.args.accelerator_config.use_seedable_sampler:
            return SeededOrder(sampler, seed)
        return sampler

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """Let workers for evaluation that stay be started in any evaluation, which after a resume is another one."""
        loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        if self.args.dataloader_persistent_workers and not is_training:
            detach_from_global(loader)
        return loader

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """Return the pass and the micro-batches of it that a checkpoint stands behind, by the place that it holds."""
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
                "ignore_data_skip=True begins the pass over the data anew: this is not the run that it would have been "
                "without the interruption, since some rows are trained on again before others come at all."
            )
            return (place.epoch, 0) if is_stream(self.train_dataset) else found
        return place.epoch, place.steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Begin the pass with the order, and on a resume with the random state, that it has by its number."""
        epoch, loader, checkpoint = kwargs["epoch"], kwargs["train_dataloader"], kwargs["resume_from_checkpoint"]
        resumed = checkpoint is not None and epoch == kwargs["epochs_trained"]
        done = kwargs["steps_trained_in_current_epoch"] if resumed else 0
        accumulated = self.args.gradient_accumulation_steps
        if resumed:
            self._come_back(loader, checkpoint, within=done > 0)
        set_epoch(loader, epoch)  # also what the Trainer does not reach once it has wrapped the loader to skip batches
        if epoch > 0 and self.args.dataloader_persistent_workers:
            detach_from_global(loader)  # the workers are there since the first pass, unless the run was resumed
        if isinstance(self.train_dataset, NumberedPasses):
            self.train_dataset.stays = self.args.dataloader_num_workers == 0 or self.args.dataloader_persistent_workers
        self._order_seed = next((part.initial_seed for part in samplers(loader) if hasattr(part, "initial_seed")), None)
        self._pass_start = random_states()
        self.place = Place(epoch, done // accumulated)
        self._steps_of_pass = 0 if is_stream(self.train_dataset) else kwargs["num_update_steps_per_epoch"]
        self._exhausted = False
        if done and done >= kwargs["num_update_steps_per_epoch"] * accumulated:
            self._load_rng_state(checkpoint)  # which the Trainer does when the next batch is there
        if (
            done
            and isinstance(loader, DataLoaderDispatcher)
            and not loader.split_batches
            and not is_stream(loader.dataset)
        ):
            # Each of its batches is one of every rank, of which accelerate would pass by only as many as of one.
            kwargs["train_dataloader"] = skip_first_batches(loader, done * (self.args.world_size - 1))
        super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the states that the pass began with, too."""
        super()._save_rng_state(output_dir)
        torch.save(self._pass_start, self._pass_start_path(output_dir))

    # ---- The way back ----

    def _come_back(self, loader: Any, checkpoint: str, *, within: bool) -> None:
        """Bring order and random state to where they were when the pass of a checkpoint began."""
        seed = (self._resumed_from or {}).get("seed")
        for part in samplers(loader):
            if seed is not None and hasattr(part, "initial_seed"):
                part.initial_seed = seed
        path = self._pass_start_path(checkpoint)
        if not within:
            self._load_rng_state(checkpoint)
        elif path.exists():  # else there are more ranks than before
            restore_random_states(torch.load(path, weights_only=True))

    def _pass_start_path(self, folder: str) -> Path:
        return Path(folder) / f"pass_start_{self.args.process_index}.pth"

    def _readers(self) -> int:
        return readers(self.train_dataset, self.args.dataloader_num_workers)

    def _check_readers(self, before: int) -> None:
        """Refuse a number of workers that would give a stream's rows another order.

        Raises:
            ConfigError: the numbers, and what to do.
        """
        if before != self._readers():
            raise ConfigError(
                f"The run read its stream in {before} data loader processes, now it would in {self._readers()}, which "
                f"puts its rows in another order; set dataloader_num_workers={before} to resume it."
            )


def read_pass_state(checkpoint: str) -> dict[str, Any] | None:
    """Return a checkpoint's place in the data; None where an older version did not write it."""
    path = Path(checkpoint) / STATE_NAME
    if not path.exists():
        return None
    found: dict[str, Any] | None = torch.load(path, map_location="cpu", weights_only=True).get("pass")
    return found


def samplers(loader: Any) -> list[Any]:
    """Return what chooses the rows of a data loader, from the outside in."""
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
    """Tell a data loader, and all that chooses its rows, the number of the pass."""
    for part in (loader, *samplers(loader)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def detach_from_global(loader: Any) -> None:
    """Let the start of a data loader's workers draw no number from the global generator."""
    getattr(loader, "base_dataloader", loader).generator = torch.Generator()


def random_states() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and PyTorch on the CPU, which may order rows."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002  the global one, from which a dataset may draw
    return {"python": random.getstate(), "numpy": (name, list(map(int, keys)), *rest), "torch": torch.get_rng_state()}


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
