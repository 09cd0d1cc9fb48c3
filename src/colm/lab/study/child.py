"""Run a command in a child process that stops when its parent is told to stop."""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

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
    """Return the words of the command that starts a run's processes; by default, this Python.

    Raises:
        ConfigError: the words cannot be read, or the program does not exist.
    """
    words = split_words("--launcher", text) or [sys.executable]
    if shutil.which(words[0]) is None:
        raise ConfigError(f"--launcher {text!r}: there is no program {words[0]!r}. Give its path, or install it.")
    return words


def colm_words(command: str, *words: str) -> list[str]:
    """Return the words that run a command of colm with this process's verbosity, after those that start Python."""
    level = logging.getLogger("colm").level
    flags = ["--verbose"] if 0 < level < logging.INFO else ["--quiet"] if level > logging.INFO else []
    return ["-m", "colm", *flags, command, *words]


def run_child(command: Sequence[str], what: str) -> int:
    """Run a command without its standard output, wait for it, and return its exit status.

    SIGTERM is passed on, so that no child keeps training unseen and writes to the folder of the next start. SIGINT is
    passed on as SIGTERM, and only to a child that still runs after `GRACE` seconds: a terminal sends the child its own.

    Args:
        command: the program and its arguments.
        what: name of the child in messages.

    Raises:
        StoppedEarly: after SIGTERM; the child has exited.
        KeyboardInterrupt: after SIGINT; the child has exited.
    """
    logger.debug("Starting %s", shlex.join(command))
    if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
        return subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    told: list[int] = []
    child: subprocess.Popen[bytes] | None = None
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
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
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
