"""One progress bar for reading and tokenizing, whatever the number of files and splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

_BAR: ContextVar[Any] = ContextVar("bar", default=None)


@contextmanager
def one_bar() -> Iterator[None]:
    """Show a bar within the block, in the first process and on a terminal only; a block inside it shares the bar."""
    if _BAR.get() is not None:
        yield
        return
    hidden = None if os.environ.get("RANK", "0") == "0" else True  # None: hidden unless on a terminal
    with tqdm(desc="Reading the data", disable=hidden, leave=False, dynamic_ncols=True) as bar:
        bar.owner = os.getpid()
        given = _BAR.set(bar)
        try:
            with nullcontext() if bar.disable else logging_redirect_tqdm():  # log lines above the bar, not within it
                yield
        finally:
            _BAR.reset(given)


def begin(what: str, total: int, unit: str) -> None:
    """Show what is done now: `total` units of it, none so far."""
    bar = _BAR.get()
    if bar is not None:
        bar.set_description_str(what, refresh=False)
        bar.unit = f" {unit}"
        bar.reset(total)


def advance(done: int = 1) -> None:
    """Show that more units are done; does nothing in processes that this one has started."""
    bar = _BAR.get()
    if bar is not None and bar.owner == os.getpid():
        bar.update(done)


@contextmanager
def advancing(total: int) -> Iterator[None]:
    """Show that `total` units are done after the block, whatever the block has shown of them."""
    bar = _BAR.get()
    end = 0 if bar is None else bar.n + total
    yield
    if bar is not None:
        bar.update(end - bar.n)
