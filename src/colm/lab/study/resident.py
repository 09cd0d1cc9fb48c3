"""Give a fork its parent's pages of libraries, so that its peak memory is that of a process that loaded them itself.

Linux copies no page tables of unchanged file mappings on a fork. The fork would count a library's pages only from their
next use, about 100 MiB less at its peak.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

import numpy as np

_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14
_PRESENT = np.uint64(1) << np.uint64(63)  # of an entry of pagemap, one for each page

Pages = list[tuple[int, int]]
"""Address and length in bytes of each range of pages."""


def library_pages() -> Pages:
    """Return the resident pages of this process's file mappings; none where the system does not tell."""
    found: Pages = []
    with suppress(OSError), open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as entries:
        for line in maps:
            addresses, *_, path = line.split()
            if not path.startswith("/"):
                continue
            start, end = (int(address, 16) // mmap.PAGESIZE for address in addresses.split("-"))
            entries.seek(start * 8)
            held = np.frombuffer(entries.read((end - start) * 8), dtype=np.uint64) & _PRESENT != 0
            edges = start + np.flatnonzero(np.diff(held, prepend=False, append=False))
            found += [(a * mmap.PAGESIZE, (b - a) * mmap.PAGESIZE) for a, b in edges.reshape(-1, 2).tolist()]
    return found


def map_pages(pages: Pages) -> None:
    """Map a parent's pages in its fork, without reading them from the disk again."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for address, length in pages:
        advise(address, length, _POPULATE_READ)  # an older system refuses, and the fork counts less
