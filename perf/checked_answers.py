"""Questions with the answers they get alone, and whether a later answer can only be that one.

For the programs of this folder that put load on a server and look at every answer. The answers that
are kept all differ, so that a crossed one cannot pass.

A search belongs to its question if its scores are those of the serial one within the precision of
arithmetic in another batch, and no passage is missing that was clear of the last rank by more than
that. So do the citations of an answer; its text (greedy, quoting) has to be made of sentences of
these citations alone. Mostly it is the serial answer word for word; where two sentences are as
good as equally likely, arithmetic in another batch may choose the other one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_server import Served, say

from tritonrag.artifacts import EmbedderManifest
from tritonrag.client import Answer, AsyncClient, Passage, SearchResult
from tritonrag.contract import MAX_QUESTION_BYTES, MAX_TOP_K
from tritonrag.errors import InvalidRequest, NotFound, TritonragError
from tritonrag.quoting import REFUSAL, quotes

QUESTIONS = Path(__file__).parent / "workloads" / "questions.json"
TOP_KS = (1, 4, 10)
SEARCH_CASES, ASK_CASES = 96, 16
MAX_TOKENS = 64
SCORE_TOLERANCE = {"fp32": 1e-3}
"""By the embedder's precision; other than fp32, quantised activations depend on the batch."""
LOOSE_TOLERANCE = 0.03


@dataclass(frozen=True)
class SearchCase:
    """A search and what it found alone."""

    question: str
    top_k: int
    expected: SearchResult


@dataclass(frozen=True)
class AskCase:
    """A question to ``rag`` and its answer alone."""

    question: str
    expected: Answer


@dataclass(frozen=True)
class BadRequest:
    """A request that has to be refused with ``error``, whose message holds ``names``."""

    options: dict[str, Any]
    error: type[TritonragError]
    names: str


BAD_REQUESTS = (
    BadRequest({"question": " \n\t"}, InvalidRequest, "question"),
    BadRequest({"question": "x" * (MAX_QUESTION_BYTES + 1)}, InvalidRequest, "question"),
    BadRequest({"top_k": 0}, InvalidRequest, "top_k"),
    BadRequest({"top_k": MAX_TOP_K + 1}, InvalidRequest, "top_k"),
    BadRequest({"collection": "no-such-collection"}, NotFound, "no-such-collection"),
    BadRequest({"filter": '{"source": '}, InvalidRequest, "filter"),
    BadRequest({"filter": '["source"]'}, InvalidRequest, "filter"),
)


@dataclass(frozen=True)
class Cases:
    """What is asked, with the answers that were given alone."""

    searches: Sequence[SearchCase]
    asks: Sequence[AskCase]
    tolerance: float


async def asked_alone(
    each: Served, client: AsyncClient, searches_of: int = SEARCH_CASES, asks_of: int = ASK_CASES
) -> Cases:
    """Ask so many questions once, alone, and keep those that have an answer of their own."""
    say("asking every question alone …")
    texts = [step["question"]["content"][0] for step in json.loads(QUESTIONS.read_text())["data"]]
    searches: dict[Any, SearchCase] = {}
    for question, top_k in zip(texts[:searches_of], itertools.cycle(TOP_KS), strict=False):
        found = await client.search(question, top_k=top_k)
        searches.setdefault(named(found), SearchCase(question, top_k, found))
    asks: dict[Any, AskCase] = {}
    for question in texts[:asks_of]:
        answer = await asked(client, question)
        asks.setdefault(named(answer.citations), AskCase(question, answer))
    precision = EmbedderManifest.load(each.repository).precision
    tolerance = SCORE_TOLERANCE.get(precision, LOOSE_TOLERANCE)
    return Cases(list(searches.values()), list(asks.values()), tolerance)


async def asked(client: AsyncClient, question: str) -> Answer:
    """Return the answer of ``rag`` to a question, held to quotes."""
    stream = client.ask(question, grounding="quote", max_tokens=MAX_TOKENS)
    return await stream.read()


def same_passages(found: Sequence[Passage], expected: Sequence[Passage], tolerance: float) -> bool:
    """Return whether ``found`` can only be what was ``expected``, found in another batch."""
    if len(found) != len(expected):
        return False
    pairs = zip(found, expected, strict=True)
    close = all(abs(one.score - other.score) <= tolerance for one, other in pairs)
    last = expected[-1].score + tolerance if expected else 0.0
    clear = {passage.id for passage in expected if passage.score > last}
    return close and clear <= {passage.id for passage in found}


def quotes_only(answer: Answer) -> bool:
    """Return whether the text is made of quotes of the answer's own citations, or the refusal.

    What the limit of tokens cut off has to be the beginning of one.
    """
    kept = ((citation.mark, citation.text) for citation in answer.citations)
    allowed = [REFUSAL, *quotes((mark, text) for mark, text in kept if mark)]
    rest = answer.text
    while rest:
        quote = next((each for each in allowed if rest.startswith(each)), None)
        if quote is None:
            cut = answer.finish_reason == "length"
            return cut and any(each.startswith(rest) for each in allowed)
        rest = rest[len(quote) :].lstrip()
    return bool(answer.text)


def wrong_answer(case: AskCase, answer: Answer, tolerance: float) -> str:
    """Return what shows that ``answer`` belongs to another question, or ""."""
    if not same_passages(answer.citations, case.expected.citations, tolerance):
        return f"crossed citations: {case.question!r} {named(answer.citations)}"
    if not quotes_only(answer):
        return f"crossed answer: {case.question!r} got {answer.text!r}"
    return ""


def named(passages: Iterable[Passage]) -> str:
    """Return the ids and scores of passages, for comparing and for messages."""
    return ", ".join(f"{passage.id} {passage.score:.2f}" for passage in passages)
