"""Word overlap of a question with sentences: BM25 over stems.

Pure text: knows neither an index nor an LLM. Robertson and Zaragoza (2009), *The Probabilistic
Relevance Framework: BM25 and Beyond*, k1 1.2, b 0.75.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import log

WORD = re.compile(r"[^\W_]+(?:['’.\-/][^\W_]+)*")
_ENDING = re.compile(r"(?<=\w{3})(?:ies|es|s|ed|ing)$")
_K1, _B = 1.2, 0.75


def words(text: str) -> list[str]:
    """Return the words of a text in order."""
    return WORD.findall(text)


def stems(text: str) -> list[str]:
    """Return the lower-cased words with the commonest English endings cut off."""
    return [_ENDING.sub("", word.lower()) for word in words(text)]


class Overlap:
    """Scores sentences against questions; how rare a word is, is counted in ``sentences``."""

    def __init__(self, sentences: Iterable[str]) -> None:
        """Count the words of ``sentences``."""
        counted = [stems(sentence) for sentence in sentences]
        self._holding = Counter(stem for found in counted for stem in set(found))
        self._count = len(counted)
        self._mean = sum(map(len, counted)) / max(1, len(counted))

    def scores(self, question: str, sentences: Sequence[str]) -> list[float]:
        """Return the BM25 score of each sentence for a question."""
        asked = set(stems(question))
        return [self._score(asked, Counter(stems(sentence))) for sentence in sentences]

    def covered(self, question: str, sentence: str) -> float:
        """Return the share, 0 to 1, of a question's words that a sentence has, rare ones more."""
        asked = set(stems(question))
        whole = sum(map(self._rarity, asked))
        held = sum(self._rarity(stem) for stem in asked & set(stems(sentence)))
        return held / whole if whole else 0.0

    def _score(self, asked: set[str], found: Counter[str]) -> float:
        length = _K1 * (1 - _B + _B * found.total() / max(self._mean, 1e-9))
        return sum(
            self._rarity(stem) * found[stem] * (_K1 + 1) / (found[stem] + length)
            for stem in asked & found.keys()
        )

    def _rarity(self, stem: str) -> float:
        count = self._holding[stem]
        return log(1 + (self._count - count + 0.5) / (count + 0.5))
