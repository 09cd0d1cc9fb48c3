"""Start commands of colm as forks of a process that has imported what they need.

The run of a small model takes less time than its imports. The process that forks must never have computed with PyTorch,
whose threads a fork lacks, so it is a process of its own: `colm.lab.cli.fork_server`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from signal import SIGTERM
from typing import IO

from colm.errors import ConfigError


class ForkServer:
    """Starts one command at a time; as a context, it ends with the block."""

    possible = sys.platform.startswith("linux")
    """Elsewhere, libraries that PyTorch uses do not survive a fork."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "colm.lab.cli.fork_server"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()  # a command under way, which `run_child` has always waited for, would go on
        self._process.communicate()

    def start(self, words: Sequence[str]) -> Fork:
        """Start ``colm WORDS`` without its standard output.

        Raises:
            ConfigError: the server has ended, such as for want of memory.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(list(words)) + "\n")
            self._process.stdin.flush()
            return Fork(self._process.stdout)
        except (BrokenPipeError, ValueError):
            status = self._process.wait()
            raise ConfigError(
                f"The process that starts the runs ended with exit status {status}; see its output above. Run the same "
                "command again to continue."
            ) from None


class Fork:
    """A running command."""

    def __init__(self, replies: IO[str]) -> None:
        self._replies = replies
        self._number = int(replies.readline())

    def terminate(self) -> None:
        """Send SIGTERM to it."""
        with suppress(ProcessLookupError):
            os.kill(self._number, SIGTERM)

    def wait(self) -> int:
        """Return its exit status, negative if a signal ended it, once it has ended."""
        return int(self._replies.readline() or -9)  # nothing more: the server was killed too
