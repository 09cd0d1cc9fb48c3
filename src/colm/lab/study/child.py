"""Run a command in a child process that stops when its parent is told to stop."""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

from colm.errors import ConfigError, StoppedEarly

logger = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds that a child may take to exit after Ctrl-C, which a terminal also sends to it, before it gets SIGTERM."""


def split_words(option: str, text: str) -> list[str]:
    """Split an option that contains part of a command line into words.

    Raises:
        ConfigError: a quotation is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a valid part of a command line: {error}.") from error


def read_launcher(text: str) -> list[str]:
    """Return the words of the command that starts a run's processes; none for one process.

    Raises:
        ConfigError: the words cannot be read, or the program does not exist.
    """
    words = split_words("--launcher", text)
    if words and shutil.which(words[0]) is None:
        raise ConfigError(f"--launcher {text!r}: there is no program {words[0]!r}. Give its path, or install it.")
    return words


class Child(Protocol):
    """A running process."""

    def terminate(self) -> None:
        """Send SIGTERM to it."""

    def wait(self) -> int:
        """Return its exit status, negative if a signal ended it, once it has ended."""


Start = Callable[[Sequence[str]], Child]
"""Starts ``colm WORDS`` without its standard output."""


def start_with(python: Sequence[str]) -> Start:
    """Return what starts a command in a process of its own.

    Args:
        python: the words that start Python, or a launcher of processes that run Python.
    """

    def start(words: Sequence[str]) -> Child:
        command = [*python, "-m", "colm", *words]
        logger.debug("Starting %s", shlex.join(command))
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    return start


def verbosity_words() -> list[str]:
    """Return the options that give a command of colm this process's verbosity."""
    level = logging.getLogger("colm").level
    return ["--verbose"] if 0 < level < logging.INFO else ["--quiet"] if level > logging.INFO else []


def run_child(start: Callable[[], Child], what: str) -> int:
    """Start a child process, wait for it, and return its exit status.

    SIGTERM is passed on, so that no child keeps training unseen and writes to the folder of the next start. SIGINT is
    passed on as SIGTERM, and only to a child that still runs after `GRACE` seconds: a terminal sends the child its own.

    Args:
        start: starts it.
        what: name of the child in messages.

    Raises:
        StoppedEarly: after SIGTERM; the child has exited.
        KeyboardInterrupt: after SIGINT; the child has exited.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
        return start().wait()
    told: list[int] = []
    child: Child | None = None
    late: threading.Timer | None = None

    def pass_on() -> None:
        nonlocal late
        if child is None:
            return
        if signal.SIGTERM in told:
            child.terminate()
        elif late is None:
            late = threading.Timer(GRACE, child.terminate)
            late.daemon = True
            late.start()

    def hear(number: int, frame: FrameType | None) -> None:
        told.append(number)
        pass_on()

    heard = [
        number
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) not in (signal.SIG_IGN, None)  # a script's background job must ignore Ctrl-C
    ]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        child = start()
        if told:  # between the two lines above
            pass_on()
        status = child.wait()
    finally:
        if late is not None:
            late.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGTERM in told:
        raise StoppedEarly(f"stopped by SIGTERM ({what} has exited too); run the same command again to continue")
    if told:
        raise KeyboardInterrupt
    return status
