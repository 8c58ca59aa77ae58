"""Openings: documents that more callers can read after a change than before it.

Nothing that somebody meant to close is opened by a mistake. A rollback or an import by which anyone
could read more is refused unless it is meant; of a run over files, what would open a document to
everyone without saying so. Every opening that happens is in the report of its run, also one to
further groups, which a file or its sidecar says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.index import layout
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.snapshot import read_documents

SHOWN = 10
"""Openings that a message names; the others are counted."""

UNKNOWN = "?"
"""Stands for the groups of documents whose live snapshot cannot be read."""


@dataclass(frozen=True)
class Opening:
    """A document and the groups that could read it before and can after; none is everyone."""

    source: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in one line."""
        before = f"was for {_groups(self.before)}"
        if self.before == (UNKNOWN,):
            before = "may have been closed, since what is live cannot be read"
        return f"{self.source}: {before}, is for {_groups(self.after)}"


class WouldOpen(InvalidRequest):
    """A change would open documents, and nobody said that it is meant."""


OnOpening = Callable[[Sequence[Opening]], None]
"""Is told what a change would open, before it is made, and raises to prevent it."""


def opens(before: Collection[str], after: Collection[str]) -> bool:
    """Return whether access of ``after`` lets someone read who could not by ``before``."""
    return bool(before) and (not after or not set(after) <= set(before))


def openings(before: Iterable[DocumentRecord], after: Iterable[DocumentRecord]) -> list[Opening]:
    """Return what is opened where the documents of a collection become those of ``after``."""
    now = {record.source: record.metadata.access for record in after}
    found = {
        record.source: Opening(record.source, record.metadata.access, now[record.source])
        for record in before
        if record.source in now and opens(record.metadata.access, now[record.source])
    }
    return [found[source] for source in sorted(found)]


def openings_of_snapshot(collection: Path, target: Path, embedders: Iterable[str]) -> list[Opening]:
    """Return what is opened where the snapshot in ``target`` becomes live for ``embedders``.

    A document that is not live any more counts as it was in the newest snapshot that is kept, newer
    than ``target`` and has it. Where what is live now cannot be read, every document may be opened.

    Raises:
        OSError, ValueError, TypeError: ``target`` cannot be read.
    """
    after = read_documents(target)
    try:
        live = {layout.current(collection, sha256) for sha256 in ("", *embedders)} - {None}
        before = [record for name in live for record in read_documents(collection / str(name))]
    except (OSError, ValueError, TypeError, SetupError):
        return [Opening(each.source, (UNKNOWN,), each.metadata.access) for each in after]
    return openings([*before, *_removed(collection, target, before, after)], after)


def _removed(
    collection: Path, target: Path, live: list[DocumentRecord], after: list[DocumentRecord]
) -> Iterator[DocumentRecord]:
    """Yield the last records of documents of ``after`` that are not live."""
    sought = {record.source for record in after} - {record.source for record in live}
    for name in reversed(layout.snapshots(collection)):
        # One that is being imported has a name before that of any that is kept.
        if not sought or name <= target.name:
            return
        with suppress(OSError, ValueError, TypeError):  # of what is damaged, nothing is known
            found = [each for each in read_documents(collection / name) if each.source in sought]
            yield from found
            sought -= {record.source for record in found}


def refuse(found: Sequence[Opening]) -> None:
    """Prevent a change that would open documents.

    Raises:
        WouldOpen: there are some; the message names them.
    """
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise WouldOpen(
            f"{len(found)} documents could be read by more callers than now: "
            f"{'; '.join(map(str, found[:SHOWN]))}{more}. Nothing was changed; if that is meant, "
            "say --allow-opening"
        )


def _groups(groups: Sequence[str]) -> str:
    return ", ".join(groups) or "everyone"
