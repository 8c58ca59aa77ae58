"""One snapshot, opened for reading: its vectors, its BM25 index and its passages.

What is large is read by position, never mapped: a file that is truncated in place must not end the
process. Immutable once open, so any number of threads may search it while a newer one is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import faiss
import numpy as np

from tritonrag.artifacts import sha256
from tritonrag.index import analysis
from tritonrag.index.bm25 import Bm25
from tritonrag.index.columns import EVERYONE, Columns, Groups, Mask
from tritonrag.index.filters import Filter
from tritonrag.index.manifest import (
    DOCUMENTS,
    FORMAT_VERSION,
    OFFSETS,
    PASSAGES,
    DocumentRecord,
    SnapshotManifest,
    damaged,
)
from tritonrag.index.positional import PositionalFile
from tritonrag.index.vectors import Allowed, Vectors
from tritonrag.index.vectors import Floats as Floats
from tritonrag.index.vectors import Ids as Ids

HASHED_BYTES = 256 * 1024 * 1024
"""A larger snapshot is served without hashing it again; see :meth:`Snapshot.open`."""

_KEPT_MASKS = 32
"""Answers to the latest filters that are kept for each snapshot: a byte each a passage."""


class Snapshot:
    """A snapshot that can be searched and read."""

    def __init__(
        self,
        manifest: SnapshotManifest,
        vectors: Vectors,
        bm25: Bm25 | None,
        passages: PassageFile,
        documents: list[DocumentRecord],
    ) -> None:
        """Hold the parts that :meth:`open` has read and found consistent."""
        self.manifest = manifest
        self.documents = documents
        self.dense = vectors
        self.bm25 = bm25
        self._passages = passages
        self._sizes = np.array([document.passages for document in documents], np.int64)
        self._bounds = np.concatenate([[0], np.cumsum(self._sizes)])
        self._columns = Columns(documents)
        # A cached method would tie the snapshot to itself and keep its memory after a swap.
        self._checks = lru_cache(_KEPT_MASKS)(self._columns.check)
        self._masks = lru_cache(_KEPT_MASKS)(
            partial(_allowed_passages, self._columns.allowed, self._sizes)
        )

    @classmethod
    def open(cls, folder: Path, *, verify: bool | None = True) -> Snapshot:
        """Load the snapshot in ``folder``.

        Args:
            folder: where it lies.
            verify: compare the SHA-256 of every file first. None does so for a snapshot that takes
                no time to read; of a larger one only the sizes are compared, as always: it was
                verified when it was published, and a server must not take minutes to start.

        Raises:
            SetupError: it is missing, damaged, or of a newer format.
        """
        manifest = SnapshotManifest.load(folder)
        try:
            _check_sizes(folder, manifest)
            if verify or (verify is None and _bytes(folder, manifest) <= HASHED_BYTES):
                verify_files(folder, manifest)
            current = manifest.analysis == analysis.VERSION
            snapshot = cls(
                manifest,
                Vectors.open(folder, manifest),
                Bm25.open(folder) if current else None,
                PassageFile(folder / PASSAGES, folder / OFFSETS),
                read_documents(folder),
            )
        except OSError as error:  # Its text has the path, which is not for callers.
            name = Path(error.filename).name if error.filename else "a file"
            raise damaged(folder.name, f"{name}: {error.strerror}") from error
        except (RuntimeError, ValueError, TypeError, EOFError) as error:
            raise damaged(folder.name, str(error)) from error
        snapshot._check_counts()
        return snapshot

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return self.manifest.snapshot

    @property
    def intact(self) -> bool:
        """Whether the files that it still reads are, by size and times, as they were."""
        parts = (self._passages, self.dense, self.bm25)
        return all(file.intact for part in parts if part for file in part.files)

    @property
    def has_words(self) -> bool:
        """Whether it can be searched for words."""
        return self.bm25 is not None

    @property
    def outdated(self) -> bool:
        """Whether writing it again would add to it: an earlier release wrote it."""
        return self.manifest.format_version < FORMAT_VERSION or (
            self.bm25 is None and len(self) > 0
        )

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    def audience(self, groups: Groups) -> Groups:
        """Return those of a caller's groups that matter here: callers alike in them see alike."""
        return self._columns.known(groups)

    def readable(self, groups: Groups) -> bool:
        """Return whether a caller in ``groups`` may read any document."""
        return self._columns.readable(groups)

    def check(self, where: Filter | None, groups: Groups = EVERYONE) -> None:
        """Check a filter against the documents that a caller in ``groups`` may read.

        Raises:
            InvalidRequest: it names a field, or compares with a kind of value, that none has.
        """
        if where is not None:
            self._checks(where, self.audience(groups))

    def allowed(self, where: Filter | None, groups: Groups = EVERYONE) -> Allowed | None:
        """Return the passages that a caller in ``groups`` may read and that ``where`` leaves.

        None stands for all. It is shared: it must not be changed.
        """
        return self._masks(where, self.audience(groups))

    def search(
        self, embeddings: Floats, count: int, allowed: Allowed | None = None
    ) -> tuple[Floats, Ids]:
        """Return the ``count`` nearest passages of each embedding, as :meth:`Vectors.search`."""
        return self.dense.search(embeddings, count, allowed)

    def view(self, allowed: Allowed | None) -> SnapshotView:
        """Return what a search among ``allowed`` sees."""
        return SnapshotView(self, allowed)

    def passage(self, number: int) -> bytes:
        """Return passage ``number`` as stored: one JSON object in UTF-8."""
        return self._passages[number]

    def passages_of(self, document: int) -> range:
        """Return the numbers of the passages of a document, by its place in ``documents``."""
        return range(int(self._bounds[document]), int(self._bounds[document + 1]))

    def document_of(self, number: int) -> int:
        """Return the place in ``documents`` of the document that passage ``number`` is of."""
        return int(np.searchsorted(self._bounds, number, "right")) - 1

    def vectors(self, numbers: range) -> Floats:
        """Return the embeddings of consecutive passages, ``[n, dimension]``."""
        return np.array(self.dense.rows[numbers.start : numbers.stop])

    def _check_counts(self) -> None:
        manifest = self.manifest
        found = {
            "documents": (len(self.documents), manifest.documents),
            "passages of documents": (int(self._bounds[-1]), manifest.passages),
            "passages": (len(self._passages), manifest.passages),
            "vectors": (len(self.dense), manifest.passages),
            "rows of vectors": (len(self.dense.rows), manifest.passages),
            "passages of BM25": (
                manifest.passages if self.bm25 is None else len(self.bm25),
                manifest.passages,
            ),
            "dimension": (self.dense.index.d, manifest.dimension),
            "metric": (self.dense.index.metric_type, faiss.METRIC_INNER_PRODUCT),
        }
        for what, (count, expected) in found.items():
            if count != expected:
                raise damaged(self.name, f"{what}: {count}, but its manifest says {expected}")


