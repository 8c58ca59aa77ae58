"""The vectors of one snapshot and the search among them: exact, or lists tuned to a recall.

docs/decisions/0011 says which index is taken when, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from tritonrag.index.manifest import FLAT, ROWS, VECTORS, Probing, SnapshotManifest
from tritonrag.index.positional import ArrayFile, PositionalFile, open_array

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

EXACT_UP_TO = 20_000
"""So many vectors are searched exactly: a question takes a millisecond of one core."""

NARROW, AMONG_UP_TO = 0.1, 50_000
"""Where a filter keeps a smaller share and no more passages, the search among them is exact: the
best of so few lie in so many lists that this takes less time."""

KEPT_ROWS = 4
"""Filters whose passages' vectors are kept side by side, at most 77 MB each in 384 dimensions."""


@dataclass(frozen=True, eq=False)
class Allowed:
    """The passages that a search may find; ``mask`` is bool ``[passages]``."""

    mask: Mask

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def numbers(self) -> Ids:
        """Their numbers, ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """The mask as FAISS reads it."""
        return np.packbits(self.mask, bitorder="little")


class Vectors:
    """Row i is the embedding of passage i. Any number of threads may search."""

    def __init__(
        self,
        index: faiss.Index,
        rows: Floats | ArrayFile,
        probing: Sequence[Probing] = (),
        content: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Take a FAISS index of ``rows``; ``probing`` is how to search it if it is approximate.

        ``content`` is the memory that the index points into, if it does.
        """
        # The stubs of FAISS know neither its kinds of index nor their constructors in Python.
        self._index: Any = index
        self._content = content
        self.rows = rows = rows if isinstance(rows, ArrayFile) else np.asarray(rows)
        self._probing = sorted(probing, key=lambda each: each.share)
        # Without `self`, which would keep the memory until the garbage is collected.
        self._rows_of = lru_cache(KEPT_ROWS)(lambda allowed: rows[allowed.numbers])

    @classmethod
    def open(cls, folder: Path, manifest: SnapshotManifest) -> Vectors:
        """Read an index, and open the vectors of one that is not exact.

        FAISS could map it, but then a truncation in place would end the process.

        Raises:
            OSError, RuntimeError, ValueError: a file is missing or damaged.
        """
        path = str(folder / VECTORS)
        if manifest.factory == FLAT:
            index = faiss.read_index(path)
            return cls(index, flat_rows(index))
        # One block that the index points into: copied into thousands of lists, it would stay with
        # the process after a swap. FAISS does not look where the block ends.
        content = np.fromfile(path, np.uint8)
        if content.size != manifest.sizes.get(VECTORS):
            raise ValueError(f"{VECTORS} differs from when it was written")
        reader = faiss.ZeroCopyIOReader(  # type: ignore[attr-defined]
            faiss.swig_ptr(content), content.size
        )
        index = faiss.read_index(reader)
        return cls(index, open_array(folder / ROWS), manifest.probing, content)

    def __len__(self) -> int:
        """Return how many there are."""
        return int(self._index.ntotal)

    @property
    def files(self) -> list[PositionalFile]:
        """What is read from in a search."""
        return [self.rows.file] if isinstance(self.rows, ArrayFile) else []

    @property
    def index(self) -> Any:
        """The FAISS index."""
        return self._index

    def search(
        self, embeddings: Floats, count: int, allowed: Allowed | None = None
    ) -> tuple[Floats, Ids]:
        """Return the ``count`` nearest passages of each embedding among those allowed.

        Args:
            embeddings: ``[n, dimension]``.
            count: passages wanted per embedding.
            allowed: the passages that may be found; None is all.

        Returns:
            Inner products and passage numbers, both ``[n, k]`` with ``k <= count``, best first; the
            number is -1 where fewer passages are allowed.
        """
        k = min(count, len(self))
        embeddings = np.ascontiguousarray(embeddings, np.float32)
        if not k or (allowed is not None and not allowed.count):
            return np.empty((len(embeddings), 0), np.float32), np.empty((len(embeddings), 0), int)
        if not self._probing:
            found: tuple[Floats, Ids] = self._index.search(
                embeddings, k, params=_parameters(allowed)
            )
            return found
        available = len(self) if allowed is None else allowed.count
        share = available / len(self)
        if allowed is not None and available <= AMONG_UP_TO and share < NARROW:
            return self._among(embeddings, min(k, available), allowed)
        scores, ids = self.probed(embeddings, k, self.lists(share), allowed)
        short = ids[:, min(k, available) - 1] < 0
        if short.any():  # All that a filter keeps may be far from the question.
            every = int(self._index.nlist)
            scores[short], ids[short] = self.probed(embeddings[short], k, every, allowed)
        return scores, ids

    def lists(self, share: float) -> int:
        """Return how many inverted lists are searched where ``share`` of the passages is allowed.

        That of the next lower share for which it was tuned.
        """
        tuned = (each.lists for each in reversed(self._probing) if each.share <= share)
        return next(tuned, self._probing[0].lists)

    def _among(self, embeddings: Floats, k: int, allowed: Allowed) -> tuple[Floats, Ids]:
        """Search exactly among the few that a filter allows."""
        rows = self._rows_of(allowed)
        scores, places = faiss.knn(embeddings, rows, k, faiss.METRIC_INNER_PRODUCT)
        return scores, allowed.numbers[places]

    def probed(
        self, embeddings: Floats, k: int, lists: int, allowed: Allowed | None
    ) -> tuple[Floats, Ids]:
        """Return the nearest in so many inverted lists.

        Twice as many are found by their quantised vectors, of which the best by their own are kept.
        """
        parameters = _parameters(allowed, lists)
        _, ids = self._index.search(embeddings, min(2 * k, len(self)), params=parameters)
        scores = np.einsum("qkd,qd->qk", self.rows[ids], embeddings)
        scores[ids < 0] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)


def flat_rows(index: Any) -> Floats:
    """Return the vectors of an exact index, ``[n, dimension]``, without a copy."""
    rows: Floats = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return rows.reshape(index.ntotal, index.d)


def _parameters(allowed: Allowed | None, lists: int = 0) -> faiss.SearchParameters | None:
    options: dict[str, Any] = {}
    if allowed is not None:
        options["sel"] = faiss.IDSelectorBitmap(allowed.bits)  # type: ignore[call-arg, arg-type]
    if lists:
        return faiss.SearchParametersIVF(nprobe=lists, **options)  # type: ignore[call-arg]
    return faiss.SearchParameters(**options) if options else None
