"""Memory that a snapshot leaves behind, back to the system.

Once the C library has freed a large block it takes the next ones of that size from its own pool and
keeps them there: after a few swaps a whole snapshot's worth.
"""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Return freed memory to the system, where the C library can (glibc)."""
    trim_pools = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim_pools is not None:
        trim_pools(0)
