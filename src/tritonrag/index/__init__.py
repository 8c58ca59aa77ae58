"""The index: snapshots of passages and their vectors on disk, and the search over them.

    index/<collection>/
      CURRENT                          name of the live snapshot, replaced by an atomic rename
      ledger.sqlite3                   for the writer alone: not published yet, and what failed
      <snapshot>/manifest.json         what the snapshot is: SnapshotManifest
      <snapshot>/documents.jsonl       one document per line, in the order of its passages
      <snapshot>/passages.jsonl        one passage per line
      <snapshot>/passages.offsets.npy  uint64, where each passage starts; one more than passages
      <snapshot>/vectors.faiss         row i is the embedding of passage i
      <snapshot>/vectors.npy           the same unquantised, where that file holds them quantised
      <snapshot>/bm25.*                the BM25 index of the passages

``Retriever`` serves live snapshots, ``adding.Adder`` makes the next one from files, ``store``
writes it and rolls back, ``catalogue`` reports. ``mirroring`` brings live snapshots to Milvus and
``remote`` searches them there, where ``VECTOR_DB_URI`` is set. This package knows neither Triton
nor the client: embeddings reach it as arrays or through the ``Embedder`` protocol. The names below
are those that serving needs; they import no parser.
"""

from __future__ import annotations

from tritonrag.index.access import parse_groups
from tritonrag.index.filters import Filter, parse_filter
from tritonrag.index.manifest import EmbedderId, SnapshotManifest
from tritonrag.index.opening import open_retriever
from tritonrag.index.query import Query, Result
from tritonrag.index.retriever import Retriever
from tritonrag.index.snapshot import Snapshot

__all__ = [
    "EmbedderId",
    "Filter",
    "Query",
    "Result",
    "Retriever",
    "Snapshot",
    "SnapshotManifest",
    "open_retriever",
    "parse_filter",
    "parse_groups",
]
