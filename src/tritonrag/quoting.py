"""Sentences of a passage, and the grammar that holds an answer to them.

With ``grounding=quote`` the decoder may only write one to three whole sentences of the passages,
each followed by the mark of its passage, or the fixed refusal. Whatever the model's size, the
answer is then verbatim from a source (runs of white space count as one space).

This module knows neither Triton nor an engine: it turns citations into a Lark grammar as read by
llguidance, which ONNX Runtime GenAI embeds.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from sentencex import segment

REFUSAL = "The documents do not say."
"""The one sentence of an answer that is not from a document."""

MAX_QUOTES = 3
"""Most sentences in one answer."""

MAX_SENTENCE_CHARS = 400
"""A longer sentence is cut at a clause or word boundary: text without sentence ends (tables, code,
logs) must still give a quote of readable length."""

_CLAUSE_END = re.compile(r"[;:,\u3001\uff0c\uff1b\u060c\u061b](?!\d)\s*|\s+")
"""Where a long sentence may be cut; never inside a number or a time (``25,000``, ``10:30``)."""

_CONTROL = "Cc"
"""The Unicode category that no quote needs. Format characters stay: joiners make Persian words and
emoji families what they are."""


def sentences(text: str) -> list[str]:
    """Split ``text`` into sentences, white space collapsed, without those of no letter or digit.

    Splitting is by Wikimedia's ``sentencex``; its English rules also end sentences at the full
    stops of Chinese, Japanese and Arabic, so that no language needs to be detected.
    """
    found: list[str] = []
    for piece in segment("en", text):
        sentence = _readable(piece)
        found.extend(_cut(sentence))
    return [sentence for sentence in found if any(char.isalnum() for char in sentence)]


def mark(number: int) -> str:
    """Return the citation mark of passage ``number``, such as ``[1]``."""
    return f"[{number}]"


def quotes(citations: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield every allowed quote, ``sentence [n]``, of ``(mark number, passage text)`` pairs.

    A sentence that stands in several passages is quoted from the first (best ranked) one.
    """
    seen: set[str] = set()
    for number, text in citations:
        for sentence in sentences(text):
            if sentence not in seen:
                seen.add(sentence)
                yield f"{sentence} {mark(number)}"


def literal(text: str) -> str:
    """Return ``text`` as a Lark string literal; JSON's escapes are a subset of Lark's."""
    return json.dumps(text, ensure_ascii=False)


def quote_grammar(
    citations: Iterable[tuple[int, str]], spell: Callable[[str], str | None] = literal
) -> str:
    """Return the Lark grammar of answers that only quote ``(mark number, passage text)`` pairs.

    A leading space is allowed, since many tokenizers join it to the first word. ``spell`` writes a
    quote as Lark terminals where an engine needs more than a literal, or None where it cannot.
    """
    alternatives = " | ".join(filter(None, map(spell, quotes(citations))))
    if not alternatives:
        return f'start: " "? {literal(REFUSAL)}'
    return (
        f'start: " "? (answer | {literal(REFUSAL)})\n'
        f'answer: quote (" " quote){{0,{MAX_QUOTES - 1}}}\n'
        f"quote: {alternatives}"
    )


def _readable(text: str) -> str:
    """Collapse white space and drop control characters, which no quote needs."""
    kept = (char for char in text if char.isspace() or unicodedata.category(char) != _CONTROL)
    return " ".join("".join(kept).split())


def _cut(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE_CHARS:
        found = [match.end() for match in _CLAUSE_END.finditer(sentence, 0, MAX_SENTENCE_CHARS + 1)]
        ends = [end for end in found if end <= MAX_SENTENCE_CHARS]
        end = ends[-1] if ends else MAX_SENTENCE_CHARS
        yield sentence[:end].strip()
        sentence = sentence[end:].strip()
    if sentence:
        yield sentence
