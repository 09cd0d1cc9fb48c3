"""The errors that colm raises, and a helper that suggests the nearest valid spelling."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ColmError(Exception):
    """Base class of every error that colm raises on purpose."""


class ConfigError(ColmError, ValueError):
    """A setting is out of range, unknown, or in conflict with another setting."""


class UnsupportedModelError(ColmError, TypeError):
    """colm cannot find the model's value projection, or cannot handle the model's layout."""


class DataError(ColmError, ValueError):
    """The data lacks a column, label, row or labeled token that training needs."""


class StoppedEarly(ColmError):
    """The run received SIGTERM, saved a checkpoint, and can resume from it."""


class Interrupted(ColmError):
    """The user pressed Ctrl-C; the message says how to resume."""


def one_line(error: Exception) -> str:
    """Format a library's error for use in a message: its type and text on one line, truncated if long.

    >>> one_line(ValueError("size mismatch:\\n  4"))
    'ValueError: size mismatch: 4'
    """
    return textwrap.shorten(f"{type(error).__name__}: {error}", 600, placeholder=" ...")


def suggest(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the option closest to `name`, or an empty string.

    >>> suggest("sorce", ["source", "output"])
    " Did you mean 'source'?"
    """
    known = list(options)
    longer = [option for option in known if len(name) > 3 and option.startswith(name)]
    nearest = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


class DataErrors:
    """Collects the data errors of several files, so that one message names them all."""

    def __init__(self) -> None:
        self._found: list[DataError] = []

    @contextmanager
    def of(self, place: str, entry: str = "") -> Iterator[None]:
        """Collect an error raised within the block.

        Args:
            place: the file, added to a message that does not name it.
            entry: the setting that names the file, such as ``mixture[1]``.
        """
        try:
            yield
        except DataError as error:
            words = [entry, *([] if place in str(error) else [place]), str(error)]
            self._found.append(DataError(": ".join(word for word in words if word)))

    def report(self) -> None:
        """Raise DataError if there were errors."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            listed = " ".join(f"({number}) {error}" for number, error in enumerate(self._found, 1))
            raise DataError(f"{len(self._found)} files cannot be used. {listed}")
