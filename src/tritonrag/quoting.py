"""Sentences of a passage, and the grammar that holds an answer to them.

With ``grounding=quote`` the decoder may only write one to three whole sentences of the passages,
each followed by the mark of its passage, or the fixed refusal. Whatever the model's size, the
answer is then verbatim from a source (runs of white space count as one space).

This module knows neither Triton nor an engine: it turns citations into a Lark grammar as read by
llguidance, which ONNX Runtime GenAI embeds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

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

_NO_FORCING = '%llguidance {"no_forcing": true}'
"""Without it, ONNX Runtime GenAI 0.18 asks its tokenizer for half a character where the grammar
leaves one choice, gets the tokens of U+FFFD and fails (docs/log.md)."""

_OPENINGS, _AFTER_QUOTE = (("\n", ""), (":", " ")), (("]", " "),)
"""What may stand before a quote, and the space between: tokens depend on it."""

Encode = Callable[[str], Sequence[int]]
"""Text to the token ids of the LLM, without special tokens."""

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


def quote_grammar(citations: Iterable[tuple[int, str]], encode: Encode) -> str:
    """Return the Lark grammar of answers that only quote ``(mark number, passage text)`` pairs.

    It is written in the LLM's own token ids, as ``encode`` gives them for text without special
    tokens, so that an answer is always tokenised as in training. A leading space is allowed, since
    many tokenizers join it to the first word.
    """
    allowed = list(quotes(citations))
    refusal = _alternatives(encode, [REFUSAL], _OPENINGS)
    rules = [_NO_FORCING, f"refusal: {refusal}"]
    if not allowed:
        return "\n".join([*rules, "start: refusal"])
    return "\n".join([
        *rules,
        f"first: {_alternatives(encode, allowed, _OPENINGS)}",
        f"next: {_alternatives(encode, allowed, _AFTER_QUOTE)}",
        f"start: refusal | first next{{0,{MAX_QUOTES - 1}}}",
    ])  # fmt: skip


def _alternatives(encode: Encode, texts: Sequence[str], places: Sequence[tuple[str, str]]) -> str:
    """Return ``texts`` as alternatives, tokenised as they are after each ``(before, space)``."""
    spelled = (
        _continuation(encode, before, space + text) for before, space in places for text in texts
    )
    return " | ".join(dict.fromkeys(" ".join(f"<[{id}]>" for id in ids) for ids in spelled))


def _continuation(encode: Encode, before: str, text: str) -> Sequence[int]:
    """Return the tokens of ``text`` where it follows ``before``."""
    start, whole = encode(before), encode(before + text)
    apart = list(whole[: len(start)]) == list(start)
    return whole[len(start) :] if apart else encode(text)


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
