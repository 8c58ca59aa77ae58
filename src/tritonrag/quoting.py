"""Sentences of a passage, and the grammar that holds an answer to them.

With ``grounding=quote`` the decoder may only write one to three whole sentences of the passages,
each followed by the mark of its passage, or the fixed refusal. Whatever the model's size, the
answer is then verbatim from a source: runs of white space count as one space, and what could pass
for a mark is escaped (:mod:`tritonrag.graph.escaping`), so that a quoted ``[2]`` reads ``(2)``.

An LLM may know *pointers*: special tokens, one on either side of each sentence of its prompt, which
never show in an answer. It then writes a sentence's pointer before the sentence, so that one token
chooses among whole sentences and the grammar forces the rest. Without them the choice falls piece
by piece, at the first word of several sentences, before any of them has been read to its end.

This module knows neither Triton nor an engine: it turns citations into a Lark grammar as read by
llguidance, which ONNX Runtime GenAI embeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

from sentencex import segment

from tritonrag.contract import MAX_QUOTED_BYTES, MAX_QUOTED_SENTENCES
from tritonrag.errors import InvalidRequest
from tritonrag.graph.escaping import unmarked, without_controls

REFUSAL = "The documents do not say."
"""The one sentence of an answer that is not from a document."""

MAX_QUOTES = 3
"""Most sentences in one answer."""

MAX_SENTENCE_CHARS = 400
"""A longer sentence is cut at a clause or word boundary: text without sentence ends (tables, code,
logs) must still give a quote of readable length."""

KEPT_TEXTS = 2048
"""Texts whose sentences are kept; with 2,000 characters each they take about 10 MB."""

SEGMENT_CHARS = 4000
"""Longest text that is split into sentences at once: of some, such as one of opening quotation
marks alone, it takes time in proportion to the square of the length."""

_PART_END = re.compile(r"\n|[.!?]\s|[。！？]")

_CLAUSE_END = re.compile(r"[;:,\u3001\uff0c\uff1b\u060c\u061b](?!\d)\s*|\s+")
"""Where a long sentence may be cut; never inside a number or a time (``25,000``, ``10:30``)."""

_NO_FORCING = '%llguidance {"no_forcing": true}'
"""Without it, ONNX Runtime GenAI 0.18 asks its tokenizer for half a character where the grammar
leaves one choice, gets the tokens of U+FFFD and fails (docs/log.md)."""

_OPENINGS, _AFTER_QUOTE = (("\n", ""), (":", " ")), (("]", " "),)
"""What may stand before a quote, and the space between: tokens depend on it."""

Encode = Callable[[str], Sequence[int]]
"""Text to the token ids of the LLM, without special tokens."""


def sentences(text: str) -> list[str]:
    """Split ``text`` into :func:`readable` sentences, without those of no letter or digit.

    Splitting is by Wikimedia's ``sentencex``; its English rules also end sentences at the full
    stops of Chinese, Japanese and Arabic, so that no language needs to be detected. What was split
    last is kept: the same passages come again and again.
    """
    return list(_sentences(text))


@lru_cache(maxsize=KEPT_TEXTS)
def _sentences(text: str) -> tuple[str, ...]:
    parts = chain.from_iterable(segment("en", part) for part in _parts(text))
    pieces = chain.from_iterable(_cut(readable(piece)) for piece in parts)
    return tuple(sentence for sentence in pieces if any(char.isalnum() for char in sentence))


def _parts(text: str) -> Iterator[str]:
    """Yield a text in parts that can be split at once, cut where a sentence or a word may end."""
    start = 0
    while len(text) - start > SEGMENT_CHARS:
        stop = start + SEGMENT_CHARS
        ends = [match.end() for match in _PART_END.finditer(text, start, stop)]
        end = ends[-1] if ends else text.rfind(" ", start + 1, stop)
        end = end if end > start else stop
        yield text[start:end]
        start = end
    yield text[start:]


def mark(number: int) -> str:
    """Return the citation mark of passage ``number``, such as ``[1]``."""
    return f"[{number}]"


def pointer(number: int) -> str:
    """Return the pointer of sentence ``number`` of a prompt, counted from 1; 0 is the refusal's.

    It is made of control characters, which :func:`readable` takes out of all other text, so that
    nothing in a document or a question can pass for one.
    """
    return f"\x02{number}\x03"


def quotes(citations: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield every allowed quote, ``sentence [n]``, of ``(mark number, passage text)`` pairs.

    A sentence that stands in several passages is quoted from the first (best ranked) one.
    """
    pairs = [(mark(number), sentences(text)) for number, text in citations]
    for (cited, _), found in zip(pairs, numbered(found for _, found in pairs), strict=True):
        yield from (f"{sentence} {cited}" for number, sentence in found if number)


def pointed(passages: Iterable[Iterable[str]], pointers: int) -> Iterator[str]:
    """Yield the text of each passage, given as sentences, with each sentence between two pointers.

    There are ``pointers`` of them, that of the refusal included; what comes after the last shares
    it. A sentence that stood before has none.
    """
    for found in numbered(passages):
        yield "".join(
            f"{sign} {sentence}{sign}"
            for sign, sentence in (
                (pointer(min(number, pointers - 1)) if number else "", sentence)
                for number, sentence in found
            )
        ).strip()


