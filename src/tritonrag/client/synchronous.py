"""The client that blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
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
from tritonrag.client.over_grpc import GrpcTransport
from tritonrag.client.over_http import HttpTransport
from tritonrag.client.results import Health, SearchResult
from tritonrag.client.streams import AnswerStream
from tritonrag.errors import TritonragError

CANCEL_TIMEOUT_S = 2.0
"""How long leaving a stream may wait for the server to confirm that it stopped."""

DEFAULT_TIMEOUT_S = 30.0
"""How long a request may take in all, unless the caller says."""


class Transport(Protocol):
    """One protocol to one server."""

    def infer(self, call: Call, timeout: float | None) -> Tensors:
        """Return the one response of a call."""

    def stream(self, call: Call, timeout: float | None) -> Generator[Tensors, None, None]:
        """Yield the responses of a call."""

    def versions(self, timeout: float | None) -> dict[str, list[int]]:
        """Return the versions that are loaded, by model."""

    def close(self) -> None:
        """Free the connections."""


class Client:
    """Searches, asks and embeds on a Triton server; safe for many threads at once.

    Every method raises the errors of :mod:`tritonrag.errors` and no others. ``timeout`` is in
    seconds and bounds a request as a whole, all of a streamed answer included; None on a method
    means the client's own.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: str = "grpc",
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Connect on first use to ``url``, ``host:port`` or with ``http`` also a whole URL.

        The default is 127.0.0.1 at Triton's port of the protocol, ``grpc`` (8001) or ``http``
        (8000). A ``timeout`` of None waits for ever.

        Raises:
            InvalidRequest: the protocol is unknown or the URL does not fit it.
        """
        over: Callable[[str], Transport] = HttpTransport if protocol == "http" else GrpcTransport
        self._transport = over(address(url, protocol))
        self._timeout = timeout
        self._running: dict[str, Call] = {}

    def search(
        self, question: str, *, timeout: float | None = None, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        """Return the passages nearest to ``question``, best first.

        Options: ``top_k``, ``collection``, ``filter``, conditions on the documents such as
        ``{"tags": ["hr", "it"], "created": {"$gte": "2026-01-01"}}``, and ``groups``, those of the
        one who asks (docs/contract.md); on a server with a reranker ``retrieve_k``, the passages
        found, of which it keeps the best ``top_k``.
        ``mode`` is ``dense``, ``sparse`` or ``hybrid``, ``min_score`` the least cosine similarity,
        ``diversity`` from 0 to 1 puts back passages like those before them, ``merge`` makes
        neighbours one passage.
        """
        call = marshalling.call("search", question=question, **options)
        return marshalling.search_result(self._infer(call, timeout))

    def ask(
        self, question: str, *, timeout: float | None = None, **options: Unpack[AskOptions]
    ) -> AnswerStream:
        """Return the answer to ``question`` as a stream of text with citations.

        Options: those of :meth:`search` and :meth:`generate`, and ``history``, the earlier turns
        as ``{"role": "user" | "assistant", "content": …}``, oldest first.
        """
        return self._stream(marshalling.stream_call("rag", question=question, **options), timeout)

    def generate(
        self,
        prompt: str,
        *,
        version: int | None = None,
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AnswerStream:
        """Return what the LLM writes after ``prompt``, as it stands and without retrieval.

        Options: ``max_tokens``, ``temperature`` (0 is greedy), ``top_p``, ``top_k_sampling``,
        ``seed``, ``stop`` (strings that end the text) and ``grounding`` (``free`` or ``quote``).
        ``caller`` says for whom, where a gateway asks: the operator may cap the generations of one.
        ``version`` is of the LLM, by default the highest that the server has loaded.
        """
        call = marshalling.stream_call("generate", version, prompt=prompt, **options)
        return self._stream(call, timeout)

    def embed(
        self,
        texts: Sequence[str],
        role: str = "passage",
        *,
        version: int | None = None,
        timeout: float | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the L2-normalised embeddings ``[n, dim]`` of ``texts``; ``[0, 0]`` of none.

        ``role`` is ``passage`` or ``query``. Texts go out 64 at a time, and ``timeout`` bounds each
        of these requests; call it from several threads for more throughput.
        ``version`` is of the embedder, by default the one that the graph uses.
        """
        parts = [
            marshalling.embeddings(self._embedded(call, timeout))
            for call in marshalling.embed_calls(texts, role, version)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def health(self, *, timeout: float | None = None) -> Health:
        """Return whether the server answers, and the versions of each model that it has loaded."""
        try:
            versions = self._transport.versions(self._seconds(timeout))
        except TritonragError as error:
            return Health(live=False, reason=str(error))
        return Health(live=True, versions=versions)

    def ready(self, *, timeout: float | None = None) -> bool:
        """Return whether the server answers and every model of the contract is ready."""
        return self.health(timeout=timeout).ready

    def close(self) -> None:
        """Stop the answers that are still being generated and free the connections."""
        for call in tuple(self._running.values()):
            self._cancel(call)
        self._transport.close()

    def __enter__(self) -> Self:
        """Return the client, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _embedded(self, call: Call, timeout: float | None) -> Tensors:
        answer = self._infer(call, timeout)
        if call.version is None:
            return answer
        return self._infer(marshalling.encoder_call(answer, call), timeout)

    def _infer(self, call: Call, timeout: float | None) -> Tensors:
        return self._transport.infer(call, self._seconds(timeout))

    def _stream(self, call: Call, timeout: float | None) -> AnswerStream:
        responses = self._responses(call, self._seconds(timeout))
        return AnswerStream(call.id, responses, partial(self._cancel, call))

    def _responses(self, call: Call, timeout: float | None) -> Generator[Tensors, None, None]:
        self._running[call.id] = call
        try:
            yield from self._transport.stream(call, timeout)
        finally:
            self._running.pop(call.id, None)

    def _cancel(self, running: Call) -> None:
        with suppress(TritonragError):
            for _ in self._transport.stream(marshalling.cancel_call(running), CANCEL_TIMEOUT_S):
                pass
