"""Files into a collection: what has not changed keeps its vectors, the rest is cut and embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
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
    """One document of the next snapshot: taken over from the live one, or new."""

    record: DocumentRecord
    kept: range | None
    passages: list[Passage]


class Adder:
    """Adds files to the collections of one index with one embedder."""

    def __init__(
        self,
        index_dir: Path,
        manifest: EmbedderManifest,
        embedder: Embedder,
        chunker: Chunker,
        listener: Listener | None = None,
    ) -> None:
        """``embedder`` must be the one that ``manifest`` describes."""
        self._index_dir = index_dir
        self._manifest = manifest
        self._embedder = embedder
        self._chunker = chunker
        self._listener = listener or Listener()

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
            live = _live(folder)
            report = Added(collection, live.name if live else None)
            report.embedder_changed = live is not None and not self._same_space(live)
            parts = self._parts(live, files, report)
            report.passages = len(live) if live else 0
            if report.added or report.changed or report.embedder_changed:
                self._publish(folder, live, parts, report)
            return report

    def _same_space(self, live: Snapshot) -> bool:
        return live.manifest.embedder == EmbedderId.of(self._manifest)

    def _parts(self, live: Snapshot | None, files: list[SourceFile], report: Added) -> list[_Part]:
        parts = {part.record.source: part for part in _kept_parts(live)}
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
        record = DocumentRecord(file.source, document.title, digest, recipe, len(passages))
        return _Part(record, None, passages)

    def _publish(
        self, folder: Path, live: Snapshot | None, parts: list[_Part], report: Added
    ) -> None:
        reused = live if live and not report.embedder_changed else None
        texts = [
            self._chunker.embedded_text(passage)
            for part in parts
            if part.kept is None or reused is None
            for passage in _passages(live, part)
        ]
        self._listener.embedding(len(texts))
        new = embed_all(self._embedder, texts, self._manifest.dimension, self._listener.embedded)
        contents = store.Contents(
            embedder=EmbedderId.of(self._manifest),
            dimension=self._manifest.dimension,
            recipe=self._chunker.settings.recipe,
            documents=[part.record for part in parts],
            passages=(line for part in parts for line in _lines(live, part)),
            vectors=_vectors(reused, parts, new),
        )
        manifest = store.publish(folder, contents)
        report.snapshot = manifest.snapshot
        report.passages = manifest.passages
        report.embedded = len(texts)


def _live(folder: Path) -> Snapshot | None:
    name = layout.current(folder)
    return Snapshot.open(folder / name) if name else None


def _kept_parts(live: Snapshot | None) -> Iterator[_Part]:
    if live:
        for number, record in enumerate(live.documents):
            yield _Part(record, live.passages_of(number), [])


def _passages(live: Snapshot | None, part: _Part) -> Iterable[Passage]:
    if live is None or part.kept is None:
        return part.passages
    return (Passage.from_json(live.passage(number)) for number in part.kept)


def _lines(live: Snapshot | None, part: _Part) -> Iterable[bytes]:
    if live is None or part.kept is None:
        return (passage.to_json() for passage in part.passages)
    return (live.passage(number) for number in part.kept)


def _vectors(reused: Snapshot | None, parts: list[_Part], new: Floats) -> Iterator[Floats]:
    at = 0
    for part in parts:
        if reused is not None and part.kept is not None:
            yield reused.vectors(part.kept)
        else:
            yield new[at : at + part.record.passages]
            at += part.record.passages
