"""Milvus: its client with our errors, and what a collection's snapshots are called there.

Each snapshot is two Milvus collections, one of passages and one of pieces of its
``documents.jsonl``; an alias names the live one. ``mirroring`` writes them, ``remote`` reads them.
"""

from __future__ import annotations

import logging
import re
import threading
from types import TracebackType
from typing import Any

from tritonrag.errors import NotFound, SetupError, TritonragError, Unavailable
from tritonrag.settings import VectorDbSettings

NUMBER, DOCUMENT, PASSAGE, VECTOR, WORDS, PIECE = (
    "number", "document", "passage", "vector", "words", "piece",
)  # fmt: skip
"""Fields: of a passage its number, its document's, its JSON, its embedding and its terms' BM25
scores; of a piece its number and its text."""

MANIFEST_PROPERTY = "tritonrag.manifest"
"""Property of a passages' collection: the snapshot's manifest as JSON."""

MAX_TEXT_BYTES = 65_535
"""What Milvus holds in one VARCHAR."""

_PREFIX = "tritonrag_"
_ALIAS = re.compile(rf"{_PREFIX}([a-z0-9_D]+)_LIVE(?:_[0-9a-f]+)?")
_NO_COLLECTION, _NOT_LOADED = 100, 101
"""Milvus's codes. Milvus Lite has released every collection after a restart."""

_GRPC_OPTIONS = {
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.use_local_subchannel_pool": 1,  # of its own, so that others' failures do not slow it
}
"""By itself gRPC lets up to two minutes pass before it tries an address again."""


def passages_name(collection: str, snapshot: str) -> str:
    """Return the Milvus collection of a snapshot's passages."""
    return f"{prefix(collection)}AT_{re.sub('[.-]', '_', snapshot)}"


def documents_name(passages: str) -> str:
    """Return the Milvus collection of the documents that belong to one of passages."""
    return f"{passages}_DOCUMENTS"


def alias(collection: str, sha256: str = "") -> str:
    """Return the alias of the live snapshot of an embedder, by the start of its SHA-256."""
    return f"{prefix(collection)}LIVE{'_' + sha256[:12] if sha256 else ''}"


def prefix(collection: str) -> str:
    """Return how all names of a collection begin, and no other's.

    A Milvus name has no ``-``. Collections are in lower case, so that capitals keep parts apart.
    """
    return f"{_PREFIX}{collection.replace('-', 'D')}_"


def collection_of(name: str) -> str | None:
    """Return the collection that an alias is of; None for a name that is not ours."""
    found = _ALIAS.fullmatch(name)
    return found[1].replace("D", "-") if found else None


class Milvus:
    """A connection, made when it is first needed. Any number of threads may use it."""

    def __init__(self, settings: VectorDbSettings) -> None:
        """Read the settings; nothing is sent yet.

        Raises:
            SetupError: ``pymilvus`` is not installed.
        """
        try:
            import pymilvus
        except ImportError as error:
            raise SetupError(
                "VECTOR_DB_URI is set, which needs the milvus extra; install it with "
                "`pip install 'tritonrag[milvus]'`, or unset the variable"
            ) from error
        # It logs every failed attempt with a traceback; the errors below say the same once.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self.api: Any = pymilvus
        self._settings = settings
        self._connected: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Milvus:
        """Return itself; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        with self._lock:
            if self._connected is not None:
                self._connected.close()
                self._connected = None

    def __call__(self, method: str, *args: Any, seconds: float | None = None, **more: Any) -> Any:
        """Call a method of ``pymilvus.MilvusClient``, with the settings' timeout or ``seconds``.

        Raises:
            NotFound: there is no such Milvus collection.
            Unavailable: Milvus does not answer in time, or refuses.
        """
        options = {"timeout": seconds or self._half, **more}
        try:
            return self._loading(getattr(self._client(), method), args, options)
        except self.api.MilvusException as error:
            raise self._fault(error) from error
        except Exception as error:  # of gRPC, which pymilvus hands on as it is
            raise Unavailable(f"{self._where}: {type(error).__name__}") from error

    def _loading(self, method: Any, args: Any, options: Any) -> Any:
        """Call a method; load its collection first where someone released it."""
        try:
            return method(*args, **options)
        except self.api.MilvusException as error:
            if error.code != _NOT_LOADED:
                raise
            self._client().load_collection(args[0], timeout=options["timeout"])
            return method(*args, **options)

    @property
    def _half(self) -> float:
        # pymilvus connects again after a call that timed out, in which it may wait as long again.
        return self._settings.timeout_s / 2

    @property
    def _where(self) -> str:
        return f"Milvus at {self._settings.address}"

    def _client(self) -> Any:
        with self._lock:
            if self._connected is None:
                settings = self._settings
                self._connected = self.api.MilvusClient(
                    settings.uri, token=settings.token, timeout=self._half, dedicated=True,
                    grpc_options=dict(_GRPC_OPTIONS),
                )  # fmt: skip
            return self._connected

    def _fault(self, error: Any) -> TritonragError:
        text = self._settings.redacted(str(error.message).partition("\n")[0])
        kind = NotFound if error.code == _NO_COLLECTION else Unavailable
        return kind(f"{self._where}: {text[:300] or 'no answer'}")
