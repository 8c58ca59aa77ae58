"""Large files of a snapshot, read by position and never mapped.

Where a mapped file is truncated in place, the next access to it ends the whole process, with the
collections that have nothing to do with it. Here it is an error about that snapshot alone.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonrag.errors import SetupError
from tritonrag.index.manifest import damaged

SMALL_BYTES = 1024 * 1024
"""Files up to this size are read into memory, where nothing that happens to them matters."""

_MANY = 1000
"""Rows among which runs are looked for."""

Array = npt.NDArray[Any]


class PositionalFile:
    """A file that any number of threads read parts of; a small one is in memory."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, and read it if it is small.

        Raises:
            OSError: it cannot be opened or read.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        close = weakref.finalize(self, os.close, self._descriptor)
        self._status = self._seen()
        self._content: bytes | None = None
        if len(self) <= SMALL_BYTES:
            self._content = self.read(0, len(self))
            close()

    def __len__(self) -> int:
        """Return its size in bytes when it was opened."""
        return self._status[0]

    @property
    def intact(self) -> bool:
        """Whether it has, as far as its size and times tell, not been changed since."""
        return self._content is not None or self._seen() == self._status

    def read(self, start: int, size: int) -> bytes:
        """Return ``size`` bytes from ``start`` on.

        Raises:
            SetupError: it has become shorter, or cannot be read.
        """
        if self._content is not None:
            return self._content[start : start + size]
        try:
            found = os.pread(self._descriptor, size, start)
        except OSError as error:
            raise self._damaged(error) from error
        if len(found) == size:
            return found
        whole = bytearray(size)  # Linux reads at most 2 GiB at a time.
        self.read_into(start, memoryview(whole))
        return bytes(whole)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill ``buffer``, of bytes, from ``start`` on; not for a small file.

        Raises:
            SetupError: it has become shorter, or cannot be read.
        """
        try:
            done = os.preadv(self._descriptor, [buffer], start)
            while done < len(buffer):
                more = os.preadv(self._descriptor, [buffer[done:]], start + done)
                if not more:
                    raise OSError(0, "it is shorter than when it was opened")
                done += more
        except OSError as error:
            raise self._damaged(error) from error

    def _seen(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def _damaged(self, error: OSError) -> SetupError:
        return damaged(self._path.parent.name, f"{self._path.name}: {error.strerror}")


class ArrayFile:
    """An array in a large ``.npy`` file, of which only the rows asked for are read."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            OSError, ValueError: it cannot be read, or holds something else.
        """
        with path.open("rb") as opened:
            if np.lib.format.read_magic(opened) != (1, 0):  # type: ignore[no-untyped-call]
                raise ValueError(f"{path.name} is of an unknown version")
            header = np.lib.format.read_array_header_1_0(opened)  # type: ignore[no-untyped-call]
            self._start = opened.tell()
        self.shape: tuple[int, ...] = header[0]
        self.dtype: np.dtype[Any] = header[2]
        self.file = PositionalFile(path)
        self._row: int = math.prod(self.shape[1:]) * self.dtype.itemsize
        if header[1] or self.dtype.hasobject or self._end(len(self)) != len(self.file):
            raise ValueError(f"{path.name} is not of the size that it states")

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, key: slice | Array) -> Array:
        """Return a range of rows, or the rows of these numbers, whatever the shape of ``key``.

        Raises:
            SetupError: the file has become shorter, or cannot be read.
        """
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self))
            return self.joined([start], [stop])
        numbers = key.reshape(-1) % len(self)  # -1 is the last one, as everywhere
        starts = lasts = numbers
        if len(numbers) >= _MANY:  # as a filter leaves them: runs, each read at once
            breaks = np.diff(numbers) != 1
            starts, lasts = numbers[np.r_[True, breaks]], numbers[np.r_[breaks, True]]
        rows = self.joined(starts.tolist(), (lasts + 1).tolist())
        return rows.reshape(*key.shape, *self.shape[1:])

    def joined(self, starts: Sequence[int], ends: Sequence[int]) -> Array:
        """Return ranges of rows, one after the other.

        Raises:
            SetupError: the file has become shorter, or cannot be read.
        """
        found = np.empty((sum(ends) - sum(starts), *self.shape[1:]), self.dtype)
        if not len(found):
            return found
        buffer = memoryview(found).cast("B")  # type: ignore[arg-type]
        row, first, read, place = self._row, self._start, self.file.read_into, 0
        for start, end in zip(starts, ends, strict=True):
            size = (end - start) * row
            read(first + start * row, buffer[place : place + size])
            place += size
        return found

    def _end(self, rows: int) -> int:
        return self._start + rows * self._row


def open_array(path: Path) -> Array | ArrayFile:
    """Return the array in a ``.npy`` file: in memory where it is small.

    Raises:
        OSError, ValueError, EOFError: it cannot be read, or holds something else.
    """
    if path.stat().st_size <= SMALL_BYTES:
        loaded: Array = np.load(path, allow_pickle=False)
        return loaded
    return ArrayFile(path)
