"""Word overlap of a question with sentences: BM25 over stems, stop words left out.

Pure text: knows neither an index nor an LLM. Robertson and Zaragoza (2009), *The Probabilistic
Relevance Framework: BM25 and Beyond*, k1 1.2, b 0.75; stems by Snowball's English stemmer, which
leaves words of other scripts as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import log

import snowballstemmer

WORD = re.compile(r"[^\W_]+(?:['’.\-/][^\W_]+)*")
_K1, _B = 1.2, 0.75
_STOPWORDS = """a about above after again all also although am an and any are as at be because been
before being below between both but by can cannot could did do does doing don down during each
either etc even every few for from further had has have having he her here hers him his how however
i if in into is it its itself just may me might more most much must my no nor not now of off on once
one only or other our out over own s same shall she should since so some such t than that the their
them then there these they this those though through thus to too under until up upon us use used
using very was we were what when where whether which while who whom whose why will with within
without would yet you your yours"""
STOPWORDS = frozenset(_STOPWORDS.split())


def words(text: str) -> list[str]:
    """Return the words of a text in order."""
    return WORD.findall(text)


def content_words(text: str) -> list[str]:
    """Return the words that carry meaning: no stop words, nothing of one letter."""
    return [word for word in words(text) if len(word) > 1 and word.lower() not in STOPWORDS]


@lru_cache(maxsize=1 << 14)
def stems(text: str) -> tuple[str, ...]:
    """Return the stems of the words that are not stop words, lower-cased, in order."""
    lowered = (word.lower() for word in words(text))
    return tuple(_stem(word) for word in lowered if word not in STOPWORDS)


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    # A stemmer holds the word it works on: one that threads share would mix words up.
    stemmed: str = snowballstemmer.stemmer("english").stemWord(word)
    return stemmed


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
