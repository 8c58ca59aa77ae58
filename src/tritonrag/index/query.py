"""What is asked of the index and what it answers. Knows neither FAISS nor a snapshot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonrag.contract import DEFAULT_COLLECTION, DEFAULT_TOP_K
from tritonrag.errors import InvalidRequest
from tritonrag.index.columns import EVERYONE, Groups
from tritonrag.index.filters import Filter
from tritonrag.limits import check_count, check_mode

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Query:
    """One question: ``embedding`` is float32 ``[dimension]``; ``filter`` None sets no condition.

    ``groups`` are those of the caller, by default none.
    ``question`` is its text, for the modes that count words. ``mode`` None is the collection's.
    ``min_score`` is the least cosine similarity, ``diversity`` how much a passage that is like
    those before it is put back (0 not at all), ``merge`` whether neighbours become one passage.
    ``snapshot`` is the name of the one to search, empty where it is the live one, whichever it is.
    """

    embedding: Floats
    collection: str = DEFAULT_COLLECTION
    top_k: int = DEFAULT_TOP_K
    filter: Filter | None = None
    groups: Groups = EVERYONE
    question: str = ""
    mode: str | None = None
    min_score: float = -1.0
    diversity: float = 0.0
    merge: bool = False
    snapshot: str = ""


@dataclass(frozen=True, eq=False)
class Result:
    """The passages of one query, best first: JSON objects in UTF-8, scores float32 ``[n]``."""

    passages: list[bytes]
    scores: Floats


def check_query(query: Query, dimension: int) -> None:
    """Check all of a query that needs no snapshot.

    Raises:
        InvalidRequest: a field is out of its range; the message names it and what is allowed.
    """
    check_count("top_k", query.top_k)
    check_mode("mode", query.mode)
    _check_range("min_score", query.min_score, -1.0)
    _check_range("diversity", query.diversity, 0.0)
    if query.embedding.shape != (dimension,):
        raise InvalidRequest(
            f"embedding: shape {list(query.embedding.shape)}, but the index has vectors of "
            f"[{dimension}]"
        )
    # Stored vectors are of length 1: where the square overflows, a score may.
    with np.errstate(over="ignore", invalid="ignore"):
        square: Any = query.embedding @ query.embedding
    if not np.isfinite(square):
        raise InvalidRequest(
            "embedding: holds a value that is not a finite number, or is far too large for an "
            "L2-normalised vector"
        )


def _check_range(name: str, value: float, low: float) -> None:
    if not (math.isfinite(value) and low <= value <= 1):
        raise InvalidRequest(f"{name}: {value:g} is not in {low:g} to 1")
