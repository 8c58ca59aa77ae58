"""A streamed answer as an iterator of text, sync and async.

However a stream is left early, the server is told to stop: on Triton 2.51 neither a cancelled gRPC
stream nor a closed HTTP one reaches the decoupled step of an ensemble.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, closing, suppress
from typing import Self

from tritonrag.client.marshalling import Progress, Tensors
from tritonrag.client.results import Answer, Citation, Usage
from tritonrag.errors import DeadlineExceeded, TritonragError


class _Stream:
    """What both kinds of stream know of the answer."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._progress = Progress()

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._progress.text

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The passages that the LLM was given, best first; empty until the first text came."""
        return self._progress.citations

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length`` or ``cancelled``; None until the end."""
        return self._progress.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Tokens and times on the server; None until the end."""
        return self._progress.usage


class AnswerStream(_Stream):
    """The text of an answer, piece by piece: ``for delta in stream``.

    The question is sent when the first piece is asked for. An error is raised from the iteration;
    what came before it stays in ``text``. Leaving a ``with`` block or the loop, :meth:`close`, an
    error, Ctrl-C and a deadline all stop the generation on the server.
    """

    def __init__(
        self,
        request_id: str,
        responses: Generator[Tensors, None, None],
        cancel: Callable[[], None],
    ) -> None:
        """Take the responses as they come, and what stops the generation."""
        super().__init__(request_id)
        self._cancel = cancel
        # Not a method: a generator that held ``self`` would keep the stream from being collected.
        self._deltas = _deltas(self._progress, responses, cancel)

    def __iter__(self) -> Self:
        """Return itself: a stream is read once."""
        return self

    def __next__(self) -> str:
        """Return the next piece of text, never empty."""
        return next(self._deltas)

    def read(self) -> Answer:
        """Read to the end and return the whole answer."""
        with self:
            for _ in self:
                pass
        return self._progress.answer()

    def cancel(self) -> None:
        """Stop the generation, from any thread; the iteration then ends as ``cancelled``."""
        self._cancel()

    def close(self) -> None:
        """End the stream, and the generation if it still runs."""
        self._deltas.close()

    def __enter__(self) -> Self:
        """Return the stream, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the stream."""
        self.close()

    def __del__(self) -> None:
        """Stop the generation of a stream that was dropped half read."""
        # In a thread, since garbage may be collected while gRPC holds one of its locks.
        if inspect.getgeneratorstate(self._deltas) == inspect.GEN_SUSPENDED:
            with suppress(RuntimeError):  # no threads while the interpreter shuts down
                threading.Thread(target=self._deltas.close, name="tritonrag-cancel").start()


class AsyncAnswerStream(_Stream):
    """As :class:`AnswerStream`: ``async for delta in stream``, ``async with``, ``await``."""

    def __init__(
        self,
        request_id: str,
        responses: AsyncGenerator[Tensors, None],
        cancel: Callable[[], Awaitable[None]],
    ) -> None:
        """Take the responses as they come, and what stops the generation."""
        super().__init__(request_id)
        self._cancel = cancel
        # asyncio closes an async generator that is collected, so this one needs no ``__del__``.
        self._deltas = _async_deltas(self._progress, responses, cancel)

    def __aiter__(self) -> Self:
        """Return itself: a stream is read once."""
        return self

    async def __anext__(self) -> str:
        """Return the next piece of text, never empty."""
        return await anext(self._deltas)

    async def read(self) -> Answer:
        """Read to the end and return the whole answer."""
        async with self:
            async for _ in self:
                pass
        return self._progress.answer()

    async def cancel(self) -> None:
        """Stop the generation, from any task; the iteration then ends as ``cancelled``."""
        await self._cancel()

    async def close(self) -> None:
        """End the stream, and the generation if it still runs."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        """Return the stream, to be closed at the end of the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the stream."""
        await self.close()


def _deltas(
    progress: Progress, responses: Generator[Tensors, None, None], cancel: Callable[[], None]
) -> Generator[str, None, None]:
    running = True
    with closing(responses):
        try:
            for tensors in responses:
                if delta := progress.take(tensors):
                    yield delta
            progress.answer()
        except TritonragError as error:
            running = _runs_on(error)
            raise
        finally:
            if running and progress.finish_reason is None:
                cancel()


async def _async_deltas(
    progress: Progress,
    responses: AsyncGenerator[Tensors, None],
    cancel: Callable[[], Awaitable[None]],
) -> AsyncGenerator[str, None]:
    running = True
    async with aclosing(responses):
        try:
            async for tensors in responses:
                if delta := progress.take(tensors):
                    yield delta
            progress.answer()
        except TritonragError as error:
            running = _runs_on(error)
            raise
        finally:
            if running and progress.finish_reason is None:
                await cancel()


def _runs_on(error: TritonragError) -> bool:
    """Return whether the server goes on after this; an error that it sent has ended the request."""
    return isinstance(error, DeadlineExceeded)
