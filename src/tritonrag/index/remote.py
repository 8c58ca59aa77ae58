"""Snapshots in Milvus, searched where they are. ``mirroring`` writes them.

Only the documents' records are held here: filters and groups are evaluated on them exactly as for
a snapshot on disk, and Milvus gets the numbers of the documents that are left.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tritonrag.errors import NotFound, Unavailable
from tritonrag.index import analysis
from tritonrag.index.bm25 import question_vector
from tritonrag.index.columns import EVERYONE, Columns, Groups, Mask
from tritonrag.index.filters import Filter
from tritonrag.index.manifest import (
    DOCUMENTS,
    DocumentRecord,
    EmbedderId,
    SnapshotManifest,
    damaged,
)
from tritonrag.index.milvus import (
    DOCUMENT,
    MANIFEST_PROPERTY,
    NUMBER,
    PASSAGE,
    PIECE,
    VECTOR,
    WORDS,
    Milvus,
    alias,
    collection_of,
    documents_name,
)
from tritonrag.index.searchable import Searchable
from tritonrag.index.vectors import Floats, Ids

PIECES = 64
"""Pieces of the documents that one call reads: 4 MB."""

_KEPT = 32
"""Answers to the latest filters that are kept for each snapshot."""


class MilvusSource:
    """The live snapshots in Milvus of one embedder: its own alias's, else the collection's."""

    def __init__(self, milvus: Milvus, embedder: EmbedderId) -> None:
        """Read from ``milvus``, from now on and as it becomes reachable."""
        self._milvus = milvus
        self._sha256 = embedder.sha256
        self._aliases: frozenset[str] = frozenset()

    def collections(self) -> list[str]:
        """Return the collections that have a live snapshot, sorted."""
        self._aliases = frozenset(self._milvus("list_aliases")["aliases"])
        names = {name: collection_of(name) for name in self._aliases}
        return sorted(each for name, each in names.items() if each and alias(each) == name)

    def seen(self, collection: str) -> object:
        """Return the Milvus collection that is live."""
        own = alias(collection, self._sha256)
        name = own if own in self._aliases else alias(collection)
        return self._milvus("describe_alias", name)["collection_name"]

    def load(self, collection: str, old: Searchable | None) -> Searchable:
        """Return the live snapshot: ``old`` where it still is the one."""
        name = str(self.seen(collection))
        if isinstance(old, RemoteSnapshot) and old.passages_name == name:
            return old
        return RemoteSnapshot.open(self._milvus, name)

    def close(self) -> None:
        """Close the connection."""
        self._milvus.close()


class RemoteSnapshot:
    """One snapshot in Milvus; immutable, as there."""

    def __init__(
        self,
        milvus: Milvus,
        passages_name: str,
        manifest: SnapshotManifest,
        documents: Sequence[DocumentRecord],
    ) -> None:
        """Hold what :meth:`open` has read."""
        self._milvus = milvus
        self.passages_name = passages_name
        self.manifest = manifest
        sizes = [document.passages for document in documents]
        self._ends = np.cumsum(np.array(sizes, np.int64))
        self._columns = Columns(documents)
        # Not cached methods, which would tie the snapshot to itself and keep it after a swap.
        self._checks = lru_cache(_KEPT)(self._columns.check)
        self._masks = lru_cache(_KEPT)(self._columns.allowed)

    @classmethod
    def open(cls, milvus: Milvus, passages_name: str) -> RemoteSnapshot:
        """Read the manifest and the documents of the snapshot in a Milvus collection.

        Raises:
            SetupError: it is of a newer format, or damaged.
            NotFound, Unavailable: it is gone, or Milvus does not answer.
        """
        described = milvus("describe_collection", passages_name)
        try:
            manifest = SnapshotManifest.parse(described["properties"][MANIFEST_PROPERTY])
            documents = _documents(milvus, documents_name(passages_name), manifest)
        except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
            raise damaged(passages_name, f"it cannot be read in Milvus ({error})") from error
        return cls(milvus, passages_name, manifest, documents)

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return self.manifest.snapshot

    @property
    def has_words(self) -> bool:
        """Whether its passages have BM25 scores of the terms that questions are cut into."""
        return self.manifest.analysis == analysis.VERSION

    @property
    def intact(self) -> bool:
        """Whether it is what was loaded: Milvus keeps its own files."""
        return True

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    def audience(self, groups: Groups) -> Groups:
        """Return those of a caller's groups that matter here."""
        return self._columns.known(groups)

    def readable(self, groups: Groups) -> bool:
        """Return whether a caller in ``groups`` may read any document."""
        return self._columns.readable(groups)

    def check(self, where: Filter | None, groups: Groups = EVERYONE) -> None:
        """Check a filter against the documents that a caller in ``groups`` may read."""
        if where is not None:
            self._checks(where, self.audience(groups))

    def allowed(self, where: Filter | None, groups: Groups = EVERYONE) -> Mask | None:
        """Return the documents that a caller may read and that ``where`` leaves; None for all."""
        return self._masks(where, self.audience(groups))

    def view(self, allowed: Mask | None) -> RemoteView:
        """Return what a search in these documents sees."""
        return RemoteView(self, allowed)

    def document_of(self, number: int) -> int:
        """Return the number of the document that passage ``number`` is of."""
        return int(np.searchsorted(self._ends, number, "right"))

    def found(self, field: str, vectors: list[Any], count: int, where: str) -> list[list[Any]]:
        """Return Milvus's hits for each vector of ``field``.

        Raises:
            Unavailable: Milvus does not answer, or has the snapshot no longer.
        """
        try:
            found: list[list[Any]] = self._milvus(
                "search", self.passages_name, vectors, anns_field=field, limit=count, filter=where,
                output_fields=[PASSAGE, VECTOR],
            )  # fmt: skip
        except NotFound as error:
            raise Unavailable(f"snapshot {self.name} is gone: {error}") from error
        return found


