"""Which FAISS index a number of vectors gets, and how many lists of it are searched.

docs/decisions/0011 has the reasons. Knows neither files nor passages.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from tritonrag.index import vectors
from tritonrag.index.manifest import FLAT, Probing
from tritonrag.index.vectors import Allowed, Floats, Ids, Mask, Vectors

TRAINING_PER_LIST = 40
"""Vectors that the centre of a list is learnt from; FAISS warns below 39."""

TARGET_RECALL = 0.98
QUERIES = 256
DEPTH = 10
"""The recall is recall@10."""

RUN = 10
"""Passages of a document, in what a filter keeps."""

LEAST_LISTS = 4
"""Fewer would save nothing."""

NOISE = 1.0
"""Length of the random vector added to a passage's to make a query: their cosine is 0.71, as that
of a question to a passage that answers it."""

_SEED = 0


def factory_for(count: int) -> str:
    """Return the FAISS factory string for ``count`` vectors: exact, or lists of bytes."""
    if count <= vectors.EXACT_UP_TO:
        return FLAT
    lists = 1 << round(np.log2(4 * np.sqrt(count)))
    return f"IVF{lists},SQ8"


def build(factory: str, rows: Floats) -> Any:
    """Return the index of ``rows`` ``[n, dimension]``, trained on a sample of them."""
    index: Any = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(_sample(rows, TRAINING_PER_LIST * index.nlist))
    for at in range(0, len(rows), 1 << 16):
        index.add(np.ascontiguousarray(rows[at : at + (1 << 16)]))
    return index


def tuned(index: Any, rows: Floats) -> tuple[Probing, ...]:
    """Return how many lists to search for a recall@10 of 0.98, with the recall measured.

    The queries are passages' vectors with noise: held out of the training by the noise alone. What
    is nearest to them is found by exact search. A filter is a random choice of runs of passages, as
    one of documents is: it may leave nothing of what lies nearest.
    """
    random = np.random.default_rng(_SEED)
    queries = _queries(rows, random)
    return tuple(
        _tuned(index, rows, queries, share, _runs(len(rows), share, random))
        for share in shares_for(len(rows))
    )


def shares_for(count: int) -> tuple[float, ...]:
    """Return which shares of the passages to tune for: all, a tenth, and the least not exact."""
    least = vectors.AMONG_UP_TO / count
    wide = (1.0, vectors.NARROW)
    return (*wide, round(least, 4)) if least < vectors.NARROW else wide


def _tuned(index: Any, rows: Floats, queries: Floats, share: float, mask: Mask) -> Probing:
    allowed = Allowed(mask) if share < 1 else None
    kept = rows if allowed is None else rows[allowed.numbers]
    _, nearest = faiss.knn(queries, kept, DEPTH, faiss.METRIC_INNER_PRODUCT)
    nearest = nearest if allowed is None else allowed.numbers[nearest]
    lists = LEAST_LISTS
    while True:
        _, found = Vectors(index, rows).probed(queries, DEPTH, lists, allowed)
        recall = recall_of(found, nearest)
        if recall >= TARGET_RECALL or lists >= index.nlist:
            return Probing(share, lists, round(recall, 4))
        lists *= 2


def recall_of(found: Ids, nearest: Ids) -> float:
    """Return the mean share of each row of ``nearest`` that is in the row of ``found``."""
    hits = [len(np.intersect1d(one, other)) for one, other in zip(found, nearest, strict=True)]
    return float(np.mean(hits) / nearest.shape[1])


def _runs(count: int, share: float, random: np.random.Generator) -> Mask:
    return np.repeat(random.random(-(-count // RUN)) < share, RUN)[:count]


def _queries(rows: Floats, random: np.random.Generator) -> Floats:
    noise = random.normal(size=(QUERIES, rows.shape[1])).astype(np.float32)
    faiss.normalize_L2(noise)
    made = rows[np.sort(random.choice(len(rows), QUERIES))] + NOISE * noise
    faiss.normalize_L2(made)
    return np.asarray(made, np.float32)


def _sample(rows: Floats, count: int) -> Floats:
    if count >= len(rows):
        return np.ascontiguousarray(rows)
    chosen = np.random.default_rng(_SEED).choice(len(rows), count, replace=False)
    return np.ascontiguousarray(rows[np.sort(chosen)])
