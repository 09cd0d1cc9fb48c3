"""A process that has imported what a training needs, and forks for each command it is asked to run.

Started by `colm.lab.study.forks`. Each line of its input holds a command's words as JSON. It answers with the process
id of the fork, and with the exit status once it has ended.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence

from colm.lab.study.resident import Pages, library_pages, map_pages


def main() -> None:
    """Fork for each line of the standard input until it ends."""
    # Blocked, not ignored: what reaches a fork before it is ready is kept for it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    import colm.lab.run.check
    import colm.lab.run.train  # noqa: F401
    from colm.lab.cli import build_parser

    build_parser()  # imports the commands
    pages = library_pages()
    for line in sys.stdin:
        given = (json.loads(line), mask, pages)
        fork = multiprocessing.get_context("fork").Process(target=_run, args=given)
        fork.start()
        print(fork.pid, flush=True)
        fork.join()
        print(fork.exitcode, flush=True)


def _run(words: Sequence[str], mask: Sequence[signal.Signals], pages: Pages) -> None:
    """Run a command in a fork."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    map_pages(pages)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    from colm.lab.cli import main as run

    status = run(words)
    atexit._run_exitfuncs()  # which a fork skips before Python 3.13, and which remove temporary files
    sys.exit(status)


if __name__ == "__main__":
    main()
