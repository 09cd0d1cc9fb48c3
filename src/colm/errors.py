"""The errors that colm raises, and the helper that names the nearest valid spelling."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable


class ColmError(Exception):
    """Base class of every error that colm raises on purpose."""


class ConfigError(ColmError, ValueError):
    """A setting is out of range, unknown, or contradicts another one."""


class UnsupportedModelError(ColmError, TypeError):
    """The model has no value projection that colm can find, or a layout it cannot read."""


class DataError(ColmError, ValueError):
    """The data lacks a column, a label, a row or a labeled token that training needs."""


class StoppedEarly(ColmError):
    """The run was told to stop (SIGTERM), has saved a checkpoint and can go on from it."""


class Interrupted(ColmError):
    """Ctrl-C came; the message says how to resume."""


def one_line(error: Exception) -> str:
    """Return a library's error as a part of a message: its type and text in one line, cut where it is long.

    >>> one_line(ValueError("size mismatch:\\n  4"))
    'ValueError: size mismatch: 4'
    """
    return textwrap.shorten(f"{type(error).__name__}: {error}", 600, placeholder=" ...")


def suggest(name: str, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the option nearest to `name`, or an empty string.

    >>> suggest("sorce", ["source", "output"])
    " Did you mean 'source'?"
    """
    known = list(options)
    longer = [option for option in known if len(name) > 3 and option.startswith(name)]
    nearest = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
