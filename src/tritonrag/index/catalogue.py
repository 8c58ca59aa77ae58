"""What is in an index: its collections, their snapshots, and whether a server will take them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tritonrag.artifacts import EmbedderManifest
from tritonrag.errors import SetupError
from tritonrag.index import layout
from tritonrag.index.manifest import EmbedderId, SnapshotManifest, damaged
from tritonrag.index.retriever import check_embedder
from tritonrag.index.snapshot import Snapshot, read_documents


@dataclass(frozen=True)
class CollectionInfo:
    """A collection: its live snapshot's manifest, or why it is refused, or both.

    ``refusal`` is what a server that starts now would say of it; a running server keeps the
    snapshot that it had before. ``bytes`` are those of the live snapshot on disk.
    """

    name: str
    snapshot: str | None
    manifest: SnapshotManifest | None
    refusal: str | None
    snapshots: list[str]
    bytes: int


def describe(
    index_dir: Path,
    collection: str,
    embedder: EmbedderManifest | None = None,
    *,
    verify: bool = True,
) -> CollectionInfo:
    """Return what is known of a collection.

    Args:
        index_dir: the folder of the index.
        collection: its name.
        embedder: the embedder installed, to check the snapshot against; None checks nothing.
        verify: load the snapshot as a server does, and compare the hash of every file.

    Raises:
        InvalidRequest: a collection may not be called so.
        NotFound: there is none of that name; the message lists those there are.
    """
    folder = layout.known_collection(index_dir, collection)
    name, manifest, refusal = None, None, None
    try:
        name = layout.current(folder, embedder.sha256 if embedder else "")
        manifest = SnapshotManifest.load(folder / str(name))
        if embedder:
            check_embedder(manifest.snapshot, manifest.embedder, EmbedderId.of(embedder))
        if verify:
            Snapshot.open(folder / manifest.snapshot)
    except SetupError as error:
        refusal = str(error)
    size = _size(folder / name) if name else 0
    return CollectionInfo(collection, name, manifest, refusal, layout.snapshots(folder), size)


def describe_all(
    index_dir: Path, embedder: EmbedderManifest | None = None, *, verify: bool = False
) -> list[CollectionInfo]:
    """Return what is known of every collection, as :func:`describe`, sorted by name."""
    names = layout.collections(index_dir)
    return [describe(index_dir, name, embedder, verify=verify) for name in names]


def lacking(
    index_dir: Path, embedder: EmbedderManifest, live: EmbedderManifest
) -> tuple[list[str], list[str]]:
    """Return the collections that ``embedder`` cannot take over from the ``live`` one.

    The first list is of those that have documents but no snapshot of ``embedder``, the second of
    those whose snapshot of ``embedder`` has not the same documents.

    Raises:
        SetupError: a live snapshot is damaged.
    """
    missing, behind = [], []
    for name in layout.collections(index_dir):
        wanted = _documents(index_dir / name, live)
        found = _documents(index_dir / name, embedder, own=True)
        if wanted and found is None:
            missing.append(name)
        elif wanted and wanted != found:
            behind.append(name)
    return missing, behind


def _documents(
    collection: Path, embedder: EmbedderManifest, *, own: bool = False
) -> set[tuple[str, str, str]] | None:
    """Return source, hash and metadata of each document; None where another embedder made them."""
    folder = collection / str(layout.current(collection, embedder.sha256))
    manifest = SnapshotManifest.load(folder)
    if own and manifest.embedder != EmbedderId.of(embedder):
        return None
    try:
        return {
            (record.source, record.sha256, json.dumps(record.metadata.to_json(), sort_keys=True))
            for record in read_documents(folder)
        }
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder.name, str(error)) from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
