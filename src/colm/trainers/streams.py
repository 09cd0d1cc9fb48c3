"""Streaming training data: source codes added on the fly, and source sizes estimated from the rows seen so far."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset as HubStream
from torch.utils.data import IterableDataset

from colm.errors import ConfigError, DataError, suggest
from colm.step.labels import has_label
from colm.step.sources import count_sources, name_keys, name_of_row, name_sources
from colm.trainers.columns import INDEX_KEY, SOURCE_KEY, EncodedData

WINDOW = 1000
"""Default number of rows from which source sizes are estimated."""


class RunningSizes:
    """Estimates the relative sizes of a stream's sources from the rows of the first window and of all later pools."""

    def __init__(self, window: Mapping[str, int]) -> None:
        self._window = dict(window)
        self._seen = dict.fromkeys(window, 0)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each source, in the proportions seen so far.

        At least 1, or 0 for a source whose rows in the window had no label, until a labeled row arrives.
        """
        least = {name: min(1, rows) for name, rows in self._window.items()}
        return {name: max(least.get(name, 1), self._window.get(name, 0) + seen) for name, seen in self._seen.items()}

    def meet(self, sources: Sequence[str]) -> bool:
        """Add new sources, and return whether there are any."""
        new = [name for name in sources if name not in self._seen]
        self._seen |= dict.fromkeys(new, 0)
        return bool(new)

    def add(self, pool: Mapping[str, Sequence[int]]) -> None:
        """Count a pool's rows, source -> row numbers."""
        for name, rows in pool.items():
            self._seen[name] += len(rows)

    def reset(self) -> None:
        """Reset the counts of all pools."""
        self._seen = dict.fromkeys(self._window, 0)

    def state_dict(self) -> dict[str, int]:
        """Return the pools' row counts."""
        return dict(self._seen)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the state returned by `state_dict`."""
        self._seen = dict.fromkeys(self._window, 0) | {name: int(rows) for name, rows in state.items()}


class NumberedPasses(IterableDataset[dict[str, Any]]):
    """A stream that receives the number of each pass, even in data loader processes that persist over several passes.

    Every rank reads every row. accelerate would instead distribute the shards of a Hub stream, so pools would depend on
    the ranks, and with shards of different lengths the ranks would be in different passes.

    A stream without ``set_epoch`` may draw its order from its own generator. A resumed run then rereads and discards
    the completed passes, to restore the generator's state.

    Args:
        rows: the stream.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.stays = True  # the process that reads a pass also reads the next one
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._read = 0  # passes read in this process

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the pass."""
        self._epoch.fill_(epoch)
        if hasattr(self.rows, "set_epoch"):
            # Set it here first: a Hub stream adds the difference to a number in shared memory, so two data loader
            # processes that set it at once might both add.
            self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(int(self._epoch))
        elif self.stays:
            for _ in range(self._read, int(self._epoch)):
                deque(self.rows, maxlen=0)
                self._read += 1
        yield from self.rows
        self._read += 1


class CodedStream(NumberedPasses):
    """A stream whose rows also carry a source code and their number in the stream.

    Args:
        rows: the stream.
        column: the column with the source's name.
        names: code -> source.
        grows: append new sources to `names`; only valid if this process is the only reader.
    """

    def __init__(self, rows: Any, column: str, names: list[str], *, grows: bool) -> None:
        super().__init__(rows)
        self._column = column
        self._names = names
        self._grows = grows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(super().__iter__()):
            yield {**row, **self.encode(row, number)}

    def encode(self, row: Mapping[str, Any], number: int) -> dict[str, int]:
        """Return a row's code and number. Raises DataError if its source is unknown."""
        if self._column not in row:
            raise DataError(_no_column(self._column, row))
        name = name_of_row(row[self._column], self._column, number, of=" of the stream")
        if name not in self._names:
            if not self._grows:
                raise DataError(
                    f"Row {number} of the stream has the unknown source {name!r}."
                    f"{suggest(name, self._names)} Known: {', '.join(self._names)}. Set source_sizes for all sources. "
                    "Without source_sizes, several processes need every source in the first window; enlarge it."
                )
            self._names.append(name)
        return {SOURCE_KEY: self._names.index(name), INDEX_KEY: number}


def is_stream(dataset: Any) -> bool:
    """Return whether a dataset is an iterable dataset, without a length."""
    return isinstance(dataset, IterableDataset | HubStream)


def readers(dataset: Any, workers: int) -> int:
    """Return how many data loader processes interleave their parts of a stream; 0 if the dataset is not a stream.

    Args:
        dataset: a training set.
        workers: number of data loader workers.
    """
    rows = dataset.rows if isinstance(dataset, NumberedPasses) else dataset
    if not is_stream(rows):
        return 0
    return min(max(1, workers), rows.num_shards) if isinstance(rows, HubStream) else max(1, workers)


def encode_stream(
    dataset: Any,
    column: str,
    source_sizes: Mapping[str, int] | None,
    *,
    window: int,
    max_steps: int,
    one_process: bool = True,
) -> EncodedData:
    """Add the source code and the row number to every row of a stream.

    Args:
        dataset: a `datasets.IterableDataset` or PyTorch `IterableDataset` that can be read more than once.
        column: the column with the source's name.
        source_sizes: rows of each source, exact or in proportion; None to count the first rows.
        window: number of rows to count in that case.
        max_steps: training steps.
        one_process: no other process reads rows or selects, so new sources may appear after the window.

    Raises:
        ConfigError: `max_steps` is not set, or a size is below 1.
        DataError: the stream is empty or lacks the column. While reading: a source is unknown.
    """
    if max_steps <= 0:
        raise ConfigError(f"max_steps={max_steps} must be at least 1 for a stream, which has no length; set it.")
    learnable: dict[str, int] | None = None
    if source_sizes is not None:
        source_sizes = name_keys("source_sizes", source_sizes)
        bad = [name for name, size in source_sizes.items() if size < 1]
        if bad or not source_sizes:
            raise ConfigError(
                f"source_sizes is {dict(source_sizes)!r}; it must have at least 1 row for every source of the stream."
            )
        sizes = dict(sorted(source_sizes.items()))
    else:
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(0)  # an earlier training run may have left it in a later pass
        rows = list(islice(iter(dataset), window))
        if not rows:
            raise DataError("The stream is empty.")
        if column not in rows[0]:
            raise DataError(_no_column(column, rows[0]))
        sizes = count_sources((row.get(column) for row in rows), column)
        known = Counter(name_sources(row[column] for row in rows if has_label(row)))
        learnable = {name: known[name] for name in sizes}
    names = list(sizes)
    coded = CodedStream(dataset, column, names, grows=source_sizes is None and one_process)
    if isinstance(dataset, HubStream):  # map preserves a Hub stream's features: shards, epochs, resuming
        return EncodedData(dataset.map(coded.encode, with_indices=True), sizes, names, learnable)
    return EncodedData(coded, sizes, names, learnable)


def _no_column(column: str, row: Mapping[str, Any]) -> str:
    return (
        f"The training data has no column {column!r} for the source.{suggest(column, row)} Columns: {', '.join(row)}. "
        "Set source_column to the right one."
    )
