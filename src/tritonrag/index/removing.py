"""Documents out of a collection, and whole collections out of the index.

What is removed from a collection is gone from its new live snapshots; the earlier ones keep it for
a rollback until they are pruned.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonrag.errors import NotFound, ServiceError
from tritonrag.index import layout, store
from tritonrag.index.ledger import forget
from tritonrag.index.manifest import SnapshotManifest
from tritonrag.index.snapshot import Snapshot

REMOVED = ".removed-"
"""Prefix of the folder of a collection that is being deleted."""


@dataclass(frozen=True)
class Removed:
    """What a removal did: the sources that went, and the collection's live snapshot after it."""

    collection: str
    sources: list[str]
    snapshot: str


def remove_documents(
    index_dir: Path,
    collection: str,
    names: Sequence[str],
    on_wait: Callable[[], None] = lambda: None,
) -> Removed:
    """Remove documents by source; a name that ends in ``/`` stands for all below that folder.

    They leave the live snapshot of every embedder that has one.

    Raises:
        InvalidRequest, NotFound: there is no such collection, or no document of a name; then
            nothing is removed.
        SetupError: a live snapshot is damaged, or the index cannot be written.
    """
    layout.known_collection(index_dir, collection)
    with store.writing(index_dir, collection, on_wait) as folder:
        live = _live_snapshots(folder)
        gone = {source for snapshot in live for source in _sources(snapshot)}
        gone = {source for source in gone if any(_named(source, name) for name in names)}
        for name in names:
            if not any(_named(source, name) for source in gone):
                raise NotFound(f"collection {collection} has no document {name!r}; a folder's "
                               "name ends in `/`")  # fmt: skip
        forget(folder, gone)
        for snapshot in live:
            if gone.intersection(_sources(snapshot)):
                current = snapshot.name == layout.current(folder)
                store.publish(folder, _without(snapshot, gone), current=current)
        return Removed(collection, sorted(gone), str(layout.current(folder)))


def remove_collection(
    index_dir: Path, collection: str, on_wait: Callable[[], None] = lambda: None
) -> None:
    """Delete a collection with all its snapshots; readers see all of it or nothing.

    Raises:
        InvalidRequest, NotFound: there is no such collection.
        SetupError: the index cannot be written.
        Unavailable: Milvus, where it is used, does not answer; then the collection stays.
    """
    layout.known_collection(index_dir, collection)
    going = index_dir / f"{REMOVED}{collection}-{secrets.token_hex(4)}"
    try:
        with store.writing(index_dir, collection, on_wait) as folder:
            for left in index_dir.glob(f"{REMOVED}{collection}-{'?' * 8}"):
                shutil.rmtree(left)  # of a removal that was interrupted
            folder.rename(going)
            layout.sync_folder(index_dir)
    except ServiceError:
        if going.is_dir():  # It is still in Milvus: the next attempt must find it here too.
            going.rename(index_dir / collection)
        raise
    shutil.rmtree(going)


def _live_snapshots(folder: Path) -> list[Snapshot]:
    """Return the live snapshots, each for an embedder of its own."""
    embedders = {
        SnapshotManifest.load(folder / name).embedder.sha256 for name in layout.pointed(folder)
    }
    names = {str(layout.current(folder, sha256)) for sha256 in embedders}
    return [Snapshot.open(folder / name) for name in sorted(names)]


def _sources(snapshot: Snapshot) -> list[str]:
    return [document.source for document in snapshot.documents]


def _named(source: str, name: str) -> bool:
    return source.startswith(name) if name.endswith("/") else source == name


def _without(snapshot: Snapshot, gone: set[str]) -> store.Contents:
    manifest = snapshot.manifest
    kept = [n for n, document in enumerate(snapshot.documents) if document.source not in gone]
    return store.Contents(
        embedder=manifest.embedder,
        dimension=manifest.dimension,
        recipe=manifest.recipe,
        documents=[snapshot.documents[number] for number in kept],
        passages=_passages(snapshot, kept),
        vectors=(snapshot.vectors(snapshot.passages_of(number)) for number in kept),
        mode=manifest.mode,
    )


def _passages(snapshot: Snapshot, documents: list[int]) -> Iterator[bytes]:
    for document in documents:
        for number in snapshot.passages_of(document):
            yield snapshot.passage(number)
