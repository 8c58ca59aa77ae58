"""Which store is served: the index on disk, or Milvus where ``VECTOR_DB_URI`` is set."""

from __future__ import annotations

from collections.abc import Callable

from tritonrag.artifacts import EmbedderManifest
from tritonrag.index.manifest import EmbedderId
from tritonrag.index.retriever import Retriever
from tritonrag.settings import IndexSettings, VectorDbSettings


def open_retriever(embedder: EmbedderManifest, log: Callable[[str], None]) -> Retriever:
    """Return what searches with ``embedder`` in the store that the environment names.

    A Milvus that does not answer is no error here: searches raise Unavailable until it does.

    Raises:
        SetupError: a variable is malformed, or ``pymilvus`` is missing.
    """
    database = VectorDbSettings.from_environment()
    if database is None:
        return Retriever(IndexSettings.from_environment().directory, embedder, log)
    from tritonrag.index.milvus import Milvus
    from tritonrag.index.remote import MilvusSource

    source = MilvusSource(Milvus(database), EmbedderId.of(embedder))
    return Retriever(source, embedder, log)
