"""A command that runs in a process of its own, and is told to stop when its parent is."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from colm.errors import ConfigError, StoppedEarly

GRACE = 5.0
"""Seconds that a child has to end after Ctrl-C, which a terminal sends to it too, before it gets SIGTERM."""


def split_words(option: str, text: str) -> list[str]:
    """Return the words of an option that holds a part of a command line.

    Raises:
        ConfigError: a quotation in it does not end.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a part of a command line: {error}.") from error


def read_launcher(text: str) -> list[str]:
    """Return the words that start a run's processes; this Python where there are none.

    Raises:
        ConfigError: they cannot be read, or there is no such program.
    """
    words = split_words("--launcher", text) or [sys.executable]
    if shutil.which(words[0]) is None:
        raise ConfigError(f"--launcher {text!r}: there is no program {words[0]!r}. Give its path, or install it.")
    return words


def run_child(command: Sequence[str], what: str) -> int:
    """Run a command without its standard output, wait for its end, and return its exit status.

    SIGTERM is passed on, so that nothing trains on unseen and writes beside the next start. SIGINT is passed on as
    SIGTERM, and only to a child that still runs after `GRACE` seconds: from a terminal it has had its own.

    Args:
        command: the program and its arguments.
        what: the child, for the message.

    Raises:
        StoppedEarly: SIGTERM came; the child has ended.
        KeyboardInterrupt: SIGINT came; the child has ended.
    """
    if threading.current_thread() is not threading.main_thread():  # where no signal can be heard
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
        if signal.getsignal(number) not in (signal.SIG_IGN, None)  # a script's background job must not hear Ctrl-C
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
        raise StoppedEarly(
            f"told to stop (SIGTERM), and so was {what}, which has ended; start again with the same command"
        )
    if told:
        raise KeyboardInterrupt
    return status
