"""Files into a collection: what has not changed keeps its vectors, the rest is cut and embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from tritonrag.artifacts import EmbedderManifest
from tritonrag.contract import DEFAULT_MODE
from tritonrag.documents import SourceFile
from tritonrag.index import layout, store
from tritonrag.index.changes import Changes, Document
from tritonrag.index.embedding import Embedder, EmbedGroups, embed_groups
from tritonrag.index.ledger import Ledger
from tritonrag.index.manifest import EmbedderId
from tritonrag.index.parts import Part
from tritonrag.index.reports import Added, Listener
from tritonrag.index.snapshot import Floats, Snapshot
from tritonrag.parsing import Parsers

__all__ = ["Added", "Adder", "Listener"]

GROUP_PASSAGES = 512
"""Whole documents with so many passages, or a few more, are embedded and staged together: as much
work as the kill of a process costs, and enough to find passages of like length in."""


class Adder:
    """Adds files to the collections of one index with one embedder."""

    def __init__(
        self,
        index_dir: Path,
        manifest: EmbedderManifest,
        embedder: Embedder,
        parsers: Parsers,
        listener: Listener | None = None,
        live: EmbedderManifest | None = None,
        mode: str | None = None,
        embed_groups: EmbedGroups = embed_groups,
    ) -> None:
        """``embedder`` must be the one that ``manifest`` describes; ``embed_groups`` asks it.

        ``mode`` is how the collection is searched unless a caller says; None leaves it as it is.
        ``live`` is another embedder, the one that the graph uses: a collection's documents are then
        those of its snapshot, which stays the collection's current one.
        """
        self._index_dir = index_dir
        self._manifest = manifest
        self._embedder = embedder
        self._parsers = parsers
        self._listener = listener or Listener()
        self._live = live
        self._mode = mode
        self._embed_groups = embed_groups

    def add(
        self,
        collection: str,
        files: list[SourceFile],
        *,
        complete_under: str | None = None,
        retry_failed: bool = False,
        allow_opening: bool = False,
        wait: bool = True,
    ) -> Added:
        """Bring ``files`` into a collection; documents that it has besides them stay.

        Without ``complete_under``, a file does not take the name of a document that came from
        another file which is still there. A file that fails is named in the report, and an earlier
        version of it stays; it is not tried again as it is. If nothing changes, no snapshot is
        written. If the embedder has changed, every passage of the collection is embedded again. An
        interrupted run loses little: the next one takes over what it has embedded.

        Args:
            collection: its name.
            files: the files, sorted by source.
            complete_under: ``files`` are all there are with sources that begin so; other such
                documents are removed. "" is all of the collection, None removes nothing.
            retry_failed: try files again that failed and have not changed.
            allow_opening: open documents that were closed and of which nothing says so any more;
                otherwise they fail.
            wait: for another writer of the collection.

        Raises:
            InvalidRequest: a collection may not be called so.
            Unavailable: another writer is at work, and this one is not to wait.
            SetupError: the live snapshot is damaged, or the index cannot be written.
            TritonragError: what the embedder raises.
        """
        with (
            store.writing(self._index_dir, collection, self._listener.waiting, wait=wait) as folder,
            Ledger.open(folder, self._manifest.sha256, self._manifest.dimension) as ledger,
        ):
            base, own = self._opened(folder)
            report = Added(collection, own.name if own else None)
            report.embedder_changed = self._live is None and base is not own
            report.passages = len(own) if own else 0
            changes = Changes(base, own, ledger, self._parsers, report, self._listener)
            changes.remove_absent(files, complete_under)
            documents = changes.documents(
                files, retry_failed=retry_failed, allow_opening=allow_opening
            )
            self._embed(documents, changes, ledger)
            parts = changes.parts()
            mode = self._mode or _mode(base)
            new = [part.record for part in parts] != (own.documents if own else [])
            if new or (own is not None and (own.outdated or own.manifest.mode != mode)):
                self._publish(folder, parts, report, mode)
                ledger.unstage()
            return report

    def _opened(self, folder: Path) -> tuple[Snapshot | None, Snapshot | None]:
        """Return the snapshot whose documents stay, and that whose vectors do: of this embedder."""
        base = own = _open(folder, self._live or self._manifest)
        if self._live is not None:
            own = _open(folder, self._manifest)
        same = own is not None and own.manifest.embedder == EmbedderId.of(self._manifest)
        return base, own if same else None

    def _embed(self, documents: Iterable[Document], changes: Changes, ledger: Ledger) -> None:
        waiting: dict[str, Floats] = {}

        def embedded(texts: Sequence[str], vectors: Floats) -> None:
            waiting.update(zip(texts, vectors, strict=True))
            self._listener.embedded(len(texts))

        groups = (
            (group, [text for document in group for text in document.unknown])
            for group in _grouped(documents)
        )
        made = self._embed_groups(self._embedder, groups, self._manifest.dimension, embedded)
        try:
            with closing(made):
                for group, vectors in made:
                    changes.stage(group, vectors)
                    for text in {text for document in group for text in document.unknown}:
                        waiting.pop(text, None)
                    self._listener.finished(len(group))
        except BaseException:  # Ctrl-C above all, and a server that has gone away
            ledger.keep(dict(waiting))  # batches under way may still add to it
            raise

    def _publish(self, folder: Path, parts: list[Part], report: Added, mode: str) -> None:
        contents = store.Contents(
            embedder=EmbedderId.of(self._manifest),
            dimension=self._manifest.dimension,
            recipe=self._parsers.chunker.settings.recipe,
            documents=[part.record for part in parts],
            passages=(line for part in parts for line in part.lines()),
            vectors=(part.vectors() for part in parts),
            mode=mode,
        )
        manifest = store.publish(folder, contents, current=self._live is None)
        report.snapshot = manifest.snapshot
        report.published = True
        report.passages = manifest.passages


def _open(folder: Path, embedder: EmbedderManifest) -> Snapshot | None:
    name = layout.current(folder, embedder.sha256)
    return Snapshot.open(folder / name) if name else None


def _mode(snapshot: Snapshot | None) -> str:
    return snapshot.manifest.mode if snapshot else DEFAULT_MODE


def _grouped(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    for document in documents:
        group.append(document)
        if sum(len(each.lines) for each in group) >= GROUP_PASSAGES:
            yield group
            group = []
    if group:
        yield group
