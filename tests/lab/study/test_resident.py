"""A fork counts the pages of libraries that its parent had loaded."""

from __future__ import annotations

import os
import sys

import pytest

from colm.lab.study.resident import library_pages, map_pages


def file_pages() -> int:
    """Return the process's resident bytes of files."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_fork_has_the_pages_of_its_parent() -> None:
    before, pages = file_pages(), library_pages()
    reader, writer = os.pipe()
    fork = os.fork()
    if not fork:
        counts = [file_pages()]
        map_pages(pages)
        os.write(writer, " ".join(map(str, [*counts, file_pages()])).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(fork, 0)
    with os.fdopen(reader) as counts_read:
        without, with_pages = map(int, counts_read.read().split())
    assert without < before / 2
    assert with_pages == pytest.approx(before, rel=0.05)
