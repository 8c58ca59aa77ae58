"""Files into a collection: what has not changed keeps its vectors, the rest is cut and embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tritonrag.artifacts import EmbedderManifest
from tritonrag.chunking import Chunker, Passage
from tritonrag.documents import (
    Failure,
    SourceFile,
    content_hash,
    parse_document,
    read_file,
)
from tritonrag.errors import InvalidRequest
from tritonrag.index import layout, store
from tritonrag.index.comparing import check_same_file, given_hash, stamp_unchanged
from tritonrag.index.embedding import Embedder, embed_all
from tritonrag.index.manifest import DocumentRecord, EmbedderId
from tritonrag.index.snapshot import Floats, Snapshot


@dataclass
class Added:
    """What a run did; ``snapshot`` is the live one after it, None if there is none.

    ``embedded`` counts passages; ``embedder_changed`` tells that all had to be embedded again.
    """

    collection: str
    snapshot: str | None = None
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    embedded: int = 0
    embedder_changed: bool = False
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
    ) -> None:
        """``embedder`` must be the one that ``manifest`` describes.

        ``live`` is another embedder, the one that the graph uses: a collection's documents are then
        those of its snapshot, which stays the collection's current one.
        """
        self._index_dir = index_dir
        self._manifest = manifest
        self._embedder = embedder
        self._chunker = chunker
        self._listener = listener or Listener()
        self._live = live

    def add(
        self, collection: str, files: list[SourceFile], *, complete_under: str | None = None
    ) -> Added:
        """Bring ``files`` into a collection; documents that it has besides them stay.

        With ``complete_under`` they are all that there should be under names that begin so, and
        other documents there are removed. Without it, a file does not take the name of a document
        that came from another file which is still there.

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
            parts = self._parts(base, own, files, report, complete_under)
            report.passages = len(own) if own else 0
            if [part.record for part in parts] != (own.documents if own else []):
                self._publish(folder, own, parts, report)
            return report

    def _opened(self, folder: Path) -> tuple[Snapshot | None, Snapshot | None]:
        """Return the snapshot whose documents stay, and that whose vectors do: of this embedder."""
        base = own = _open(folder, self._live or self._manifest)
        if self._live is not None:
            own = _open(folder, self._manifest)
        same = own is not None and own.manifest.embedder == EmbedderId.of(self._manifest)
        return base, own if same else None

    def _parts(
        self,
        base: Snapshot | None,
        own: Snapshot | None,
        files: list[SourceFile],
        report: Added,
        complete_under: str | None,
    ) -> list[_Part]:
        parts = {part.record.source: part for part in _kept_parts(base)}
        for part in _kept_parts(own):
            source = part.record.source
            if source in parts and parts[source].record == part.record:
                parts[source] = part
        if complete_under is not None:
            report.removed = _remove_others(parts, files, complete_under)
        self._listener.parsing(len(files))
        for file in files:
            try:
                if complete_under is None and file.source in parts:
                    check_same_file(file, parts[file.source].record)
                parts[file.source] = self._part(file, parts.get(file.source), report)
            except InvalidRequest as error:
                report.failures.append(Failure(file.shown, str(error)))
            self._listener.parsed()
        return [parts[source] for source in sorted(parts)]

    def _part(self, file: SourceFile, old: _Part | None, report: Added) -> _Part:
        recipe, given = self._chunker.settings.recipe, given_hash(file)
        if old and stamp_unchanged(file, old.record, recipe):
            return self._unchanged(old, file, report)
        content = read_file(file)
        digest = content_hash(content)
        same = old is not None and (old.record.sha256, old.record.recipe) == (digest, recipe)
        if old and same and old.record.given == given:
            return self._unchanged(old, file, report)
        document = parse_document(file, content)
        report.changed += old is not None
        report.added += old is None
        record = DocumentRecord(
            file.source,
            document.title,
            digest,
            recipe,
            0,
            document.metadata,
            file.stamp,
            file.place,
            given,
        )
        if old and same and old.record.title == document.title:
            return replace(old, record=replace(record, passages=old.record.passages))
        passages = list(self._chunker.passages(document))
        return _Part(replace(record, passages=len(passages)), passages=passages)

    def _unchanged(self, old: _Part, file: SourceFile, report: Added) -> _Part:
        report.unchanged += 1
        return replace(old, record=replace(old.record, stamp=file.stamp, path=file.place))

    def _publish(
        self, folder: Path, own: Snapshot | None, parts: list[_Part], report: Added
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
        )
        manifest = store.publish(folder, contents, current=self._live is None)
        report.snapshot = manifest.snapshot
        report.passages = manifest.passages
        report.embedded = len(texts)


def _open(folder: Path, embedder: EmbedderManifest) -> Snapshot | None:
    name = layout.current(folder, embedder.sha256)
    return Snapshot.open(folder / name) if name else None


def _remove_others(parts: dict[str, _Part], files: list[SourceFile], prefix: str) -> int:
    named = {file.source for file in files}
    others = [name for name in parts if name.startswith(prefix) and name not in named]
    for name in others:
        del parts[name]
    return len(others)


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
