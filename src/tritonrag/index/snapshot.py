"""One snapshot, opened for reading: its vectors in memory, its passages memory-mapped.

Immutable once open, so any number of threads may search it while a newer one is loaded.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from tritonrag.artifacts import sha256
from tritonrag.index.filters import FIELDS, Filter
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
        counts = [document.passages for document in documents]
        self._bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

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

    def search(self, embeddings: Floats, top_k: int, where: Filter) -> tuple[Floats, Ids]:
        """Return the ``top_k`` nearest passages of each embedding among those ``where`` allows.

        Args:
            embeddings: ``[n, dimension]``.
            top_k: passages wanted per embedding.
            where: conditions on the documents; empty searches all.

        Returns:
            Scores and passage numbers, both ``[n, k]`` with ``k <= top_k``, best first; the number
            is -1 where fewer passages were found.
        """
        k = min(top_k, len(self))
        if not k:
            return np.empty((len(embeddings), 0), np.float32), np.empty((len(embeddings), 0), int)
        # The stubs of FAISS do not show its Python constructors, which take keywords and arrays.
        params = (
            faiss.SearchParameters(sel=self._selector(where))  # type: ignore[call-arg]
            if where
            else None
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

    def _selector(self, where: Filter) -> faiss.IDSelector:
        allowed = np.zeros(len(self), bool)
        for document in self._matching(where):
            allowed[self._bounds[document] : self._bounds[document + 1]] = True
        bits = np.packbits(allowed, bitorder="little")
        return faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]

    def _matching(self, where: Filter) -> set[int]:
        fields = [
            {document for value in values for document in self._by_field[field].get(value, ())}
            for field, values in where.items()
        ]
        return set.intersection(*fields)

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