def numbered(passages: Iterable[Iterable[str]]) -> Iterator[list[tuple[int, str]]]:
    """Yield each passage's sentences with their numbers from 1 on; 0 for one that stood before."""
    seen: set[str] = set()
    for passage in passages:
        found = []
        for sentence in passage:
            fresh = sentence not in seen
            seen.add(sentence)
            found.append((len(seen) if fresh else 0, sentence))
        yield found


def quote_grammar(citations: Iterable[tuple[int, str]], encode: Encode, pointers: int = 0) -> str:
    """Return the Lark grammar of answers that only quote ``(mark number, passage text)`` pairs.

    It is written in the LLM's own token ids, as ``encode`` gives them for text without special
    tokens, so that an answer is always tokenised as in training. Where the LLM has no ``pointers``
    a leading space is allowed, since many tokenizers join it to the first word.

    Raises:
        InvalidRequest: there is more text or there are more sentences than a grammar is made of.
    """
    allowed = _allowed(list(citations))
    if pointers:
        ids = [encode(answer) for answer in pointed_answers(allowed, pointers)]
        return "\n".join([_NO_FORCING, *_in_order(ids[:-1]), f"refusal: {_any_of(ids[-1:])}"])
    refusal = _any_of(_spelled(encode, [REFUSAL], _OPENINGS))
    rules = [_NO_FORCING, f"refusal: {refusal}"]
    if not allowed:
        return "\n".join([*rules, "start: refusal"])
    return "\n".join([
        *rules,
        f"first: {_any_of(_spelled(encode, allowed, _OPENINGS))}",
        f"next: {_any_of(_spelled(encode, allowed, _AFTER_QUOTE))}",
        f"start: refusal | first next{{0,{MAX_QUOTES - 1}}}",
    ])  # fmt: skip


def check_size(citations: Iterable[tuple[int, str]]) -> None:
    """Check how much text citations have, before anything is done with it.

    Raises:
        InvalidRequest: there is more than a grammar is made of.
    """
    size = sum(len(text.encode()) for _, text in citations)
    if size > MAX_QUOTED_BYTES:
        raise _too_much(f"{size} bytes of text", f"{MAX_QUOTED_BYTES}")


def _allowed(citations: Sequence[tuple[int, str]]) -> list[str]:
    check_size(citations)
    allowed = list(quotes(citations))
    if len(allowed) > MAX_QUOTED_SENTENCES:
        raise _too_much(f"{len(allowed)} sentences", f"{MAX_QUOTED_SENTENCES}")
    return allowed


def _too_much(came: str, most: str) -> InvalidRequest:
    return InvalidRequest(
        f"citations: {came} to quote from, at most {most}; send fewer passages (top_k), or use "
        "grounding=free"
    )


def _in_order(quoted: Sequence[Sequence[int]]) -> Iterator[str]:
    """Yield the rules of up to ``MAX_QUOTES`` quotes, each at most once and in their order.

    ``from_2_5`` is one or two quotes of those from 5 on: 5 and perhaps one more, or none of 5.
    """
    last = len(quoted) - 1
    yield f"start: refusal | from_{MAX_QUOTES}_0" if quoted else "start: refusal"
    for number, ids in enumerate(quoted):
        yield f"quote_{number}: {_any_of([ids])}"
        for left in range(1, MAX_QUOTES + 1):
            more = f" from_{left - 1}_{number + 1}?" if left > 1 and number < last else ""
            later = f" | from_{left}_{number + 1}" if number < last else ""
            yield f"from_{left}_{number}: quote_{number}{more}{later}"


def pointed_answers(allowed: Sequence[str], pointers: int) -> list[str]:
    """Return what an LLM with pointers writes for each allowed quote and, last, for the refusal."""
    quoted = [
        f"{pointer(min(number, pointers - 1))} {quote}" for number, quote in enumerate(allowed, 1)
    ]
    return [*quoted, f"{pointer(0)} {REFUSAL}"]


def _any_of(spelled: Iterable[Sequence[int]]) -> str:
    return " | ".join(dict.fromkeys(" ".join(f"<[{id}]>" for id in ids) for ids in spelled))


def _spelled(
    encode: Encode, texts: Sequence[str], places: Sequence[tuple[str, str]]
) -> Iterator[Sequence[int]]:
    """Yield the tokens of ``texts`` as they are after each ``(before, space)``."""
    for before, space in places:
        for text in texts:
            yield _continuation(encode, before, space + text)


def _continuation(encode: Encode, before: str, text: str) -> Sequence[int]:
    """Return the tokens of ``text`` where it follows ``before``."""
    start, whole = encode(before), encode(before + text)
    apart = list(whole[: len(start)]) == list(start)
    return whole[len(start) :] if apart else encode(text)


def readable(text: str) -> str:
    """Collapse white space, drop control characters and take the brackets off numbers."""
    return unmarked(" ".join(without_controls(text).split()))


def _cut(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE_CHARS:
        found = [match.end() for match in _CLAUSE_END.finditer(sentence, 0, MAX_SENTENCE_CHARS + 1)]
        ends = [end for end in found if end <= MAX_SENTENCE_CHARS]
        end = ends[-1] if ends else MAX_SENTENCE_CHARS
        yield sentence[:end].strip()
        sentence = sentence[end:].strip()
    if sentence:
        yield sentence
