"""Many texts to embeddings, through whatever embeds them, in concurrent batches.

Knows neither the client nor the server: they come as an ``Embedder``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from tritonrag.errors import InternalError, SetupError, Unavailable, Unreachable
from tritonrag.index.snapshot import Floats

BATCH_TEXTS = 32
IN_FLIGHT = 6
GROUPS_AHEAD = 2
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts when the server is busy, or away for a moment."""

LAST_SECONDS = 1.0
"""What an interrupted run waits for the batches under way, whose embeddings are kept."""

Tag = TypeVar("Tag")
OnEmbedded = Callable[[Sequence[str], Floats], None]
"""Is told of some texts and their embeddings, one call at a time, maybe from another thread."""


class Embedder(Protocol):
    """Embeds texts; called from several threads at once."""

    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        """Return L2-normalised embeddings, float32 ``[texts, dimension]``."""
        ...


class EmbedGroups(Protocol):
    """What :func:`embed_groups` does, here or elsewhere."""

    def __call__(
        self,
        embedder: Embedder,
        groups: Iterable[tuple[Tag, Sequence[str]]],
        dimension: int,
        on_embedded: OnEmbedded,
    ) -> Generator[tuple[Tag, Floats]]:
        """Yield the embeddings of each group of texts, in their order."""
        ...


def embed_groups(
    embedder: Embedder,
    groups: Iterable[tuple[Tag, Sequence[str]]],
    dimension: int,
    on_embedded: OnEmbedded = lambda texts, vectors: None,
    *,
    batch_texts: int = BATCH_TEXTS,
    in_flight: int = IN_FLIGHT,
) -> Generator[tuple[Tag, Floats]]:
    """Yield the embeddings of each group of texts, float32 ``[texts, dimension]``, in their order.

    Texts of a group that are of like length share a batch, since the server pads a batch to its
    longest. Groups are taken ahead of their turn, so that the embedder has work while the next one
    is made; which texts share a batch depends on the groups alone, not on time.

    Args:
        embedder: what embeds; the first batch is sent alone, so that a server which is not there
            is reported at once.
        groups: each with a tag that comes back with its embeddings.
        dimension: the dimension expected.
        on_embedded: called after each batch, also with those under way when the run is interrupted.
        batch_texts: texts per call.
        in_flight: calls at a time, as long as the embedder is not too busy for so many.

    Raises:
        SetupError: the embedder has another dimension.
        InternalError: it answers something that is not a finite number.
        TritonragError: what the embedder raises; a busy server is tried again for a while.
    """
    calls = Calls(embedder, dimension, on_embedded, batch_texts, in_flight)
    ahead: deque[tuple[Tag, Group]] = deque()
    try:
        for tag, texts in groups:
            ahead.append((tag, calls.begin(texts)))
            while ahead and (len(ahead) > GROUPS_AHEAD or ahead[0][1].done):
                tag, group = ahead.popleft()
                yield tag, group.result()
        for tag, group in ahead:
            yield tag, group.result()
    finally:
        calls.abandon()


class Calls:
    """Sends batches to the embedder in threads; :func:`embed_groups` says how."""

    def __init__(
        self,
        embedder: Embedder,
        dimension: int,
        on_embedded: OnEmbedded = lambda texts, vectors: None,
        batch_texts: int = BATCH_TEXTS,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        """Take the arguments of :func:`embed_groups`."""
        self._embedder, self._dimension, self._batch_texts = embedder, dimension, batch_texts
        self._on_embedded, self._lock = on_embedded, threading.Lock()
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="embed")
        self._pace, self._ended = _Pace(in_flight), threading.Event()
        self._began = False
        self._sent: set[Future[None]] = set()

    def begin(self, texts: Sequence[str]) -> Group:
        """Begin to embed a group of texts.

        Raises:
            TritonragError: of the very first batch, which is sent alone.
        """
        vectors = np.empty((len(texts), self._dimension), np.float32)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]), reverse=True)
        size = self._batch_texts
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        if batches and not self._began:
            self._began = True
            self._run(texts, batches.pop(0), vectors, Unreachable)
        return Group(vectors, [self._send(texts, batch, vectors) for batch in batches])

    def abandon(self) -> None:
        """Start nothing new, and wait a moment for what is under way after Ctrl-C or an error."""
        self._ended.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        futures.wait([batch for batch in list(self._sent) if batch.running()], LAST_SECONDS)

    def _send(self, texts: Sequence[str], batch: list[int], vectors: Floats) -> Future[None]:
        sent = self._threads.submit(self._run, texts, batch, vectors)
        self._sent.add(sent)
        sent.add_done_callback(self._sent.discard)
        return sent

    def _run(
        self,
        texts: Sequence[str],
        batch: list[int],
        vectors: Floats,
        *hopeless: type[Unavailable],
    ) -> None:
        asked = [texts[at] for at in batch]
        found = self._patiently(lambda: self._embedder.embed(asked, "passage"), hopeless)
        _check(found, len(batch), self._dimension)
        vectors[batch] = found
        with self._lock:
            self._on_embedded(asked, found)

    def _patiently(
        self, call: Callable[[], Floats], hopeless: tuple[type[Unavailable], ...]
    ) -> Floats:
        for wait in RETRY_SECONDS:
            try:
                with self._pace.turn():
                    return call()
            except hopeless:
                raise
            except Unavailable:
                if self._ended.wait(wait):
                    raise
        with self._pace.turn():
            return call()


class _Pace:
    """How many calls may be under way: half as many after a refusal, slowly more after answers.

    A slow embedder has less than the queue's time for several batches; one at a time it can do.
    """

    def __init__(self, most: int) -> None:
        self._most = self._limit = float(most)
        self._calls = 0
        self._changed = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._calls + 1 <= self._limit)
            self._calls += 1
        answered = True
        try:
            yield
        except Unavailable:
            answered = False
            raise
        finally:
            with self._changed:
                self._calls -= 1
                limit = self._limit + 0.1 if answered else self._limit / 2
                self._limit = min(max(limit, 1.0), self._most)
                self._changed.notify_all()


@dataclass(frozen=True)
class Group:
    """The embeddings of a group of texts, complete when every batch is."""

    vectors: Floats
    batches: list[Future[None]]

    @property
    def done(self) -> bool:
        """Whether all batches have been answered."""
        return all(batch.done() for batch in self.batches)

    def result(self) -> Floats:
        """Wait for all batches and return the embeddings, or raise the error of one."""
        for batch in self.batches:
            batch.result()
        return self.vectors


def _check(vectors: Floats, count: int, dimension: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise SetupError(
            f"the server's embeddings have shape {list(vectors.shape)}, but the embedder of the "
            f"model repository has dimension {dimension}; is it another repository than the "
            "server's, or was the server not restarted after an export?"
        )
    if len(vectors) != count or not np.isfinite(vectors).all():
        raise InternalError(
            f"embed_text: {count} texts gave {len(vectors)} embeddings, or values that are not "
            "finite numbers"
        )
