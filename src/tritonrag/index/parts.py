"""The documents of the next snapshot, wherever their passages and vectors are now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tritonrag.index.ledger import Ledger
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.snapshot import Floats, Snapshot


@dataclass(frozen=True)
class Kept:
    """A document of an earlier snapshot."""

    record: DocumentRecord
    snapshot: Snapshot
    numbers: range

    def lines(self) -> Iterable[bytes]:
        """Return the passages as they are stored."""
        return map(self.snapshot.passage, self.numbers)

    def vectors(self) -> Floats:
        """Return the embeddings, float32 ``[passages, dimension]``."""
        return self.snapshot.vectors(self.numbers)


@dataclass(frozen=True)
class Staged:
    """A document that is embedded and waits in the ledger."""

    record: DocumentRecord
    ledger: Ledger

    def lines(self) -> Iterable[bytes]:
        """Return the passages as they are stored."""
        return self.ledger.lines(self.record.source)

    def vectors(self) -> Floats:
        """Return the embeddings, float32 ``[passages, dimension]``."""
        return self.ledger.vectors(self.record.source)


Part = Kept | Staged


def kept_parts(snapshot: Snapshot | None) -> dict[str, Kept]:
    """Return the documents of a snapshot by source; none where there is no snapshot."""
    if snapshot is None:
        return {}
    return {
        record.source: Kept(record, snapshot, snapshot.passages_of(number))
        for number, record in enumerate(snapshot.documents)
    }
