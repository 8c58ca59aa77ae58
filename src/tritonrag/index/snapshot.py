"""One snapshot, opened for reading: its vectors in memory, its passages memory-mapped.

Immutable once open, so any number of threads may search it while a newer one is loaded.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from tritonrag.artifacts import sha256
from tritonrag.index.columns import Columns, Groups, Mask
from tritonrag.index.filters import Filter
from tritonrag.index.manifest import (
    DATA_FILES,
    DOCUMENTS,
    OFFSETS,
    PASSAGES,
    VECTORS,
    DocumentRecord,
    SnapshotManifest,
    damaged,
)

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

EVERYONE: Groups = frozenset()
"""The groups of a caller of whom nothing is known: documents open to all are left."""

_KEPT_MASKS = 32
"""Answers to the latest filters that are kept for each snapshot."""


class Snapshot:
    """A snapshot that can be searched and read."""

    def __init__(
        self,
        manifest: SnapshotManifest,
        index: faiss.Index,
        passages: PassageFile,
        documents: list[DocumentRecord],
    ) -> None:
        """Hold the parts that :meth:`open` has read and found consistent."""
        self.manifest = manifest
        self.documents = documents
        self._index = index
        self._passages = passages
        self._sizes = np.array([document.passages for document in documents], np.int64)
        self._bounds = np.concatenate([[0], np.cumsum(self._sizes)])
        self._columns = Columns(documents)
        # A cached method would tie the snapshot to itself and keep its memory after a swap.
        self._masks = lru_cache(_KEPT_MASKS)(self._columns.allowed)
        self._checks = lru_cache(_KEPT_MASKS)(self._columns.check)
        self._bits = lru_cache(_KEPT_MASKS)(partial(_passage_bits, self._masks, self._sizes))

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Snapshot:
        """Load the snapshot in ``folder``; ``verify`` compares the SHA-256 of every file first.

        Raises:
            SetupError: it is missing, damaged, or of a newer format.
        """
        manifest = SnapshotManifest.load(folder)
        try:
            if verify:
                verify_files(folder, manifest)
            snapshot = cls(
                manifest,
                faiss.read_index(str(folder / VECTORS)),
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

    def __len__(self) -> int:
        """Return the number of passages."""
        return self.manifest.passages

    def audience(self, groups: Groups) -> Groups:
        """Return those of a caller's groups that matter here: callers alike in them see alike."""
        return self._columns.known(groups)

    def check(self, where: Filter | None, groups: Groups = EVERYONE) -> None:
        """Check a filter against the documents that a caller in ``groups`` may read.

        Raises:
            InvalidRequest: it names a field, or compares with a kind of value, that none has.
        """
        if where is not None:
            self._checks(where, self.audience(groups))

    def allowed(self, where: Filter | None, groups: Groups = EVERYONE) -> Mask | None:
        """Return the documents that a caller in ``groups`` may read and that ``where`` leaves.

        None stands for all. The array is shared: it must not be changed.
        """
        return self._masks(where, self.audience(groups))

    def search(
        self,
        embeddings: Floats,
        top_k: int,
        where: Filter | None = None,
        groups: Groups = EVERYONE,
    ) -> tuple[Floats, Ids]:
        """Return the ``top_k`` nearest passages of each embedding among the documents allowed.

        Args:
            embeddings: ``[n, dimension]``.
            top_k: passages wanted per embedding.
            where: conditions on the documents; None is none.
            groups: those of the caller; documents for others only are not looked at.

        Returns:
            Scores and passage numbers, both ``[n, k]`` with ``k <= top_k``, best first; the number
            is -1 where fewer passages were found.
        """
        bits = self._bits(where, self.audience(groups))
        k = min(top_k, len(self))
        if not k or (bits is not None and not bits.any()):
            return np.empty((len(embeddings), 0), np.float32), np.empty((len(embeddings), 0), int)
        # The stubs of FAISS do not show its Python constructors, which take keywords and arrays.
        params = (
            None if bits is None else faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))  # type: ignore[call-arg, arg-type]
        )
        scores, ids = self._index.search(np.ascontiguousarray(embeddings), k, params=params)
        return scores, ids

    def passage(self, number: int) -> bytes:
        """Return passage ``number`` as stored: one JSON object in UTF-8."""
        return self._passages[number]

    def passages_of(self, document: int) -> range:
        """Return the numbers of the passages of a document, by its place in ``documents``."""
        return range(int(self._bounds[document]), int(self._bounds[document + 1]))

    def vectors(self, numbers: range) -> Floats:
        """Return the embeddings of consecutive passages, ``[n, dimension]``."""
        if not numbers:
            return np.empty((0, self.manifest.dimension), np.float32)
        return np.asarray(self._index.reconstruct_n(numbers.start, len(numbers)), np.float32)

    def _check_counts(self) -> None:
        manifest = self.manifest
        found = {
            "documents": (len(self.documents), manifest.documents),
            "passages of documents": (int(self._bounds[-1]), manifest.passages),
            "passages": (len(self._passages), manifest.passages),
            "vectors": (self._index.ntotal, manifest.passages),
            "dimension": (self._index.d, manifest.dimension),
            "metric": (self._index.metric_type, faiss.METRIC_INNER_PRODUCT),
        }
        for what, (count, expected) in found.items():
            if count != expected:
                raise damaged(self.name, f"{what}: {count}, but its manifest says {expected}")


class PassageFile:
    """The lines of ``passages.jsonl``: reads only the bytes of the passages asked for."""

    def __init__(self, lines: Path, offsets: Path) -> None:
        """Map both files into memory; ``offsets`` holds where each line starts, and the end."""
        self._offsets = np.load(offsets, mmap_mode="r", allow_pickle=False)
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
    for name in DATA_FILES:
        if sha256(folder / name) != manifest.files[name]:
            raise damaged(folder.name, f"{name} differs from when it was written")


def _passage_bits(
    masks: Callable[[Filter | None, Groups], Mask | None],
    sizes: Ids,
    where: Filter | None,
    groups: Groups,
) -> Bits | None:
    """Return one bit for each passage, as FAISS takes them; None where all are allowed."""
    allowed = masks(where, groups)
    if allowed is None:
        return None
    bits: Bits = np.packbits(np.repeat(allowed, sizes), bitorder="little")
    return bits


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
