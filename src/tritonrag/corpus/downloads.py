"""Files of a store read ahead of their use, several at a time and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

from tritonrag.documents import MAX_FILE_BYTES, Reader, SourceFile

AHEAD = 10
"""Files under way or waiting to be used; each has at most ``MAX_FILE_BYTES``. A store's library
keeps about as many connections."""


@contextmanager
def read_ahead(files: Iterable[SourceFile], wanted: set[str]) -> Iterator[list[SourceFile]]:
    """Yield ``files``, of which those whose ``source`` is ``wanted`` are read before they are used.

    They are expected to be used in about their order; what is not is read when it is used.
    """
    files = list(files)
    queue = [file for file in files if file.source in wanted and file.reader is not None]
    pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="download")
    downloads = _Downloads(pool, queue)
    try:
        yield [downloads.of(file) for file in files]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Downloads:
    def __init__(self, pool: ThreadPoolExecutor, queue: list[SourceFile]) -> None:
        self._pool = pool
        self._places = {file.source: place for place, file in enumerate(queue)}
        self._queue = iter(queue)
        self._running: dict[str, Future[bytes]] = {}
        self._lock = Lock()

    def of(self, file: SourceFile) -> SourceFile:
        if file.source not in self._places or file.reader is None:
            return file
        return replace(file, reader=_AheadReader(self, file.source, file.reader))

    def take(self, source: str) -> Future[bytes] | None:
        """Return the download of a file, if it has begun, and begin the next ones."""
        with self._lock:
            self._top_up()
            taken = self._running.pop(source, None)
            self._drop_skipped(self._places[source])
            self._top_up()
        return taken

    def _drop_skipped(self, place: int) -> None:
        for source in [each for each in self._running if self._places[each] < place - AHEAD]:
            del self._running[source]

    def _top_up(self) -> None:
        while len(self._running) < AHEAD and (file := next(self._queue, None)) is not None:
            assert file.reader is not None
            self._running[file.source] = self._pool.submit(file.reader.read, MAX_FILE_BYTES + 1)


@dataclass(frozen=True)
class _AheadReader:
    downloads: _Downloads
    source: str
    reader: Reader

    def read(self, limit: int) -> bytes:
        download = self.downloads.take(self.source)
        return self.reader.read(limit) if download is None else download.result()[:limit]
