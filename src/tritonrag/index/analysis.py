"""Text to the terms that BM25 counts: words by their stem, Chinese and Japanese as bigrams.

English and German are stemmed by Snowball, a passage by the one whose stop words it uses more. A
question is often too short to tell: it gets the stems of both. Words of other languages stay whole.
Chinese and Japanese write no spaces: every two neighbouring characters are a term, which finds
words of two characters and longer without a dictionary.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import snowballstemmer
from bm25s.stopwords import STOPWORDS_GERMAN

from tritonrag.overlap import STOPWORDS as STOPWORDS_ENGLISH

VERSION = 1
"""Of the analysis: terms of another version do not match."""

ENGLISH, GERMAN = "english", "german"
_STOPWORDS = {ENGLISH: STOPWORDS_ENGLISH, GERMAN: frozenset(STOPWORDS_GERMAN)}
_SIGNS = {
    ENGLISH: STOPWORDS_ENGLISH,
    GERMAN: _STOPWORDS[GERMAN] - STOPWORDS_ENGLISH - {"man", "war", "die", "den", "bin", "hat"},
}
"""Words that tell the language: what is German and no word of English."""

_STEMMERS = {language: snowballstemmer.stemmer(language) for language in _STOPWORDS}
_LOCK = threading.Lock()
"""A stemmer holds the word that it works on."""

_UNSPACED = "々〇\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|[^\W_{_UNSPACED}]+")
_POSSESSIVE = re.compile(r"['’]s\b")


def passage_terms(text: str) -> list[str]:
    """Return the terms of a passage in order, each as often as it occurs."""
    words, bigrams = _words_and_bigrams(text)
    language = _language(words)
    return bigrams + [_stem(word, language) for word in words if word not in _STOPWORDS[language]]


def question_terms(text: str) -> list[str]:
    """Return the different terms of a question, stemmed as any language would."""
    words, bigrams = _words_and_bigrams(text)
    stems = (
        _stem(word, language)
        for word in words
        for language, stopwords in _STOPWORDS.items()
        if word not in stopwords
    )
    return list(dict.fromkeys([*bigrams, *stems]))


def _words_and_bigrams(text: str) -> tuple[list[str], list[str]]:
    words: list[str] = []
    bigrams: list[str] = []
    normal = _POSSESSIVE.sub("", unicodedata.normalize("NFKC", text).casefold())
    for run in _RUN.finditer(normal):
        if run["unspaced"]:
            bigrams.extend(_bigrams(run[0]))
        else:
            words.append(run[0])
    return words, bigrams


def _bigrams(run: str) -> Iterator[str]:
    if len(run) == 1:
        yield run
    for at in range(len(run) - 1):
        yield run[at : at + 2]


def _language(words: list[str]) -> str:
    counts = {name: sum(map(signs.__contains__, words)) for name, signs in _SIGNS.items()}
    return max(counts, key=counts.__getitem__)  # English where neither has more


@lru_cache(1 << 18)
def _stem(word: str, language: str) -> str:
    with _LOCK:
        # The German stemmer reads umlauts; English words are the same with an accent or without.
        stem: str = _STEMMERS[language].stemWord(word if language == GERMAN else _bare(word))
    return _bare(stem)


def _bare(word: str) -> str:
    """Return a word without accents."""
    if word.isascii():
        return word
    parts = unicodedata.normalize("NFKD", word)
    kept = "".join(each for each in parts if not unicodedata.combining(each))
    # Hangul is written in syllables: put together again what NFKD took apart.
    return unicodedata.normalize("NFC", kept)
