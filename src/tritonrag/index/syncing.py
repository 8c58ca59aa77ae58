"""One run of a synchronisation: a collection becomes what its sources hold.

What cannot be listed is never taken for deleted: such a run fails and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tritonrag.corpus import Found, Source
from tritonrag.corpus.downloads import read_ahead
from tritonrag.corpus.sidecars import Refused
from tritonrag.documents import Failure, SourceFile, content_hash, read_file
from tritonrag.errors import InvalidRequest, Unavailable
from tritonrag.index import layout
from tritonrag.index.adding import Added, Adder
from tritonrag.index.comparing import given_hash, stamp_unchanged
from tritonrag.index.manifest import DocumentRecord, damaged
from tritonrag.index.snapshot import read_documents


@dataclass
class Plan:
    """What a run would do, by the names of documents.

    ``fetched`` are those that would be read from a store: whether one of them has changed is known
    after that, so that each is in ``changed`` or ``added`` too.
    """

    collection: str
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)


def sync(
    adder: Adder,
    collection: str,
    found: Found,
    records: Sequence[DocumentRecord],
    recipe: str,
    *,
    retry_failed: bool = False,
    allow_opening: bool = False,
    wait: bool = True,
) -> Added:
    """Make ``found`` the whole of a collection; the failures of the listing are in the report.

    Args:
        adder: what writes the index.
        collection: the collection's name.
        found: all files of all sources, checked by :func:`check_listing`.
        records: the collection's documents now; they only tell what to read ahead.
        recipe: how the adder cuts documents.
        retry_failed: try files again that failed and have not changed.
        allow_opening: open documents of which nothing says any more that they are closed.
        wait: for another writer of the collection.

    Raises:
        TritonragError: what the adder raises, or Unavailable where a store stops answering; the
            collection is then as it was.
    """
    with changed_read_ahead(found.files, records, recipe) as files:
        done = adder.add(
            collection,
            files,
            complete_under="",
            retry_failed=retry_failed,
            allow_opening=allow_opening,
            wait=wait,
        )
    done.failures[:0] = found.failures
    done.unknown = found.unknown
    return done


@contextmanager
def changed_read_ahead(
    files: list[SourceFile], records: Iterable[DocumentRecord], recipe: str
) -> Iterator[list[SourceFile]]:
    """Yield ``files``, of which those that a store says have changed are read before they are used.

    ``records`` are the documents that there are, ``recipe`` says how documents are cut now.
    """
    known = {record.source: record for record in records}
    changed = {
        file.source
        for file in files
        if file.source not in known or not stamp_unchanged(file, known[file.source], recipe)
    }
    with read_ahead(files, changed) as ahead:
        yield ahead


def plan(collection: str, found: Found, records: Sequence[DocumentRecord], recipe: str) -> Plan:
    """Return what :func:`sync` would do; files of this machine are read for it, others are not."""
    known = {record.source: record for record in records}
    made = Plan(collection, failures=list(found.failures))
    for file in found.files:
        _compare(file, known.get(file.source), recipe, made)
    made.removed = sorted(known.keys() - {file.source for file in found.files})
    return made


def check_listing(
    found: Found, records: Iterable[DocumentRecord], *, allow_empty: bool = False
) -> None:
    """Refuse a listing that must not count as all there is.

    Raises:
        Unavailable: a folder could not be listed.
        InvalidRequest: a source that had documents is empty, unless ``allow_empty``.
    """
    if found.unlisted:
        first = found.unlisted[0]
        raise Unavailable(
            f"{first.name}: {first.reason}; nothing was changed, since what cannot be listed would "
            "be taken for deleted"
        )
    for source in () if allow_empty else found.empty:
        if any(not found.files or _belongs(record, source) for record in records):
            raise InvalidRequest(
                f"{source.place} is empty but had documents; nothing was changed (--allow-empty "
                "removes them)"
            )


def current_documents(index_dir: Path, collection: str, sha256: str) -> list[DocumentRecord]:
    """Return the documents of a collection's snapshot for an embedder; none if there is none.

    Raises:
        InvalidRequest: a collection may not be called so.
        SetupError: the live snapshot is damaged.
    """
    folder = index_dir / layout.check_collection(collection)
    name = layout.current(folder, sha256)
    try:
        return read_documents(folder / name) if name else []
    except (OSError, ValueError, TypeError) as error:
        raise damaged(str(name), str(error)) from error


def _compare(file: SourceFile, record: DocumentRecord | None, recipe: str, made: Plan) -> None:
    try:
        same = record is not None and _unchanged(file, record, recipe)
    except InvalidRequest as error:
        made.failures.append(Failure(file.shown, str(error)))
        return
    if same:
        made.unchanged += 1
        return
    (made.added if record is None else made.changed).append(file.source)
    if file.url:
        made.fetched.append(file.source)


def _unchanged(file: SourceFile, record: DocumentRecord, recipe: str) -> bool:
    if file.url and not isinstance(file.reader, Refused):
        return stamp_unchanged(file, record, recipe)
    before = (record.sha256, record.recipe, record.given)
    return before == (content_hash(read_file(file)), recipe, given_hash(file))


def _belongs(record: DocumentRecord, source: Source) -> bool:
    if record.path:
        return f"{record.path}/".startswith(f"{source.root}/")
    return record.source.startswith(source.document(""))
