"""Files to passages in processes of their own, which a hostile file may crash, hang or fill.

:func:`cut` is the work itself, on one file, without state; :class:`ParserPool` does it beside the
caller. A file that ends its process costs that process alone, and another takes its place. Knows
neither vectors nor where files come from.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from tritonrag.chunking import Chunker
from tritonrag.confinement import confine, time_limit
from tritonrag.documents import SourceFile, parse_document
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.metadata import Metadata

MAX_TEXT_BYTES = 64 * 1024 * 1024
"""The most that the passages of one file may take, in UTF-8: it bounds what a file expands to."""

AHEAD_FILES, AHEAD_BYTES = 256, 64 * 1024 * 1024
"""How far parsing runs ahead of its caller: files, and bytes of files and of results."""

MAX_WORKERS = 8

_PROGRAM = "from tritonrag.parsing import serve; serve()"

_INHERITED = ("HOME", "LANG", "LC_", "LD_", "PATH", "PYTHON", "TMPDIR", "TZ", "VIRTUAL_ENV")
"""Starts of the environment variables that a parser gets; the writer's may hold credentials."""

_FORGED = 256
"""In place of an exit status: the process is not to be believed."""

_REPLIED = {
    "tritonrag.parsing.Cut",
    "tritonrag.metadata.Metadata",
    "tritonrag.errors.InvalidRequest",
}
"""What a parser's reply is made of, beside texts, numbers and containers."""


@dataclass(frozen=True)
class Limits:
    """What one file may take: seconds, and MiB of memory beside that of the parsers themselves."""

    seconds: int = 60
    memory_mib: int = 1024


@dataclass(frozen=True)
class Job:
    """A file to parse, its bytes as they were read, and their SHA-256."""

    file: SourceFile
    content: bytes
    sha256: str


@dataclass(frozen=True)
class Cut:
    """A parsed file cut into passages: each as it is stored (one line) and as it is embedded."""

    title: str
    metadata: Metadata
    lines: list[bytes]
    texts: list[str]


def cut(chunker: Chunker, file: SourceFile, content: bytes) -> Cut:
    """Parse a file and cut it into passages.

    Raises:
        InvalidRequest: it cannot be parsed; the message says why.
    """
    document = parse_document(file, content)
    made = Cut(document.title, document.metadata, [], [])
    size = 0
    for passage in chunker.passages(document):
        made.lines.append(passage.to_json())
        made.texts.append(chunker.embedded_text(passage))
        size += len(made.lines[-1])
        if size > MAX_TEXT_BYTES:
            raise InvalidRequest(
                f"gives over {MAX_TEXT_BYTES >> 20} MiB of passages; split it into smaller files"
            )
    return made


def default_workers() -> int:
    """Return how many processes parse unless told: half of the cores, the rest being to embed."""
    return min(max(len(os.sched_getaffinity(0)) // 2, 1), MAX_WORKERS)


class Parsers(Protocol):
    """What cuts many files, here or elsewhere."""

    @property
    def chunker(self) -> Chunker:
        """The chunker that cuts them."""
        ...

    def cut_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Cut | InvalidRequest]]:
        """Yield each file's passages, or why there are none, in the order of ``jobs``."""
        ...


