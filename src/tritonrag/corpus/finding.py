"""Sources to the files to index, under names that keep them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tritonrag.corpus.local import list_local
from tritonrag.corpus.place import Listing, Source
from tritonrag.corpus.remote import list_remote
from tritonrag.corpus.sidecars import with_sidecars
from tritonrag.documents import Failure, SourceFile
from tritonrag.formats import SUFFIXES
from tritonrag.metadata import said_outside


class Found(NamedTuple):
    """The files of some sources, sorted by ``source``, and what cannot be indexed.

    ``unlisted`` are the failures that leave unknown what else there is; they are in ``failures``
    too. ``empty`` are the sources without a file, ``unknown`` the files of kinds that cannot be
    indexed, as ``source/key``.
    """

    files: list[SourceFile]
    failures: list[Failure]
    unlisted: list[Failure]
    empty: list[Source]
    unknown: list[str]


def find_files(
    sources: Iterable[Source | Path | str],
    given: Mapping[str, Any] | None = None,
    *,
    follow_links: bool = False,
) -> Found:
    """Return the files to index of ``sources``, and what cannot be.

    A folder gives the files of known kinds below it, named relative to it, after the source's own
    name if it has one; hidden ones and linked folders are left out. A file stands for itself. What
    a link outside its folder leads to is refused.

    Args:
        sources: folders, files and URLs.
        given: metadata of all the files, which goes before what they say of themselves.
        follow_links: index what links lead to, wherever it is, and go into linked folders.

    Raises:
        InvalidRequest: ``given`` is malformed, or a source of no known kind.
        SetupError: the package for a store is not installed.
        Unavailable: a store does not answer.
    """
    said = said_outside(given or {})
    found = Found([], [], [], [], [])
    named: dict[str, SourceFile] = {}
    for each in sources:
        source = each if isinstance(each, Source) else Source.parse(each)
        listing = (
            list_remote(source)
            if source.remote
            else list_local(Path(source.place), follow_links=follow_links)
        )
        files = with_sidecars(listing, said)
        _report(source, listing, files, found)
        for file in files:
            _add(replace(file, source=source.document(file.source)), named, found.failures)
    found.files.extend(named[name] for name in sorted(named))
    return found


def _report(source: Source, listing: Listing, files: list[SourceFile], found: Found) -> None:
    found.failures.extend([*listing.unlisted, *listing.failures])
    found.unlisted.extend(listing.unlisted)
    unknown = sorted(listing.keys - {file.source for file in listing.files})
    found.unknown.extend(f"{source.place.rstrip('/')}/{key}" for key in unknown)
    if not files:
        found.empty.append(source)
    if not files and not listing.unlisted and not listing.failures:
        reason = f"holds no file that can be indexed ({', '.join(SUFFIXES)})"
        found.failures.append(Failure(source.place, reason))


def _add(file: SourceFile, named: dict[str, SourceFile], failures: list[Failure]) -> None:
    earlier = named.setdefault(file.source, file)
    if not _same(earlier, file):
        reason = (
            f"has the same name {file.source!r} as {earlier.shown}; name the sources apart "
            "(NAME=PLACE), or index their common folder"
        )
        failures.append(Failure(file.shown, reason))


def _same(one: SourceFile, other: SourceFile) -> bool:
    if one.url or other.url:
        return one.url == other.url
    with suppress(OSError):  # a link that leads nowhere
        return one.path.samefile(other.path)
    return one.path == other.path
