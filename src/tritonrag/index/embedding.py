"""Many texts to embeddings, through whatever embeds them, in concurrent batches.

Knows neither the client nor the server: they come as an ``Embedder``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Protocol

import numpy as np

from tritonrag.errors import InternalError, SetupError, Unavailable
from tritonrag.index.snapshot import Floats

BATCH_TEXTS = 32
IN_FLIGHT = 6
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Waits between attempts when the server's queue is full."""


class Embedder(Protocol):
    """Embeds texts; called from several threads at once."""

    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        """Return L2-normalised embeddings, float32 ``[texts, dimension]``."""
        ...


def embed_all(
    embedder: Embedder,
    texts: Sequence[str],
    dimension: int,
    on_embedded: Callable[[int], None] = lambda count: None,
    *,
    batch_texts: int = BATCH_TEXTS,
    in_flight: int = IN_FLIGHT,
) -> Floats:
    """Return the embeddings of ``texts`` as passages, float32 ``[texts, dimension]``.

    Texts of like length share a batch, since the server pads a batch to its longest.

    Args:
        embedder: what embeds; its first batch is sent alone, so that a server which is not there
            is reported at once.
        texts: the texts, in any order.
        dimension: the dimension expected.
        on_embedded: called after each batch with the number of its texts.
        batch_texts: texts per call.
        in_flight: calls at a time.

    Raises:
        SetupError: the embedder has another dimension.
        InternalError: it answers something that is not a finite number.
        TritonragError: what the embedder raises; a full queue is tried again for a while.
    """
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]), reverse=True)
    batches = [order[at : at + batch_texts] for at in range(0, len(order), batch_texts)]
    result = np.empty((len(texts), dimension), np.float32)

    def run(batch: list[int], waits: Sequence[float] = RETRY_SECONDS) -> int:
        vectors = _patiently(lambda: embedder.embed([texts[at] for at in batch], "passage"), waits)
        _check(vectors, len(batch), dimension)
        result[batch] = vectors
        return len(batch)

    for batch in batches[:1]:
        on_embedded(run(batch, ()))
    _run_all(run, batches[1:], in_flight, on_embedded)
    return result


def _run_all(
    run: Callable[[list[int]], int],
    batches: list[list[int]],
    in_flight: int,
    on_embedded: Callable[[int], None],
) -> None:
    executor = ThreadPoolExecutor(in_flight, thread_name_prefix="embed")
    futures: list[Future[int]] = [executor.submit(run, batch) for batch in batches]
    try:
        for future in as_completed(futures):
            on_embedded(future.result())
    finally:
        # After Ctrl-C or an error nothing new starts, and what is under way is left to its caller,
        # which ends it by closing the client.
        executor.shutdown(wait=False, cancel_futures=True)


def _patiently(call: Callable[[], Floats], waits: Sequence[float]) -> Floats:
    for wait in waits:
        try:
            return call()
        except Unavailable:
            time.sleep(wait)
    return call()


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
