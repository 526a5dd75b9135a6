"""A bound on what a piece of code may allocate, whichever library asks for it.

Linux refuses what goes beyond the limit, so an allocation too many is an error at its place: MemoryError of Python and
numpy, RuntimeError of torch. Counted is address space, touched or not, so that a large block cannot hide behind lazily
mapped pages.
"""

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Parameter of glibc's mallopt: blocks of this size and more are mapped by themselves, and given back when freed.
_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


@contextmanager
def at_most_more(extra_bytes: int) -> Iterator[None]:
    """Allow the process ``extra_bytes`` beyond what it has now.

    Memory that was freed earlier must be given back to the system, or a large block could be taken from it unseen; from
    the first call on the process does that at once. Start threads before: their stacks count.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    libc.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
