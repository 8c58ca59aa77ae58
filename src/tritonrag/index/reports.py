"""What a run of the writer did, and who is told while it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

from tritonrag.documents import Failure
from tritonrag.index.widening import Opening


@dataclass
class Added:
    """What a run did; ``snapshot`` is the live one after it, None if there is none.

    ``added``, ``changed``, ``unchanged`` and ``removed`` count documents. ``embedded`` counts
    passages, ``resumed`` those that an interrupted run had embedded; ``published`` tells that
    there is a new snapshot, ``embedder_changed`` that all had to be embedded again. ``opened`` are
    the documents that more callers can read than before, ``unknown`` the files of kinds that cannot
    be indexed.
    """

    collection: str
    snapshot: str | None = None
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    embedded: int = 0
    resumed: int = 0
    published: bool = False
    embedder_changed: bool = False
    failures: list[Failure] = field(default_factory=list)
    opened: list[Opening] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class Listener:
    """Is told how a run goes, from several threads; says nothing itself."""

    def waiting(self) -> None:
        """Another writer is at work on the collection, and this one waits for it."""

    def started(self, documents: int) -> None:
        """So many documents are looked at."""

    def finished(self, documents: int) -> None:
        """So many more are done: as they were, failed, or embedded."""

    def embedded(self, passages: int) -> None:
        """So many more passages have been embedded."""
