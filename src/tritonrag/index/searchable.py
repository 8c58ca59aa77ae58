"""What serving needs of a store: live snapshots, what can be searched in one, and what is found.

``snapshot`` and ``retriever`` have the one on disk, ``remote`` the one in Milvus. The list of a
query's passages is made from these alone (``searching``), so that it is the same for both.
"""

from __future__ import annotations

from typing import Any, Protocol

from tritonrag.index.columns import EVERYONE, Groups
from tritonrag.index.filters import Filter
from tritonrag.index.manifest import SnapshotManifest
from tritonrag.index.vectors import Floats, Ids


class View(Protocol):
    """What one search sees of a snapshot: the passages that it may find."""

    def nearest(self, embeddings: Floats, count: int) -> tuple[Floats, Ids]:
        """Return the ``count`` nearest passages of each embedding ``[n, dimension]``.

        Returns:
            Inner products and passage numbers, both ``[n, k]`` with ``k <= count``, best first; the
            number is -1 where there are fewer.
        """
        ...

    def sharing_words(self, question: str, count: int) -> tuple[Floats, Ids]:
        """Return at most ``count`` passages that share a term with the question, best first.

        Returns:
            BM25 scores and passage numbers, both ``[n]``.
        """
        ...

    def rows(self, numbers: Ids) -> Floats:
        """Return the embeddings of passages that were found, ``[n, dimension]``."""
        ...

    def passage(self, number: int) -> bytes:
        """Return a passage that was found as stored: one JSON object in UTF-8."""
        ...

    def document_of(self, number: int) -> int:
        """Return the number of the document that passage ``number`` is of."""
        ...


class Searchable(Protocol):
    """A snapshot that any number of threads may search."""

    @property
    def name(self) -> str:
        """The snapshot's name."""
        ...

    @property
    def manifest(self) -> SnapshotManifest:
        """What it says about itself."""
        ...

    @property
    def has_words(self) -> bool:
        """Whether it can be searched for words."""
        ...

    @property
    def intact(self) -> bool:
        """Whether it is, as far as one look tells, still what was loaded."""
        ...

    def __len__(self) -> int:
        """Return the number of passages."""
        ...

    def audience(self, groups: Groups) -> Groups:
        """Return those of a caller's groups that matter here: callers alike in them see alike."""
        ...

    def readable(self, groups: Groups) -> bool:
        """Return whether a caller in ``groups`` may read any document of it."""
        ...

    def check(self, where: Filter | None, groups: Groups = EVERYONE) -> None:
        """Check a filter against the documents that a caller in ``groups`` may read.

        Raises:
            InvalidRequest: it names a field, or compares with a kind of value, that none has.
        """
        ...

    def allowed(self, where: Filter | None, groups: Groups = EVERYONE) -> Any:
        """Return what :meth:`view` takes: what ``groups`` may read and ``where`` leaves.

        None stands for all.
        """
        ...

    def view(self, allowed: Any) -> View:
        """Return what a search among ``allowed`` sees; it is for one thread."""
        ...


class SnapshotSource(Protocol):
    """Where the live snapshots of one embedder are."""

    def collections(self) -> list[str]:
        """Return the collections that there are now, sorted.

        Raises:
            Unavailable: that cannot be known now.
        """
        ...

    def seen(self, collection: str) -> object:
        """Return what changes when another snapshot goes live; None where there is none."""
        ...

    def load(self, collection: str, old: Searchable | None) -> Searchable:
        """Return the live snapshot: ``old`` where it still is the one.

        Raises:
            SetupError: it is damaged, or of a newer format.
            Unavailable: it cannot be read now.
        """
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...
