"""The client for asyncio; :mod:`tritonrag.client.synchronous` with ``await``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Protocol, Self, Unpack

import numpy as np
import numpy.typing as npt

from tritonrag.client import marshalling
from tritonrag.client.addresses import address
from tritonrag.client.marshalling import (
    AskOptions,
    Call,
    SamplingOptions,
    SearchOptions,
    Tensors,
)
from tritonrag.client.over_grpc import AsyncGrpcTransport
from tritonrag.client.over_http import AsyncHttpTransport
from tritonrag.client.results import Health, SearchResult
from tritonrag.client.streams import AsyncAnswerStream
from tritonrag.client.synchronous import CANCEL_TIMEOUT_S, DEFAULT_TIMEOUT_S
from tritonrag.errors import TritonragError


class AsyncTransport(Protocol):
    """One protocol to one server."""

    async def infer(self, call: Call, timeout: float | None) -> Tensors:
        """Return the one response of a call."""

    def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Tensors, None]:
        """Yield the responses of a call."""

    async def versions(self, timeout: float | None) -> dict[str, list[int]]:
        """Return the versions that are loaded, by model."""

    async def close(self) -> None:
        """Free the connections."""


class AsyncClient:
    """As :class:`~tritonrag.client.Client`, for many tasks of one event loop at once."""

    def __init__(
        self,
        url: str | None = None,
        protocol: str = "grpc",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Connect on first use, as :class:`~tritonrag.client.Client` does."""
        over: Callable[[str], AsyncTransport] = (
            AsyncHttpTransport if protocol == "http" else AsyncGrpcTransport
        )
        self._transport = over(address(url, protocol))
        self._timeout = timeout
        self._running: dict[str, Call] = {}

    async def search(
        self, question: str, *, timeout: float | None = None, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        """Return the passages nearest to ``question``, best first, as ``Client.search``."""
        call = marshalling.call("search", question=question, **options)
        return marshalling.search_result(await self._infer(call, timeout))

    def ask(
        self, question: str, *, timeout: float | None = None, **options: Unpack[AskOptions]
    ) -> AsyncAnswerStream:
        """Return the answer to ``question`` as a stream of text, as ``Client.ask``."""
        return self._stream(marshalling.stream_call("rag", question=question, **options), timeout)

    def generate(
        self,
        prompt: str,
        *,
        version: int | None = None,
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncAnswerStream:
        """Return what the LLM writes after ``prompt``, as ``Client.generate``."""
        call = marshalling.stream_call("generate", version, prompt=prompt, **options)
        return self._stream(call, timeout)

    async def embed(
        self,
        texts: Sequence[str],
        role: str = "passage",
        *,
        version: int | None = None,
        timeout: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the L2-normalised embeddings ``[n, dim]`` of ``texts``; ``[0, 0]`` of none.

        ``role`` is ``passage`` or ``query``. Texts go out 64 at a time, and ``timeout`` bounds each
        of these requests; await several for more throughput.
        ``version`` is of the embedder, by default the one that the graph uses.
        """
        parts = [
            marshalling.embeddings(await self._embedded(call, timeout))
            for call in marshalling.embed_calls(texts, role, version)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    async def health(self, *, timeout: float | None = None) -> Health:
        """Return whether the server answers, and the versions of each model that it has loaded."""
        try:
            versions = await self._transport.versions(self._seconds(timeout))
        except TritonragError as error:
            return Health(live=False, reason=str(error))
        return Health(live=True, versions=versions)

    async def ready(self, *, timeout: float | None = None) -> bool:
        """Return whether the server answers and every model of the contract is ready."""
        return (await self.health(timeout=timeout)).ready

    async def close(self) -> None:
        """Stop the answers that are still being generated and free the connections."""
        for call in tuple(self._running.values()):
            await self._cancel(call)
        await self._transport.close()

    async def __aenter__(self) -> Self:
        """Return the client, to be closed at the end of the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client."""
        await self.close()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    async def _embedded(self, call: Call, timeout: float | None) -> Tensors:
        answer = await self._infer(call, timeout)
        if call.version is None:
            return answer
        return await self._infer(marshalling.encoder_call(answer, call), timeout)

    async def _infer(self, call: Call, timeout: float | None) -> Tensors:
        return await self._transport.infer(call, self._seconds(timeout))

    def _stream(self, call: Call, timeout: float | None) -> AsyncAnswerStream:
        responses = self._responses(call, self._seconds(timeout))
        return AsyncAnswerStream(call.id, responses, partial(self._cancel, call))

    async def _responses(self, call: Call, timeout: float | None) -> AsyncGenerator[Tensors, None]:
        self._running[call.id] = call
        try:
            async with aclosing(self._transport.stream(call, timeout)) as responses:
                async for tensors in responses:
                    yield tensors
        finally:
            self._running.pop(call.id, None)

    async def _cancel(self, running: Call) -> None:
        call = marshalling.cancel_call(running)
        with suppress(TritonragError):
            async for _ in self._transport.stream(call, CANCEL_TIMEOUT_S):
                pass
