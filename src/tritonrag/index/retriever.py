"""The serving side: live snapshots of every collection, swapped while searches go on.

Knows neither Triton nor the tokenizer: embeddings come in, passages as JSON go out.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import faiss
import numpy as np

from tritonrag.artifacts import EmbedderManifest
from tritonrag.confinement import allow_open_files
from tritonrag.contract import DEFAULT_COLLECTION
from tritonrag.errors import NotFound, SetupError, TritonragError, Unavailable
from tritonrag.index import layout, searching
from tritonrag.index.columns import Groups
from tritonrag.index.filters import Filter
from tritonrag.index.manifest import EmbedderId
from tritonrag.index.memory import return_large_blocks
from tritonrag.index.query import Query, Result, check_query
from tritonrag.index.searchable import Searchable, SnapshotSource
from tritonrag.index.snapshot import Snapshot

POLL_SECONDS = 0.5
RETRY_SECONDS = 30.0


class CollectionRefused(Unavailable):
    """One collection cannot be searched; the others go on."""


_NOTHING = Result([], np.empty(0, np.float32))


@dataclass(frozen=True)
class _Live:
    """What is known of one collection: its snapshot, if one could be loaded, and what was seen."""

    seen: object
    snapshot: Searchable | None
    refusal: str = ""
    again: float = math.inf
    """When to look again although nothing has been seen to change: a fault may pass."""


@dataclass
class _Group:
    """Queries that one dense search answers."""

    snapshot: Searchable
    where: Filter | None
    groups: Groups
    members: list[int] = field(default_factory=list)


class Retriever:
    """Searches the live snapshot of each collection and follows its pointer as it moves.

    The pointer is the embedder's own, else ``CURRENT``.

    A snapshot that is damaged, of another embedder or of a newer format is refused with one log
    line, and the one before stays live. Where the files of the live one are changed in place, its
    collection is refused and the others go on. Searches may run in any number of threads.
    """

    def __init__(
        self,
        index: Path | SnapshotSource,
        embedder: EmbedderManifest,
        log: Callable[[str], None] = lambda message: None,
        *,
        faiss_threads: int = 1,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Load every collection of ``index`` and start to watch them.

        Args:
            index: a folder, which may be missing or empty, or another source; collections are
                noticed when they appear.
            embedder: the embedder being served.
            log: called with one line for each snapshot that goes live or is refused.
            faiss_threads: OpenMP threads of one FAISS call.
            poll_seconds: how often the live snapshots' names are looked at.
        """
        return_large_blocks()
        allow_open_files()  # a large collection keeps four open
        self._embedder = EmbedderId.of(embedder)
        self._source = FolderSource(index, embedder.sha256) if isinstance(index, Path) else index
        self._fault = ""
        self._dimension = embedder.dimension
        self._log = log
        self._faiss_threads = faiss_threads
        self._live: Mapping[str, _Live] = {}
        self._refresh_lock = threading.Lock()
        self._closed = threading.Event()
        self.refresh()
        self._watcher = threading.Thread(
            target=self._watch, args=(poll_seconds,), name="index-watcher", daemon=True
        )
        self._watcher.start()

    def __enter__(self) -> Retriever:
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
        """Stop watching; searches still work on the snapshots loaded last."""
        self._closed.set()
        self._watcher.join()
        self._source.close()

    @property
    def collections(self) -> dict[str, Searchable]:
        """The collections that can be searched now, and their live snapshots."""
        return {name: live.snapshot for name, live in self._live.items() if live.snapshot}

    @property
    def refusals(self) -> dict[str, str]:
        """The collections whose newest snapshot was refused, and why."""
        return {name: live.refusal for name, live in self._live.items() if live.refusal}

    def check(self, query: Query) -> None:
        """Raise what :meth:`search` would raise for this query, so that it can fail alone.

        Raises:
            InvalidRequest: a field is out of its range, the collection's name is wrong, the
                filter names a field that it has not, or its snapshot cannot be searched in the
                query's mode.
            NotFound: there is no such collection, and the message lists those in which the caller
                may read something; or its live snapshot is not the query's.
            CollectionRefused: the collection's only snapshot was refused.
            Unavailable: what there is cannot be known now.
        """
        snapshot = self._checked(query, self._live)
        if snapshot is not None:
            snapshot.check(query.filter, query.groups)

    def search(self, queries: Sequence[Query]) -> list[Result]:
        """Return the passages of each query, in the order of ``queries``.

        One dense search answers all queries of one collection, filter and audience. The results of
        one query come from one snapshot. While nothing at all is indexed, the default collection is
        empty; a filter on a field that there is not matches nothing.

        Raises:
            TritonragError: as :meth:`check`, for the first query at fault.
        """
        live = self._live
        results = [_NOTHING] * len(queries)
        groups: dict[object, _Group] = {}
        for number, query in enumerate(queries):
            snapshot = self._checked(query, live)
            if snapshot is not None:
                audience = snapshot.audience(query.groups)
                key = (query.collection, query.filter, audience)
                group = groups.setdefault(key, _Group(snapshot, query.filter, audience))
                group.members.append(number)
        # OpenMP keeps this setting per calling thread, so that the constructor cannot make it.
        faiss.omp_set_num_threads(self._faiss_threads)
        for group in groups.values():
            members = [queries[number] for number in group.members]
            found = self._found(group, members)
            for number, result in zip(group.members, found, strict=True):
                results[number] = result
        return results

    def _found(self, group: _Group, queries: list[Query]) -> list[Result]:
        allowed = group.snapshot.allowed(group.where, group.groups)
        try:
            return searching.search(group.snapshot, queries, allowed)
        except SetupError as error:
            collection = queries[0].collection
            self._withdraw(collection, group.snapshot, str(error))
            raise _unserved(collection, str(error)) from error

    def _withdraw(self, collection: str, snapshot: Searchable, cause: str) -> None:
        """Search no longer in a snapshot whose files turned out to be damaged."""
        if not self._refresh_lock.acquire(blocking=False):
            return  # The watcher may be loading for long. The next search comes here again.
        try:
            known = self._live.get(collection)
            if known is not None and known.snapshot is snapshot:
                refused = self._refused(collection, known.seen, None, cause)
                self._live = {**self._live, collection: refused}
        finally:
            self._refresh_lock.release()

    def refresh(self) -> None:
        """Look at every collection now, and load what has changed.

        Where the source is unavailable, all stays as it was, and one log line says so.
        """
        with self._refresh_lock:
            try:
                names = self._source.collections()
                self._live = {name: self._looked_at(name) for name in names}
            except (Unavailable, NotFound) as error:  # or gone since it was listed
                self._set_fault(str(error))
            else:
                self._set_fault("")

    def _set_fault(self, fault: str) -> None:
        if fault != self._fault:
            self._log(f"index: {fault}" if fault else "index: available again")
        self._fault = fault

    def _watch(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                self.refresh()
            except Exception as error:  # The watcher must outlive whatever the store does.
                self._log(f"index: cannot look at the collections: {error}")

    def _looked_at(self, collection: str) -> _Live:
        known = self._live.get(collection)
        seen = self._source.seen(collection)
        old = known.snapshot if known else None
        intact = old is None or old.intact
        if known is not None and intact and known.seen == seen and time.monotonic() < known.again:
            return known
        old = old if intact else None
        try:
            snapshot = self._source.load(collection, old)
            check_embedder(snapshot.name, snapshot.manifest.embedder, self._embedder)
        except Unavailable:
            raise
        except Exception as error:  # Of this collection alone.
            return self._refused(collection, seen, old, _cause(error))
        if snapshot is not old:
            self._log(f"collection {collection}: snapshot {snapshot.name} is live, "
                      f"{len(snapshot)} passages")  # fmt: skip
        return _Live(seen, snapshot)

    def _refused(self, collection: str, seen: object, old: Searchable | None, cause: str) -> _Live:
        still = f"snapshot {old.name} stays live" if old else "nothing can be searched in it"
        known = self._live.get(collection)
        if known is None or known.refusal != cause:
            self._log(f"collection {collection}: refused: {cause}; {still}")
        return _Live(seen, old, cause, time.monotonic() + RETRY_SECONDS)

    def _checked(self, query: Query, live: Mapping[str, _Live]) -> Searchable | None:
        """Return the snapshot that a query searches; None where nothing at all is indexed."""
        check_query(query, self._dimension)
        snapshot = self._snapshot(query.collection, query.groups, live)
        if query.snapshot and (snapshot is None or snapshot.name != query.snapshot):
            raise NotFound(
                f"snapshot: {query.snapshot[:80]!r} is not live here in collection "
                f"{query.collection}"
            )
        if snapshot is not None:
            searching.check(query, snapshot)
        return snapshot

    def _snapshot(
        self, collection: str, groups: Groups, live: Mapping[str, _Live]
    ) -> Searchable | None:
        found = live.get(layout.check_collection(collection))
        if found is None:
            if self._fault:
                raise Unavailable(self._fault)
            if not live and collection == DEFAULT_COLLECTION:
                return None
            raise layout.unknown_collection(
                collection, _readable(live, groups), "there is none that this caller may read"
            )
        if found.snapshot is None:
            raise _unserved(collection, found.refusal)
        return found.snapshot


def _readable(live: Mapping[str, _Live], groups: Groups) -> list[str]:
    """Return the collections in which a caller may read something."""
    return sorted(
        name for name, each in live.items() if each.snapshot and each.snapshot.readable(groups)
    )


def _unserved(collection: str, cause: str) -> CollectionRefused:
    return CollectionRefused(f"collection {collection}: its index cannot be served: {cause}")


def _cause(error: Exception) -> str:
    """Return why a snapshot was refused, without a path: callers are told."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    return str(error) if isinstance(error, TritonragError) else type(error).__name__


class FolderSource:
    """The live snapshots in an index directory of one embedder: its own, else ``CURRENT``'s."""

    def __init__(self, index_dir: Path, sha256: str) -> None:
        """Look for them in ``index_dir``; ``sha256`` is the embedder's."""
        self._index_dir = index_dir
        self._sha256 = sha256

    def collections(self) -> list[str]:
        """Return the collections that have a live snapshot, sorted."""
        try:
            return layout.collections(self._index_dir)
        except OSError as error:
            raise Unavailable(f"the index cannot be listed: {error.strerror}") from error

    def seen(self, collection: str) -> object:
        """Return what changes when the pointer is replaced."""
        folder = self._index_dir / collection
        own = layout.pointer(folder, self._sha256)
        return _signature(own) or _signature(layout.pointer(folder))

    def load(self, collection: str, old: Searchable | None) -> Searchable:
        """Return the live snapshot: ``old`` where it still is the one."""
        folder = self._index_dir / collection
        name = layout.current(folder, self._sha256)
        if name is None:
            raise SetupError(f"{layout.CURRENT} is gone")
        if old is not None and old.name == name:
            return old
        return Snapshot.open(folder / name, verify=None)

    def close(self) -> None:
        """Do nothing: what is open goes with the snapshots."""


def check_embedder(snapshot: str, built: EmbedderId, served: EmbedderId) -> None:
    """Check that a snapshot belongs to the embedder being served.

    Raises:
        SetupError: it was built by another one; the message names both.
    """
    if built != served:
        raise SetupError(
            f"snapshot {snapshot} was built with the embedder {built}, but {served} is installed; "
            "index the documents again with `tritonrag index add` (with --embedder-version N for a "
            "version that is not live), install the other embedder, or go back with "
            "`tritonrag index rollback`"
        )


def _signature(path: Path) -> object:
    """Return what changes when a pointer is replaced, from one ``stat``; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
