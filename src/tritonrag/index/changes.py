"""Which documents of the next snapshot are as they were, and which have to be embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tritonrag.chunking import Passage
from tritonrag.documents import Failure, SourceFile, content_hash, read_file
from tritonrag.errors import InvalidRequest
from tritonrag.index.comparing import check_same_file, given_hash
from tritonrag.index.ledger import Failed, Ledger
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.parts import Kept, Part, Staged, kept_parts
from tritonrag.index.reports import Added, Listener
from tritonrag.index.snapshot import Floats, Snapshot
from tritonrag.index.widening import Opening, opens
from tritonrag.parsing import Cut, Job, Parsers


@dataclass(frozen=True)
class Document:
    """A document to embed: its passages as stored, and as embedded; ``known`` are old vectors."""

    record: DocumentRecord
    lines: list[bytes]
    texts: list[str]
    known: Mapping[str, Floats]

    @property
    def unknown(self) -> list[str]:
        """The texts to embed, in their order."""
        return [text for text in self.texts if text not in self.known]

    def vectors(self, new: Iterator[Floats], dimension: int) -> Floats:
        """Return those of all texts, ``[passages, dimension]``; ``new`` are of the unknown ones."""
        rows = [self.known[text] if text in self.known else next(new) for text in self.texts]
        return np.stack(rows) if rows else np.empty((0, dimension), np.float32)


class Changes:
    """The documents of the next snapshot, while one run finds out what they are.

    ``base`` is the snapshot whose documents stay, ``own`` the one of this run's embedder, whose
    vectors do.
    """

    def __init__(
        self,
        base: Snapshot | None,
        own: Snapshot | None,
        ledger: Ledger,
        parsers: Parsers,
        report: Added,
        listener: Listener,
    ) -> None:
        """Begin with the documents of ``base``; ``report`` is filled in on the way."""
        self._own = kept_parts(own)
        self._parts: dict[str, Part] = {**kept_parts(base)}
        self._open_in_base: dict[str, Part] = {}
        for source, part in self._own.items():
            if source in self._parts:
                self._take_both(self._parts[source], part)
        self._closed = _closed([*self._own.values(), *self._parts.values()])
        self._spare: dict[str, Part] = {
            source: part for source, part in self._own.items() if source not in self._parts
        }
        self._own_snapshot = own
        self._ledger = ledger
        self._staged = ledger.staged()
        self._failed = ledger.failed()
        self._kept = ledger.kept()
        self._parsers = parsers
        self._recipe = parsers.chunker.settings.recipe
        self._report = report
        self._listener = listener
        self._whole = self._allow_opening = False
        self._gone: frozenset[str] = frozenset()

    def remove_absent(self, files: list[SourceFile], under: str | None) -> None:
        """Remove the documents that are not among ``files``, where these are all there are."""
        self._whole = under is not None
        if under is None:
            return
        there = {file.source for file in files}
        gone = [name for name in self._parts if name.startswith(under) and name not in there]
        for source in gone:
            self._spare[source] = self._parts.pop(source)
        self._gone = frozenset(gone)
        self._report.removed = len(gone)

    def documents(
        self, files: list[SourceFile], *, retry_failed: bool, allow_opening: bool
    ) -> Iterator[Document]:
        """Yield what has to be embedded: of new and changed files, then what only has old vectors.

        Nothing is embedded of a file that is as it was, and one that failed is not parsed again as
        it is, except to ``retry_failed``. One that was closed and says so no longer fails, except
        to ``allow_opening``.
        """
        self._allow_opening = allow_opening
        if retry_failed:
            self._failed = {}
        sources = {file.source for file in files}
        self._open_as_base(sources)
        self._listener.started(len(sources.union(filter(self._is_foreign, self._parts))))
        yield from self._of_files(files)
        yield from self._again()

    def parts(self) -> list[Part]:
        """Return the documents that there are now, by source."""
        return [self._parts[source] for source in sorted(self._parts)]

    def stage(self, documents: list[Document], vectors: Floats) -> None:
        """Take documents in whose unknown texts have been embedded, in their order."""
        new = iter(vectors)
        self._ledger.stage(
            (document.record, document.lines, document.vectors(new, vectors.shape[1]))
            for document in documents
        )
        for document in documents:
            self._parts[document.record.source] = self._waiting(document.record)
        self._report.embedded += len(vectors)

    def _take_both(self, base: Part, own: Kept) -> None:
        """Take what ``base`` and ``own`` have of a document, closed where it is in either."""
        source = own.record.source
        self._parts[source] = _of_both(base, own)
        if opens(own.record.metadata.access, base.record.metadata.access):
            self._open_in_base[source] = base

    def _open_as_base(self, named: set[str]) -> None:
        """Open what is closed here alone and no file is named of, where that is meant."""
        for source in sorted(self._open_in_base.keys() & self._parts.keys() - named):
            base, before = self._open_in_base[source], self._parts[source].record.metadata.access
            opening = Opening(source, before, base.record.metadata.access)
            if self._allow_opening:
                self._parts[source] = base
                self._report.opened.append(opening)
            else:
                said = str(opening).removeprefix(f"{source}: ")
                reason = f"{said} in the live version; it stays closed (--allow-opening opens it)"
                self._report.failures.append(Failure(source, reason))

    def _of_files(self, files: list[SourceFile]) -> Iterator[Document]:
        for job, made in self._parsers.cut_all(self._jobs(files)):
            if isinstance(made, InvalidRequest):
                self._fail(job, made)
                continue
            try:
                document = self._document(job, made)
            except InvalidRequest as error:
                self._report.failures.append(Failure(job.file.shown, str(error)))
                self._finished(job.file.source)
            else:
                yield document
        self._report.failures.sort(key=lambda failure: failure.name)

    def _jobs(self, files: list[SourceFile]) -> Iterator[Job]:
        """Yield the files to parse, each read once: what is hashed is what is parsed."""
        for file in files:
            try:
                job = self._job(file)
            except InvalidRequest as error:
                self._report.failures.append(Failure(file.shown, str(error)))
                job = None
            if job:
                yield job
            else:
                self._finished(file.source)

    def _job(self, file: SourceFile) -> Job | None:
        if not self._whole and file.source in self._parts:
            check_same_file(file, self._parts[file.source].record)
        if self._settled(file):
            return None
        try:
            content = read_file(file)
        except InvalidRequest:
            self._close(file)
            raise
        job = Job(file, content, content_hash(content))
        return None if self._settled(file, job.sha256) else job

    def _again(self) -> Iterator[Document]:
        """Yield the documents that stay, but whose vectors are of another embedder."""
        chunker = self._parsers.chunker
        for source in sorted(filter(self._is_foreign, self._parts)):
            part = self._parts[source]
            staged = self._staged.get(source)
            if staged and _alike(staged, part.record):
                self._resume(part.record)
                self._finished(source)
                continue
            lines = list(part.lines())
            texts = [chunker.embedded_text(Passage.from_json(line)) for line in lines]
            yield Document(part.record, lines, texts, self._known(source, texts))

    def _is_foreign(self, source: str) -> bool:
        part = self._parts.get(source)
        return isinstance(part, Kept) and part.snapshot is not self._own_snapshot

    def _finished(self, source: str) -> None:
        """Count a document, unless it has yet to be embedded again."""
        if not self._is_foreign(source):
            self._listener.finished(1)

    def _settled(self, file: SourceFile, sha256: str = "") -> bool:
        """Return whether a file is as it was when it was indexed, staged or failed."""
        old, staged = self._parts.get(file.source), self._staged.get(file.source)
        failed = self._failed.get(file.source)
        if old and self._same(old.record, file, sha256):
            self._parts[file.source] = replace(old, record=_stamped(old.record, file))
            self._report.unchanged += 1
        elif staged and self._same(staged, file, sha256):
            self._check_opening(file, staged.metadata.access, staged.sha256)
            self._count(old)
            self._resume(_stamped(staged, file))
        elif failed and self._same(failed, file, sha256):
            reason = f"{failed.reason}; it failed earlier and has not changed"
            self._report.failures.append(Failure(file.shown, reason))
            self._close(file)
        else:
            return False
        return True

    def _same(self, known: DocumentRecord | Failed, file: SourceFile, sha256: str) -> bool:
        """Compare by content where it is known, or else by stamp."""
        if (known.recipe, known.given) != (self._recipe, given_hash(file)):
            return False
        return known.sha256 == sha256 if sha256 else known.stamp == file.stamp != ""

    def _document(self, job: Job, made: Cut) -> Document:
        source = job.file.source
        record = DocumentRecord(
            source,
            made.title,
            job.sha256,
            self._recipe,
            len(made.lines),
            made.metadata,
            job.file.stamp,
            job.file.place,
            given_hash(job.file),
        )
        self._check_opening(job.file, made.metadata.access, job.sha256)
        self._count(self._parts.pop(source, None))  # until it is embedded
        return Document(record, made.lines, made.texts, self._known(source, made.texts))

    def _fail(self, job: Job, error: InvalidRequest) -> None:
        file = job.file
        given = given_hash(file)
        failed = Failed(file.source, job.sha256, self._recipe, given, file.stamp, str(error))
        self._ledger.fail(failed)
        self._close(file)
        self._report.failures.append(Failure(file.shown, str(error)))
        self._finished(file.source)

    def _check_opening(self, file: SourceFile, access: tuple[str, ...], sha256: str) -> None:
        """Refuse to open a document that was closed, where nothing says so; report it otherwise.

        The same file by another name is the same document: its folder may be named otherwise now.
        """
        old = self._parts.get(file.source)
        old = old or self._closed.get(file.place) or self._closed.get(sha256)
        before = old.record.metadata.access if old else ()
        if not old or not opens(before, access):
            return
        if not access and "access" not in file.metadata and not self._allow_opening:
            self._restore(old.record.source)
            name = old.record.source
            was = "it was" if name == file.source else f"the same file, as {name!r}, was"
            raise InvalidRequest(
                f"would be open to everyone: {was} for {', '.join(before)}, and nothing says "
                "`access` of it any more; it stays as it was (bring back its sidecar or --access, "
                "or write `access: []` in a sidecar; --allow-opening opens all such documents)"
            )
        self._report.opened.append(Opening(file.source, before, access))

    def _restore(self, source: str) -> None:
        """Keep a document that goes: the next run has to know that it was closed."""
        if source in self._spare:
            self._parts[source] = self._spare.pop(source)
            self._report.removed -= source in self._gone

    def _close(self, file: SourceFile) -> None:
        """Give the version that stays of a failed file the access that is said from outside."""
        old, access = self._parts.get(file.source), tuple(file.metadata.get("access", ()))
        if old and access:
            self._check_opening(file, access, "")
            metadata = replace(old.record.metadata, access=access)
            self._parts[file.source] = replace(old, record=replace(old.record, metadata=metadata))

    def _count(self, old: Part | None) -> None:
        self._report.changed += old is not None
        self._report.added += old is None

    def _resume(self, record: DocumentRecord) -> None:
        self._parts[record.source] = self._waiting(record)
        self._report.resumed += record.passages

    def _waiting(self, record: DocumentRecord) -> Staged:
        return Staged(record, self._ledger)

    def _known(self, source: str, texts: list[str]) -> Mapping[str, Floats]:
        """Return the vectors that need not be embedded again, by text."""
        known, kept = self._vectors_by_text(source), self._kept.of(texts)
        self._report.resumed += sum(text in kept and text not in known for text in texts)
        return {**kept, **known}

    def _vectors_by_text(self, source: str) -> Mapping[str, Floats]:
        """Return the vectors that a document's passages had, by the text that was embedded."""
        part = self._own.get(source)
        if part is None:
            return {}
        passages = map(Passage.from_json, part.lines())
        texts = map(self._parsers.chunker.embedded_text, passages)
        return dict(zip(texts, part.vectors(), strict=True))


