"""Files into a collection: what has not changed keeps its vectors, the rest is cut and embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tritonrag.artifacts import EmbedderManifest
from tritonrag.chunking import Chunker, Passage
from tritonrag.contract import DEFAULT_MODE
from tritonrag.documents import (
    Failure,
    SourceFile,
    content_hash,
    parse_document,
    read_file,
)
from tritonrag.errors import InvalidRequest
from tritonrag.index import layout, store
from tritonrag.index.embedding import Embedder, embed_all
from tritonrag.index.manifest import DocumentRecord, EmbedderId
from tritonrag.index.snapshot import Floats, Snapshot


@dataclass
class Added:
    """What a run did; ``snapshot`` is the live one after it, None if there is none.

    ``embedded`` counts passages; ``embedder_changed`` tells that all had to be embedded again,
    ``published`` that the run wrote the snapshot.
    """

    collection: str
    snapshot: str | None = None
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    passages: int = 0
    embedded: int = 0
    embedder_changed: bool = False
    published: bool = False
    failures: list[Failure] = field(default_factory=list)


class Listener:
    """Is told how a run goes; says nothing itself."""

    def waiting(self) -> None:
        """Another writer is at work on the collection, and this one waits for it."""

    def parsing(self, files: int) -> None:
        """The files are being read."""

    def parsed(self) -> None:
        """One more file has been read."""

    def embedding(self, passages: int) -> None:
        """The passages are being embedded."""

    def embedded(self, passages: int) -> None:
        """So many more passages have been embedded."""


@dataclass(frozen=True)
class _Part:
    """One document of the next snapshot: ``kept`` passages of an earlier ``source``, or new."""

    record: DocumentRecord
    source: Snapshot | None = None
    kept: range = range(0)
    passages: Sequence[Passage] = ()

    def lines(self) -> Iterable[bytes]:
        """Return the passages as they are stored."""
        if self.source is None:
            return (passage.to_json() for passage in self.passages)
        return map(self.source.passage, self.kept)

    def parsed(self) -> Iterable[Passage]:
        """Return the passages."""
        return self.passages if self.source is None else map(Passage.from_json, self.lines())


class Adder:
    """Adds files to the collections of one index with one embedder."""

    def __init__(
        self,
        index_dir: Path,
        manifest: EmbedderManifest,
        embedder: Embedder,
        chunker: Chunker,
        listener: Listener | None = None,
        live: EmbedderManifest | None = None,
        mode: str | None = None,
    ) -> None:
        """``embedder`` must be the one that ``manifest`` describes.

        ``mode`` is how the collection is searched unless a caller says; None leaves it as it is.
        ``live`` is another embedder, the one that the graph uses: a collection's documents are then
        those of its snapshot, which stays the collection's current one.
        """
        self._index_dir = index_dir
        self._manifest = manifest
        self._embedder = embedder
        self._chunker = chunker
        self._listener = listener or Listener()
        self._live = live
        self._mode = mode

    def add(self, collection: str, files: list[SourceFile]) -> Added:
        """Bring ``files`` into a collection; documents that it has besides them stay.

        A file that fails is named in the report, and an earlier version of it stays. If nothing
        changes, no snapshot is written. If the embedder has changed, every passage of the
        collection is embedded again.

        Raises:
            InvalidRequest: a collection may not be called so.
            SetupError: the live snapshot is damaged, or the index cannot be written.
            TritonragError: what the embedder raises.
        """
        with store.writing(self._index_dir, collection, self._listener.waiting) as folder:
            base, own = self._opened(folder)
            report = Added(collection, own.name if own else None)
            report.embedder_changed = self._live is None and base is not own
            parts = self._parts(base, own, files, report)
            report.passages = len(own) if own else 0
            mode = self._mode or _mode(own or base)
            new = [part.record for part in parts] != (own.documents if own else [])
            if new or (own is not None and (own.outdated or own.manifest.mode != mode)):
                self._publish(folder, own, parts, report, mode)
            return report

    def _opened(self, folder: Path) -> tuple[Snapshot | None, Snapshot | None]:
        """Return the snapshot whose documents stay, and that whose vectors do: of this embedder."""
        base = own = _open(folder, self._live or self._manifest)
        if self._live is not None:
            own = _open(folder, self._manifest)
        same = own is not None and own.manifest.embedder == EmbedderId.of(self._manifest)
        return base, own if same else None

    def _parts(
        self, base: Snapshot | None, own: Snapshot | None, files: list[SourceFile], report: Added
    ) -> list[_Part]:
        parts = {part.record.source: part for part in _kept_parts(base)}
        for part in _kept_parts(own):
            source = part.record.source
            if source in parts and parts[source].record == part.record:
                parts[source] = part
        self._listener.parsing(len(files))
        for file in files:
            try:
                parts[file.source] = self._part(file, parts.get(file.source), report)
            except InvalidRequest as error:
                report.failures.append(Failure(str(file.path), str(error)))
            self._listener.parsed()
        return [parts[source] for source in sorted(parts)]

    def _part(self, file: SourceFile, old: _Part | None, report: Added) -> _Part:
        content = read_file(file)
        digest, recipe = content_hash(content), self._chunker.settings.recipe
        if old and (old.record.sha256, old.record.recipe) == (digest, recipe):
            report.unchanged += 1
            return old
        document = parse_document(file, content)
        passages = list(self._chunker.passages(document))
        report.changed += old is not None
        report.added += old is None
        record = DocumentRecord(
            file.source,
            document.title,
            digest,
            recipe,
            len(passages),
            document.metadata,
            file.stamp,
        )
        return _Part(record, passages=passages)

    def _publish(
        self, folder: Path, own: Snapshot | None, parts: list[_Part], report: Added, mode: str
    ) -> None:
        texts = [
            self._chunker.embedded_text(passage)
            for part in parts
            if own is None or part.source is not own
            for passage in part.parsed()
        ]
        self._listener.embedding(len(texts))
        new = embed_all(self._embedder, texts, self._manifest.dimension, self._listener.embedded)
        contents = store.Contents(
            embedder=EmbedderId.of(self._manifest),
            dimension=self._manifest.dimension,
            recipe=self._chunker.settings.recipe,
            documents=[part.record for part in parts],
            passages=(line for part in parts for line in part.lines()),
            vectors=_vectors(own, parts, new),
            mode=mode,
        )
        manifest = store.publish(folder, contents, current=self._live is None)
        report.snapshot = manifest.snapshot
        report.published = True
        report.passages = manifest.passages
        report.embedded = len(texts)


def _open(folder: Path, embedder: EmbedderManifest) -> Snapshot | None:
    name = layout.current(folder, embedder.sha256)
    return Snapshot.open(folder / name) if name else None


def _mode(snapshot: Snapshot | None) -> str:
    return snapshot.manifest.mode if snapshot else DEFAULT_MODE


def _kept_parts(snapshot: Snapshot | None) -> Iterator[_Part]:
    if snapshot:
        for number, record in enumerate(snapshot.documents):
            yield _Part(record, snapshot, snapshot.passages_of(number))


def _vectors(own: Snapshot | None, parts: list[_Part], new: Floats) -> Iterator[Floats]:
    at = 0
    for part in parts:
        if own is not None and part.source is own:
            yield own.vectors(part.kept)
        else:
            yield new[at : at + part.record.passages]
            at += part.record.passages
