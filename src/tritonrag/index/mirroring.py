"""What a collection's folder holds, into Milvus: its live snapshots, and which one is live.

The folder stays the source of truth. A snapshot is uploaded beside the live one and counted, then
the alias moves; whatever fails on the way, the collection in Milvus stays as it was.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from tritonrag.errors import NotFound, SetupError, TritonragError, Unavailable
from tritonrag.index import layout
from tritonrag.index.manifest import DOCUMENTS, SnapshotManifest
from tritonrag.index.milvus import (
    DOCUMENT,
    MANIFEST_PROPERTY,
    MAX_TEXT_BYTES,
    NUMBER,
    PASSAGE,
    PIECE,
    VECTOR,
    WORDS,
    Milvus,
    alias,
    collection_of,
    documents_name,
    passages_name,
    prefix,
)
from tritonrag.index.snapshot import Snapshot
from tritonrag.settings import VectorDbSettings

Row = dict[str, Any]

BATCH = 256
"""Rows of one insert: half a megabyte of vectors in 384 dimensions."""

PIECE_CHARS = 60_000
WRITE_SECONDS = 120.0
"""For one call of a writer; what a search may take is another matter."""


def mirror(folder: Path, database: VectorDbSettings) -> None:
    """Make Milvus hold the live snapshots of the collection in ``folder``, and no removed ones.

    Only inside ``store.writing``. What is there already is not sent again. A folder that is gone
    removes the collection.

    Raises:
        Unavailable: Milvus does not answer, or did not take all.
        SetupError: a passage is too long for it, a snapshot is damaged, ``pymilvus`` is missing.
    """
    with Milvus(database) as milvus:
        try:
            _Mirror(milvus, folder).run()
        except TritonragError as error:
            kind = SetupError if isinstance(error, SetupError) else Unavailable
            raise kind(
                f"collection {folder.name}: not brought to Milvus, where it is as before: {error}; "
                "the index on this disk is complete, and the next run brings it there"
            ) from error


class _Mirror:
    def __init__(self, milvus: Milvus, folder: Path) -> None:
        self._milvus = milvus
        self._folder = folder
        self._collection = folder.name

    def run(self) -> None:
        live = layout.pointers(self._folder)
        for snapshot in sorted(set(live.values())):
            manifest = SnapshotManifest.load(self._folder / snapshot)
            if not self._complete(self._name(snapshot), manifest):
                self._upload(Snapshot.open(self._folder / snapshot))
        self._point(
            {alias(self._collection, sha256): self._name(to) for sha256, to in live.items()}
        )
        self._drop_pruned()

    def _name(self, snapshot: str) -> str:
        return passages_name(self._collection, snapshot)

    def _call(self, method: str, *args: Any, **more: Any) -> Any:
        return self._milvus(method, *args, seconds=WRITE_SECONDS, **more)

    def _complete(self, name: str, manifest: SnapshotManifest) -> bool:
        # Its documents are uploaded, and counted, before its passages.
        with suppress(NotFound):
            return self._count(name) == manifest.passages
        return False

    def _count(self, name: str) -> int:
        # Strong: with what has just been inserted.
        (row,) = self._call("query", name, output_fields=["count(*)"], consistency_level="Strong")
        return int(row["count(*)"])

    def _upload(self, snapshot: Snapshot) -> None:
        name = self._name(snapshot.name)
        pieces = _pieces((self._folder / snapshot.name / DOCUMENTS).read_bytes())
        self._fill(documents_name(name), self._of_documents, iter(pieces), len(pieces))
        self._fill(name, lambda: self._of_passages(snapshot.manifest), _rows(snapshot),
                   len(snapshot))  # fmt: skip

    def _fill(
        self, name: str, schema: Callable[[], Row], rows: Iterator[Row], expected: int
    ) -> None:
        self._call("drop_collection", name)  # what an interrupted run left
        self._call("create_collection", name, **schema())
        while batch := list(islice(rows, BATCH)):
            self._call("insert", name, batch)
        self._call("flush", name)
        count = self._count(name)
        if count != expected:
            raise Unavailable(f"{name} has {count} rows there, {expected} were sent")

    def _of_documents(self) -> Row:
        types = self._milvus.api.DataType
        return self._schema(
            [
                (NUMBER, types.INT64, {"is_primary": True}),
                (PIECE, types.VARCHAR, {"max_length": MAX_TEXT_BYTES}),
                (VECTOR, types.FLOAT_VECTOR, {"dim": 2}),  # Milvus wants one in each collection
            ],
            {VECTOR: ("FLAT", "IP")},
        )

    def _of_passages(self, manifest: SnapshotManifest) -> Row:
        types = self._milvus.api.DataType
        fields: list[tuple[str, Any, Row]] = [
            (NUMBER, types.INT64, {"is_primary": True}),
            (DOCUMENT, types.INT64, {}),
            (PASSAGE, types.VARCHAR, {"max_length": MAX_TEXT_BYTES}),
            (VECTOR, types.FLOAT_VECTOR, {"dim": manifest.dimension}),
            (WORDS, types.SPARSE_FLOAT_VECTOR, {}),
        ]
        indexes = {VECTOR: ("AUTOINDEX", "IP"), WORDS: ("SPARSE_INVERTED_INDEX", "IP")}
        properties = {MANIFEST_PROPERTY: manifest.to_json()}
        return self._schema(fields, indexes) | {"properties": properties}

    def _schema(
        self, fields: Iterable[tuple[str, Any, Row]], indexes: dict[str, tuple[str, str]]
    ) -> Row:
        client = self._milvus.api.MilvusClient
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        for name, kind, options in fields:
            schema.add_field(name, kind, **options)
        params = client.prepare_index_params()
        for name, (kind, metric) in indexes.items():
            params.add_index(name, index_type=kind, metric_type=metric)
        return {"schema": schema, "index_params": params}

    def _point(self, wanted: dict[str, str]) -> None:
        there = {
            name for name in self._call("list_aliases")["aliases"]
            if collection_of(name) == self._collection
        }  # fmt: skip
        for name, target in sorted(wanted.items()):
            move = "alter_alias" if name in there else "create_alias"
            self._call(move, target, name)
        for name in sorted(there - wanted.keys()):
            self._call("drop_alias", name)

    def _drop_pruned(self) -> None:
        start = f"{prefix(self._collection)}AT_"
        kept = layout.snapshots(self._folder) if self._folder.is_dir() else []
        names = {self._name(snapshot) for snapshot in kept}
        names |= {documents_name(name) for name in names}
        for name in self._call("list_collections"):
            if name.startswith(start) and name not in names:
                self._call("drop_collection", name)


def _pieces(documents: bytes) -> list[Row]:
    text = base64.b64encode(gzip.compress(documents)).decode("ascii")
    starts = range(0, len(text), PIECE_CHARS)
    return [
        {NUMBER: number, PIECE: text[start : start + PIECE_CHARS], VECTOR: [0.0, 0.0]}
        for number, start in enumerate(starts)
    ]


def _rows(snapshot: Snapshot) -> Iterator[Row]:
    words = iter(snapshot.bm25.sparse_vectors()) if snapshot.bm25 else repeat(NO_WORDS)
    for document in range(len(snapshot.documents)):
        numbers = snapshot.passages_of(document)
        for number, vector in zip(numbers, snapshot.vectors(numbers), strict=True):
            yield {
                NUMBER: number,
                DOCUMENT: document,
                PASSAGE: _text(snapshot, number),
                VECTOR: vector,
                WORDS: next(words) or NO_WORDS,
            }


NO_WORDS = {0: 1.0}
"""Sparse vector of a passage without terms: Milvus wants one, and no question has this term."""


def _text(snapshot: Snapshot, number: int) -> str:
    stored = snapshot.passage(number)
    if len(stored) > MAX_TEXT_BYTES:
        document = snapshot.documents[snapshot.document_of(number)]
        raise SetupError(
            f"a passage of {document.source} is {len(stored)} bytes long with its metadata, and "
            f"Milvus holds {MAX_TEXT_BYTES}; cut smaller passages (--chunk-tokens), or leave the "
            "file out"
        )
    return stored.decode()