def _of_both(base: Part, own: Kept) -> Part:
    """Return a document of ``base``, with the vectors that ``own`` has of the same passages.

    Where it is closed in ``own``, a version that is prepared, it stays so: nobody opened it there.
    """
    if _alike(base.record, own.record):
        return replace(own, record=base.record)
    if not opens(own.record.metadata.access, base.record.metadata.access):
        return base
    if (own.record.sha256, own.record.recipe) == (base.record.sha256, base.record.recipe):
        return own
    metadata = replace(base.record.metadata, access=own.record.metadata.access)
    # Without what its file was, so that this is read again, and may say that it is to be opened.
    return replace(base, record=replace(base.record, metadata=metadata, sha256="", stamp=""))


def _closed(parts: Iterable[Part]) -> dict[str, Part]:
    """Return the documents that not everyone may read, by where their file lies and by its hash."""
    closed = [part for part in parts if part.record.metadata.access]
    by_hash = {part.record.sha256: part for part in closed if part.record.sha256}
    return by_hash | {part.record.path: part for part in closed if part.record.path}


def _alike(one: DocumentRecord, other: DocumentRecord) -> bool:
    """Return whether two records are of the same passages."""
    return replace(one, stamp="", path="") == replace(other, stamp="", path="")


def _stamped(record: DocumentRecord, file: SourceFile) -> DocumentRecord:
    return replace(record, stamp=file.stamp, path=file.place)