class SnapshotView:
    """What one search sees of a snapshot: see ``searchable.View``."""

    def __init__(self, snapshot: Snapshot, allowed: Allowed | None) -> None:
        """See those passages of ``snapshot`` that are ``allowed``; None is all."""
        self._snapshot = snapshot
        self._allowed = allowed
        self.passage = snapshot.passage
        self.document_of = snapshot.document_of

    def nearest(self, embeddings: Floats, count: int) -> tuple[Floats, Ids]:
        """Return the nearest passages of each embedding."""
        return self._snapshot.search(embeddings, count, self._allowed)

    def sharing_words(self, question: str, count: int) -> tuple[Floats, Ids]:
        """Return the passages that share a term with the question."""
        assert self._snapshot.bm25 is not None
        return self._snapshot.bm25.search(question, count, self._allowed)

    def rows(self, numbers: Ids) -> Floats:
        """Return the embeddings of passages."""
        return self._snapshot.dense.rows[numbers]


class PassageFile:
    """The lines of ``passages.jsonl``: reads only the bytes of the passages asked for."""

    def __init__(self, lines: Path, offsets: Path) -> None:
        """Open both; ``offsets`` holds where each line starts, and the end."""
        self._offsets = np.load(offsets, allow_pickle=False)
        self._lines = PositionalFile(lines)
        if len(self._offsets) == 0 or int(self._offsets[-1]) != len(self._lines):
            raise ValueError(f"{offsets.name} does not fit {lines.name}")

    @property
    def files(self) -> list[PositionalFile]:
        """What is read from in a search."""
        return [self._lines]

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        """Return one line without its newline."""
        start, end = self._offsets[number : number + 2].tolist()
        return self._lines.read(start, end - start - 1)


def verify_files(folder: Path, manifest: SnapshotManifest) -> None:
    """Compare the SHA-256 of every data file with the manifest.

    Raises:
        SetupError: a file differs.
        OSError: a file cannot be read.
    """
    for name, expected in manifest.files.items():
        if sha256(folder / name) != expected:
            raise damaged(folder.name, f"{name} differs from when it was written")


def _allowed_passages(
    documents: Callable[[Filter | None, Groups], Mask | None],
    sizes: Ids,
    where: Filter | None,
    groups: Groups,
) -> Allowed | None:
    allowed = documents(where, groups)
    if allowed is None:
        return None
    mask = np.repeat(allowed, sizes)
    mask.flags.writeable = False
    return Allowed(mask)


def _check_sizes(folder: Path, manifest: SnapshotManifest) -> None:
    for name, expected in manifest.sizes.items():
        if (folder / name).stat().st_size != expected:
            raise damaged(folder.name, f"{name} differs from when it was written")


def _bytes(folder: Path, manifest: SnapshotManifest) -> int:
    return sum((folder / name).stat().st_size for name in manifest.files)


def read_documents(folder: Path) -> list[DocumentRecord]:
    """Return the documents of the snapshot in ``folder``, in the order of their passages.

    Raises:
        OSError, ValueError, TypeError: the file is missing or damaged.
    """
    with (folder / DOCUMENTS).open(encoding="utf-8", newline="\n") as lines:
        return [DocumentRecord.from_json(line) for line in lines]
