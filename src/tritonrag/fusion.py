"""Ranked lists into one, and a list into a better one: fused, diverse, without near-duplicates.

Pure: numbers and texts in, places and numbers out. Knows nothing of an index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from tritonrag.overlap import words

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

RRF_K = 60
"""How slowly a rank's weight falls; the value of Cormack et al. (2009)."""

ALIKE = 0.95
"""Share of the words that near-duplicates have in common."""

_NEGATIONS = frozenset(
    ("no", "not", "never", "none", "nor", "without")
    + ("nicht", "kein", "keine", "keinen", "keiner", "nie", "ohne")
)


def reciprocal_rank_fusion(rankings: Sequence[Ids]) -> tuple[Ids, Floats]:
    """Return the items of all rankings, best first, with their scores.

    Cormack, Clarke and Büttcher (2009), *Reciprocal Rank Fusion outperforms Condorcet and
    individual rank learning methods*: an item's score is the sum of 1 / (60 + rank) over the
    rankings that have it; here divided by the most possible, so that 1 is first everywhere. Items
    of equal score come in the order of the rankings.
    """
    items = np.concatenate(rankings)
    ranks = np.concatenate([np.arange(1, len(ranking) + 1) for ranking in rankings])
    unique, first, place = np.unique(items, return_index=True, return_inverse=True)
    most = len(rankings) / (RRF_K + 1)
    scores = np.bincount(place, 1 / (RRF_K + ranks), len(unique)) / most
    order = np.lexsort((first, -scores))
    return unique[order], scores[order].astype(np.float32)


def maximal_marginal_relevance(
    relevance: Floats, similarity: Floats, count: int, diversity: float
) -> list[int]:
    """Return the places of at most ``count`` items, chosen one by one.

    Carbonell and Goldstein (1998): next is the item with the most (1 - diversity) x relevance less
    diversity x its highest similarity to one already chosen.

    Args:
        relevance: ``[n]``.
        similarity: ``[n, n]``.
        count: items wanted.
        diversity: 0, by relevance alone, to 1.
    """
    chosen: list[int] = []
    left = np.ones(len(relevance), bool)
    nearest = np.zeros(len(relevance), np.float32)
    for _ in range(min(count, len(relevance))):
        value = (1 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(left, value, -np.inf)))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, similarity[best])
    return chosen


def near_duplicates(first: str, second: str) -> bool:
    """Return whether two texts say the same in the same words.

    They have 95 % of their words in common, and all numbers and negations: passages that differ in
    a figure are not duplicates.
    """
    one, other = _words(first), _words(second)
    if [word for word in one if _telling(word)] != [word for word in other if _telling(word)]:
        return False
    ours, theirs = Counter(one), Counter(other)
    common, all_words = (ours & theirs).total(), (ours | theirs).total()
    return common >= ALIKE * all_words if all_words else first == second


def joined(first: str, second: str) -> str:
    """Return two texts as one; what ends the first and begins the second is there once."""
    for length in range(min(len(first), len(second)), 0, -1):
        if first.endswith(second[:length]):
            return first + second[length:]
    return f"{first}\n{second}"


def _words(text: str) -> list[str]:
    return words(normalize("NFKC", text).casefold())


def _telling(word: str) -> bool:
    return word in _NEGATIONS or word.endswith(("n't", "n’t")) or any(map(str.isdigit, word))
