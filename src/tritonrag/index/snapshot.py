"""One snapshot, opened for reading: its vectors, its BM25 index and its passages.

What is large is memory-mapped. Immutable once open, so any number of threads may search it while a
newer one is loaded.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict, defaultdict
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from tritonrag.artifacts import sha256
from tritonrag.index import analysis
from tritonrag.index.bm25 import Bm25
from tritonrag.index.filters import FIELDS, Filter
from tritonrag.index.manifest import (
    DOCUMENTS,
    FORMAT_VERSION,
    OFFSETS,
    PASSAGES,
    DocumentRecord,
    SnapshotManifest,
    damaged,
)
from tritonrag.index.vectors import Allowed, Mask, Vectors
from tritonrag.index.vectors import Floats as Floats
from tritonrag.index.vectors import Ids as Ids

HASHED_BYTES = 256 * 1024 * 1024
"""A larger snapshot is served without hashing it again; see :meth:`Snapshot.open`."""

KEPT_MASKS = 32
"""Filters of which the passages allowed are remembered: a byte each a passage."""


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
        counts = [document.passages for document in documents]
        self._bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._masks: OrderedDict[object, Allowed] = OrderedDict()
        self._masks_lock = threading.Lock()

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
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise damaged(folder.name, str(error)) from error
        snapshot._check_counts()
        return snapshot

    @property
    def name(self) -> str:
        """The snapshot's name."""
        return self.manifest.snapshot

    @property
    def outdated(self) -> bool:
        """Whether writing it again would add to it: an earlier release wrote it."""
        return self.manifest.format_version < FORMAT_VERSION or (
            self.bm25 is None and len(self) > 0
        )

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    def search(self, embeddings: Floats, count: int, allowed: Allowed | None) -> tuple[Floats, Ids]:
        """Return the ``count`` nearest passages of each embedding, as :meth:`Vectors.search`."""
        return self.dense.search(embeddings, count, allowed)

    def allowed(self, where: Filter) -> Allowed | None:
        """Return the passages that ``where`` allows; None, for all, where it sets no condition."""
        if not where:
            return None
        key = frozenset(where.items())
        with self._masks_lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        found = Allowed(np.repeat(self._matching(where), np.diff(self._bounds)))
        with self._masks_lock:
            self._masks[key] = found
            if len(self._masks) > KEPT_MASKS:
                self._masks.popitem(last=False)
        return found

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

    def _matching(self, where: Filter) -> Mask:
        """Return which documents ``where`` allows, bool ``[documents]``."""
        fields = [
            {document for value in values for document in self._by_field[field].get(value, ())}
            for field, values in where.items()
        ]
        mask = np.zeros(len(self.documents), bool)
        mask[list(set.intersection(*fields))] = True
        return mask

    @cached_property
    def _by_field(self) -> dict[str, dict[str, list[int]]]:
        found: dict[str, dict[str, list[int]]] = {field: defaultdict(list) for field in FIELDS}
        for number, document in enumerate(self.documents):
            for field in FIELDS:
                found[field][getattr(document, field)].append(number)
        return found

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


class PassageFile:
    """The lines of ``passages.jsonl``: reads only the bytes of the passages asked for."""

    def __init__(self, lines: Path, offsets: Path) -> None:
        """Map both files into memory; ``offsets`` holds where each line starts, and the end."""
        # As a plain array, whose slices take a tenth of the time of a memory map's.
        self._offsets = np.asarray(np.load(offsets, mmap_mode="r", allow_pickle=False))
        self._lines = _mapped(lines)
        if len(self._offsets) == 0 or int(self._offsets[-1]) != len(self._lines):
            raise ValueError(f"{offsets.name} does not fit {lines.name}")

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        """Return one line without its newline."""
        start, end = self._offsets[number : number + 2]
        return self._lines[int(start) : int(end) - 1]


def verify_files(folder: Path, manifest: SnapshotManifest) -> None:
    """Compare the SHA-256 of every data file with the manifest.

    Raises:
        SetupError: a file differs.
        OSError: a file cannot be read.
    """
    for name, expected in manifest.files.items():
        if sha256(folder / name) != expected:
            raise damaged(folder.name, f"{name} differs from when it was written")


def _check_sizes(folder: Path, manifest: SnapshotManifest) -> None:
    for name, expected in manifest.sizes.items():
        if (folder / name).stat().st_size != expected:
            raise damaged(folder.name, f"{name} differs from when it was written")


def _bytes(folder: Path, manifest: SnapshotManifest) -> int:
    return sum((folder / name).stat().st_size for name in manifest.files)


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if not path.stat().st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_documents(folder: Path) -> list[DocumentRecord]:
    """Return the documents of the snapshot in ``folder``, in the order of their passages.

    Raises:
        OSError, ValueError, TypeError: the file is missing or damaged.
    """
    with (folder / DOCUMENTS).open(encoding="utf-8", newline="\n") as lines:
        return [DocumentRecord.from_json(line) for line in lines]
