"""What a process that parses strangers' files may do: limits that the kernel and Python enforce.

The kernel bounds memory, time and what is written. An audit hook refuses Python code the network,
other programs, and files other than Python's own; libraries in C are not seen by it, so that a
parser in C must be told itself to stay away from them. Nothing of this can be undone.

A server, which is no such process, may have its limit of open files raised here.
"""

from __future__ import annotations

import math
import mimetypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPEN_FILES = 64

_REFUSED = (
    "socket.",
    "subprocess.",
    "shutil.",
    "os.chmod",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.link",
    "os.mkdir",
    "os.posix_spawn",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.spawn",
    "os.symlink",
    "os.system",
    "os.truncate",
    "os.unlink",
    "pty.spawn",
    "sqlite3.connect",
    "urllib.Request",
)
"""Starts of the names of audit events, https://docs.python.org/3/library/audit_events.html."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def allow_open_files() -> None:
    """Let this process, and what it starts, open as many files as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def confine(memory_bytes: int) -> None:
    """Give this process the limits for good; ``memory_bytes`` come on top of what it has."""
    for limit, most in (
        (resource.RLIMIT_DATA, _data_bytes() + memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (_lowered(limit, most),) * 2)
    sys.dont_write_bytecode = True
    own = (os.path.realpath(path) + os.sep for path in sys.path)
    readable = (*own, *map(str, mimetypes.knownfiles), os.devnull)

    def refuse(event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            _check_open(args, readable)
        elif event.startswith(_REFUSED):
            raise PermissionError(f"{event} is refused while a file is parsed")

    sys.addaudithook(refuse)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """End this process, by SIGALRM or SIGXCPU, where the block takes longer.

    The kernel does it, so that a loop in C ends too.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # Wall time ends most; should a library use the timer for itself, processor time remains.
    processor = _lowered(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds + 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (processor, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _lowered(limit: int, most: int) -> int:
    _, hard = resource.getrlimit(limit)
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def _data_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
    return int(pages) * resource.getpagesize()


def _check_open(args: tuple[object, ...], readable: tuple[str, ...]) -> None:
    path, _, flags = args
    if isinstance(path, int):
        return
    name = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
    if (isinstance(flags, int) and flags & _WRITING) or not name.startswith(readable):
        raise PermissionError(f"{name} may not be opened while a file is parsed")
