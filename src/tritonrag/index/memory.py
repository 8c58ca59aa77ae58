"""Memory of replaced snapshots, back to the system at once."""

from __future__ import annotations

import ctypes

LARGE_BLOCK_BYTES = 4 * 1024 * 1024

_M_MMAP_THRESHOLD = -3
"""Of ``mallopt`` in glibc's ``malloc.h``."""


def return_large_blocks() -> None:
    """Let this process keep no large block that it has freed, where the C library can (glibc).

    Left alone, glibc takes blocks as large as one that was freed before from a pool of the thread,
    where the vectors of one or two snapshots stay after swaps; ``malloc_trim`` does not reach them.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