class ParserPool:
    """Processes that parse; each starts when it is first needed. To be used as a context."""

    def __init__(
        self, chunker: Chunker, limits: Limits | None = None, workers: int | None = None
    ) -> None:
        """``chunker`` is copied to each process."""
        self.chunker = chunker
        self._limits = limits or Limits()
        self._threads = ThreadPoolExecutor(workers or default_workers(), "parse")
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._closed = False
        self._waiting = 0  # bytes of results that nobody has taken yet

    def __enter__(self) -> ParserPool:
        """Return the pool."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes, whatever they do."""
        self.close()

    def close(self) -> None:
        """End the processes; what they do then fails."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def cut_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Cut | InvalidRequest]]:
        """Yield each file's passages, or why there are none, in the order of ``jobs``.

        Raises:
            SetupError: no process can be started.
        """
        ahead: deque[tuple[Job, Future[Cut]]] = deque()
        size = 0
        for job in jobs:
            ahead.append((job, self._threads.submit(self._cut, job)))
            size += len(job.content)
            while ahead and (
                ahead[0][1].done() or len(ahead) > AHEAD_FILES or size + self._waiting > AHEAD_BYTES
            ):
                size -= len(ahead[0][0].content)
                yield self._result(*ahead.popleft())
        while ahead:
            yield self._result(*ahead.popleft())

    def _cut(self, job: Job) -> Cut:
        worker = self._take()
        try:
            made = worker.cut(job)
        except _Died as death:
            self._drop(worker)
            raise InvalidRequest(_reason(death.status, self._limits)) from None
        self._idle.append(worker)
        if isinstance(made, InvalidRequest):
            raise made
        self._count(_bytes(made))
        return made

    def _result(self, job: Job, future: Future[Cut]) -> tuple[Job, Cut | InvalidRequest]:
        try:
            made = future.result()
        except InvalidRequest as error:
            return job, error
        self._count(-_bytes(made))
        return job, made

    def _count(self, size: int) -> None:
        with self._lock:
            self._waiting += size

    def _take(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise SetupError("the parsers have been ended")
            if self._idle:
                return self._idle.pop()
            worker = _Worker()
            self._workers.add(worker)
        try:
            worker.start(self.chunker, self._limits)
        except BaseException:
            self._drop(worker)
            raise
        return worker

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            if not self._closed:
                self._workers.discard(worker)
                worker.close()


class _Died(Exception):
    """The process has ended, or must; a negative status is the signal that did it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Reply(pickle.Unpickler):
    """Reads a reply of a process that a file may have taken over: it may name no other class."""

    def find_class(self, module_name: str, global_name: str) -> object:
        """Return a class of a reply."""
        name = f"{module_name}.{global_name}"
        if name not in _REPLIED:
            raise pickle.UnpicklingError(f"{name} in a parser's reply")
        return super().find_class(module_name, global_name)


class _Worker:
    """One process that parses. Requests and replies are pickles over its standard streams."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # of its start; later it says nothing
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the caller.
        )

    def start(self, chunker: Chunker, limits: Limits) -> None:
        try:
            self._ask((chunker, limits))
        except _Died:
            assert self._process.stderr
            said = self._process.stderr.read().decode(errors="replace").strip().split("\n")[-1]
            raise SetupError(f"a parser's process cannot be started: {said}") from None

    def cut(self, job: Job) -> Cut | InvalidRequest:
        reply = self._ask((job.file, job.content))
        if not isinstance(reply, Cut | InvalidRequest):
            raise _Died(_FORGED)
        return reply

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: object) -> object:
        assert self._process.stdin
        assert self._process.stdout
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            return _Reply(self._process.stdout).load()
        except pickle.UnpicklingError:
            raise _Died(_FORGED) from None
        except (EOFError, OSError):
            raise _Died(self._status()) from None

    def _status(self) -> int:
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=1)
        self._process.kill()
        return self._process.wait()


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key.startswith(_INHERITED)}
    return kept | {"TOKENIZERS_PARALLELISM": "false"}


def serve() -> None:
    """Parse what standard input asks for until it ends; the program of a process of the pool."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    chunker, limits = pickle.load(requests)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    confine(limits.memory_mib << 20)
    reply: object = None
    while True:
        pickle.dump(reply, replies)
        replies.flush()
        try:
            file, content = pickle.load(requests)
        except EOFError:
            return
        with time_limit(limits.seconds):
            reply = _reply(chunker, file, content, limits)


def _reply(
    chunker: Chunker, file: SourceFile, content: bytes, limits: Limits
) -> Cut | InvalidRequest:
    try:
        return cut(chunker, file, content)
    except InvalidRequest as error:
        return error
    except MemoryError:
        return InvalidRequest(_too_large(limits))
    except RecursionError:
        return InvalidRequest("nested too deeply to parse")
    except Exception as error:  # Code of other people, on files of other people.
        return InvalidRequest(f"cannot be cut into passages: {type(error).__name__}: {error}")


def _bytes(made: Cut) -> int:
    return sum(map(len, made.lines)) + sum(map(len, made.texts))


def _reason(status: int, limits: Limits) -> str:
    if status in (-signal.SIGALRM, -signal.SIGXCPU):
        return f"takes over {limits.seconds} s to parse; split it, or raise --file-seconds"
    if status == -signal.SIGKILL:
        return "its parser was killed, as happens where memory runs out"
    if status == _FORGED:
        return "makes its parser reply what no parser does"
    if status == -signal.SIGABRT:
        return f"its parser gave up; perhaps it {_too_large(limits)}"
    if status < 0:
        return f"crashes its parser ({signal.Signals(-status).name})"
    return f"ends its parser with exit status {status}"


def _too_large(limits: Limits) -> str:
    return f"takes over {limits.memory_mib} MiB to parse; split it, or raise --file-memory"