class RemoteView:
    """What one search sees of a snapshot; it keeps the passages and vectors that came with hits."""

    def __init__(self, snapshot: RemoteSnapshot, allowed: Mask | None) -> None:
        """See those documents of ``snapshot`` that are ``allowed``."""
        self._snapshot = snapshot
        self._where = "" if allowed is None else expression(allowed)
        self._empty = not len(snapshot) or (allowed is not None and not allowed.any())
        self._passages: dict[int, bytes] = {}
        self._vectors: dict[int, Floats] = {}

    def nearest(self, embeddings: Floats, count: int) -> tuple[Floats, Ids]:
        """Return the nearest passages of each embedding, with their exact inner products."""
        found = [self._ranked(row) for row in self._found(VECTOR, list(embeddings), count)]
        scores = np.full((len(embeddings), max(map(len, found), default=0)), -np.inf, np.float32)
        ids = np.full(scores.shape, -1, np.int64)
        for row, (embedding, numbers) in enumerate(zip(embeddings, found, strict=True)):
            cosines = np.einsum("nd,d->n", self.rows(numbers), embedding)
            order = np.argsort(-cosines, kind="stable")
            scores[row, : len(order)], ids[row, : len(order)] = cosines[order], numbers[order]
        return scores, ids

    def sharing_words(self, question: str, count: int) -> tuple[Floats, Ids]:
        """Return the passages that share a term with the question, by their BM25 scores."""
        terms = question_vector(question)
        (hits,) = self._found(WORDS, [terms], count) if terms else ([],)
        hits = [hit for hit in hits if hit["distance"] > 0]
        numbers = self._ranked(hits)
        scores = np.array([hit["distance"] for hit in hits], np.float32)
        order = np.lexsort((numbers, -scores))
        return scores[order], numbers[order]

    def rows(self, numbers: Ids) -> Floats:
        """Return the embeddings of passages that were found."""
        dimension = self._snapshot.manifest.dimension
        rows = [self._vectors[number] for number in numbers.tolist()]
        return np.array(rows, np.float32).reshape(-1, dimension)

    def passage(self, number: int) -> bytes:
        """Return a passage that was found."""
        return self._passages[number]

    def document_of(self, number: int) -> int:
        """Return the number of its document."""
        return self._snapshot.document_of(number)

    def _found(self, field: str, vectors: list[Any], count: int) -> list[list[Any]]:
        if self._empty:
            return [[] for _ in vectors]
        return self._snapshot.found(field, vectors, count, self._where)

    def _ranked(self, hits: Sequence[Any]) -> Ids:
        for hit in hits:
            self._passages[hit[NUMBER]] = hit["entity"][PASSAGE].encode()
            self._vectors[hit[NUMBER]] = np.array(hit["entity"][VECTOR], np.float32)
        return np.array([hit[NUMBER] for hit in hits], np.int64)


def expression(allowed: Mask) -> str:
    """Return the documents that are ``allowed`` in Milvus's language, by the shorter list."""
    inside, outside = np.flatnonzero(allowed), np.flatnonzero(~allowed)
    if len(inside) <= len(outside):
        return f"{DOCUMENT} in {inside.tolist()}"
    return f"{DOCUMENT} not in {outside.tolist()}"


def _documents(milvus: Milvus, name: str, manifest: SnapshotManifest) -> list[DocumentRecord]:
    text = ""
    start = 0
    while pieces := _read(milvus, name, start):
        text += "".join(pieces)
        start += PIECES
    data = gzip.decompress(base64.b64decode(text))
    if hashlib.sha256(data).hexdigest() != manifest.files[DOCUMENTS]:
        raise ValueError(f"{DOCUMENTS} differs from when it was written")
    return [DocumentRecord.from_json(line) for line in data.decode().split("\n") if line]


def _read(milvus: Milvus, name: str, start: int) -> list[str]:
    where = f"{NUMBER} >= {start} and {NUMBER} < {start + PIECES}"
    rows = milvus("query", name, filter=where, output_fields=[NUMBER, PIECE])
    return [row[PIECE] for row in sorted(rows, key=lambda row: row[NUMBER])]
