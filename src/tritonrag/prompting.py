"""From a question and passages to the prompt that the LLM reads.

Pure text: knows neither Triton nor an engine. The chat template and the token counts come from
the caller, so the same code builds the training prompts of the demo LLM and those of the server.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Any

from tritonrag.contract import (
    MAX_HISTORY_BYTES,
    MAX_PASSAGE_BYTES,
    MAX_PASSAGES_BYTES,
)
from tritonrag.errors import InvalidRequest
from tritonrag.graph.escaping import Escape, escape
from tritonrag.overlap import Overlap
from tritonrag.quoting import REFUSAL, mark, numbered, pointed, pointer, readable, sentences

SYSTEM = (
    "Answer the question from the numbered passages alone. "
    "After each sentence put the mark of the passage it comes from, such as [1]. "
    f"If the passages do not answer the question, write: {REFUSAL}"
)
"""The system message of every grounded prompt."""

NOTHING_FOUND = (
    "Nothing is indexed that could answer this. "
    "Add documents with `tritonrag index add PATH`, or widen the filter."
)
"""The answer when retrieval returned no passage: no LLM is asked."""

SHORTLIST = 6
"""Most sentences named as sharing words with the question."""

PASSAGE_SHARE = 0.3
"""Of the best score in a passage, what each of its sentences gets: an answer often stands beside
the sentence that names what was asked for."""

CHARS_PER_TOKEN = 32
"""More than a token of any prompt has on average: a longer text fits no context, uncounted."""

MAX_HEADING_CHARS = 1000
"""Most of a passage's heading that an LLM or a reranker reads."""

CITATION_FIELDS = frozenset({"mark", "dropped", "cut", "spans"})
"""What a citation has beyond its passage, and no passage may bring with it."""

Message = dict[str, str]


def user_message(question: str, passages: Sequence[tuple[str, str]], pointers: int = 0) -> str:
    """Return the user message for ``(heading, text)`` passages, numbered from 1, best first.

    No text has a blank line, so that none begins a passage of its own.

    For an LLM with ``pointers`` (:mod:`tritonrag.quoting`) each sentence stands between its own,
    and the question comes last alone, so that in training one reading serves many questions. After
    it stand the pointers of the sentences that share most words with it.
    """
    if not pointers:
        asked = f"Question: {' '.join(question.split())}"
        shown = [(" ".join(heading.split()), _without_blank_lines(t)) for heading, t in passages]
        return "\n\n".join([asked, *_numbered(shown), asked])
    found = [sentences(text) for _, text in passages]
    headings = [readable(heading) for heading, _ in passages]
    return pointed_message(readable(question), headings, found, pointers)


def pointed_message(
    question: str, headings: Sequence[str], passages: Sequence[Sequence[str]], pointers: int
) -> str:
    """Return the user message for an LLM with pointers, of passages split into sentences."""
    texts = pointed(passages, pointers)
    shown = _numbered(list(zip(headings, texts, strict=True)))
    fresh = [[sentence for number, sentence in found if number] for found in numbered(passages)]
    return "\n\n".join([*shown, asked_last(question, fresh, Overlap(chain(*fresh)), pointers)])


def asked_last(
    question: str, passages: Sequence[Sequence[str]], overlap: Overlap, pointers: int
) -> str:
    """Return the question, then the pointers of the sentences that share most words with it.

    They come best first, each with the share of the question's words that it has, in tenths; the
    best sentence of its passage counts a little. Counting words is a small LLM's weakness and costs
    code nothing; what they mean is left to it.
    """
    found = list(chain(*passages))
    own = overlap.scores(question, found)
    scores: list[float] = []
    for passage in passages:
        of_passage = own[len(scores) : len(scores) + len(passage)]
        scores += [score + PASSAGE_SHARE * max(of_passage) for score in of_passage]
    ranked = sorted(range(len(found)), key=lambda place: -scores[place])[:SHORTLIST]
    tenths = [min(9, int(10 * overlap.covered(question, found[place]))) for place in ranked]
    listed = "".join(
        f"{pointer(min(place + 1, pointers - 1))}{tenth}"
        for place, tenth in zip(ranked, tenths, strict=True)
        if scores[place] > 0
    )
    return f"Question: {question}\nShared words: {listed or 'none'}"


def _numbered(passages: Iterable[tuple[str, str]]) -> list[str]:
    return [
        f"{mark(number)} {heading}: {text.strip()}" if heading else f"{mark(number)} {text.strip()}"
        for number, (heading, text) in enumerate(passages, start=1)
    ]


def _without_blank_lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())


def messages(user: str, history: Sequence[Message] = ()) -> list[Message]:
    """Return the chat messages: system, earlier turns, then the user message."""
    return [
        {"role": "system", "content": SYSTEM},
        *history,
        {"role": "user", "content": user},
    ]


def parse_history(text: str) -> list[Message]:
    """Return the earlier turns in ``text``, a JSON list of ``{"role", "content"}``.

    What else a turn holds is left out: a chat template might show it.

    Raises:
        InvalidRequest: it is too long, not JSON, or not such a list.
    """
    if len(text.encode()) > MAX_HISTORY_BYTES:
        raise InvalidRequest(f"history: over {MAX_HISTORY_BYTES} bytes; send fewer turns")
    turns = _from_json("history", text)
    if not isinstance(turns, list) or not all(map(_is_turn, turns)):
        raise InvalidRequest(
            'history: expected a JSON list of {"role": "user" or "assistant", "content": "…"}'
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def parse_passages(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the passages in JSON ``texts``, empty strings (padding) left out.

    Raises:
        InvalidRequest: they are too long, or one is not a JSON object with a ``text``.
    """
    sizes = [len(text.encode()) for text in texts]
    if max(sizes, default=0) > MAX_PASSAGE_BYTES:
        raise InvalidRequest(
            f"passages: one is {max(sizes)} bytes, at most {MAX_PASSAGE_BYTES}; cut its text"
        )
    if sum(sizes) > MAX_PASSAGES_BYTES:
        raise InvalidRequest(
            f"passages: {sum(sizes)} bytes together, at most {MAX_PASSAGES_BYTES}; send fewer"
        )
    return [_passage(text) for text in texts if text]


@dataclass(frozen=True)
class Prompt:
    """A prompt and the citations it was built from, as in the contract."""

    text: str
    citations: list[dict[str, Any]]


@dataclass(frozen=True)
class PromptBuilder:
    """Builds prompts that fit the LLM's context.

    ``render`` turns chat messages into the prompt, ``count_tokens`` counts its tokens,
    ``context_tokens`` is the LLM's context and ``answer_tokens`` what is kept free for the answer.
    ``pointers`` is how many the LLM has, ``escape`` what keeps the texts of question, passages and
    history from being read as anything else (:mod:`tritonrag.graph.escaping`).
    """

    render: Callable[[list[Message]], str]
    count_tokens: Callable[[str], int]
    context_tokens: int
    answer_tokens: int
    pointers: int = 0
    escape: Escape = escape

    def build(
        self, question: str, passages: Sequence[dict[str, Any]], history: Sequence[Message] = ()
    ) -> Prompt:
        """Return the prompt for ``passages``, best first.

        The lowest ranked that do not fit are named in the citations with ``"dropped": "context"``.
        To keep the best one, the oldest turns go; a best one that alone is too long is read as far
        as it fits, and its citation holds just that, with ``"cut": "context"``.

        No passages give an empty prompt and no citations.

        Raises:
            InvalidRequest: the question alone leaves no room for a passage.
        """
        if not passages:
            return Prompt("", [])
        # Rendering is tried several times: each text is escaped once.
        return replace(self, escape=cache(self.escape))._built(question, passages, history)

    def _built(
        self, question: str, passages: Sequence[dict[str, Any]], history: Sequence[Message]
    ) -> Prompt:
        question = self.escape(question)
        history = [{**turn, "content": self.escape(turn["content"])} for turn in history]
        whole = "" if self._too_long(passages) else self._render(question, passages, history)
        if whole and self._fits(whole):  # as nearly always
            return Prompt(whole, _kept(passages))
        passages = [self._fitting(question, passages[0]), *passages[1:]]
        turns = self._recent(question, passages[:1], history)
        # Tokens grow with passages: find the most that fit without rendering every count.
        over = bisect_left(
            range(1, len(passages) + 1),
            True,
            key=lambda kept: (
                self._too_long(passages[:kept])
                or not self._fits(self._render(question, passages[:kept], turns))
            ),
        )
        text = self._render(question, passages[:over], turns)
        dropped = [{"mark": None, "dropped": "context", **passage} for passage in passages[over:]]
        return Prompt(text, _kept(passages[:over]) + dropped)

    def _fitting(self, question: str, passage: dict[str, Any]) -> dict[str, Any]:
        """Return the best passage, cut after the last word that fits beside the question."""

        def fits(length: int) -> bool:
            return self._fits(self._render(question, [{**passage, "text": text[:length]}], ()))

        text = str(passage["text"])
        if not self._too_long([passage]) and fits(len(text)):
            return passage
        text = text[: self._room * CHARS_PER_TOKEN]
        # From short lengths on: escaping and counting take as long as what they are given.
        over = max(1, self._room)
        while over < len(text) and fits(over):
            over *= 2
        lengths = range(1, min(over, len(text)))
        most = bisect_left(lengths, True, key=lambda length: not fits(length))
        words = text[:most].rsplit(maxsplit=1)
        cut = words[0] if len(words) > 1 else text[:most]
        if not cut.strip():
            raise InvalidRequest(
                f"question: leaves no room for a passage in the LLM's context of "
                f"{self.context_tokens} tokens, {self.answer_tokens} of them for the answer; "
                "shorten it"
            )
        return {**passage, "text": cut, "cut": "context"}

    def _recent(
        self, question: str, best: Sequence[dict[str, Any]], history: Sequence[Message]
    ) -> list[Message]:
        """Return the latest turns that fit, from a user's on: templates want roles to alternate."""
        later = [number for number, turn in enumerate(history) if number and turn["role"] == "user"]
        starts = sorted({0, *later, len(history)})
        found = bisect_left(
            starts,
            True,
            key=lambda start: self._fits(self._render(question, best, history[start:])),
        )
        return list(history[starts[min(found, len(starts) - 1)] :])

    def _render(
        self, question: str, passages: Sequence[dict[str, Any]], history: Sequence[Message]
    ) -> str:
        pairs = [
            (self.escape(heading(passage)), self.escape(str(passage["text"])))
            for passage in passages
        ]
        return self.render(messages(user_message(question, pairs, self.pointers), history))

    @property
    def _room(self) -> int:
        return self.context_tokens - self.answer_tokens

    def _too_long(self, passages: Iterable[dict[str, Any]]) -> bool:
        """Return whether texts are so long that they need not be tokenized to be counted."""
        return sum(len(str(each["text"])) for each in passages) > self._room * CHARS_PER_TOKEN

    def _fits(self, text: str) -> bool:
        return self.count_tokens(text) <= self._room


def _kept(passages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"mark": number, **passage} for number, passage in enumerate(passages, 1)]


def heading(passage: dict[str, Any]) -> str:
    """Return what a passage is headed with in the prompt: its location, or else its title.

    It is cut after ``MAX_HEADING_CHARS``.
    """
    return str(passage.get("location") or passage.get("title") or "")[:MAX_HEADING_CHARS]


def _passage(text: str) -> dict[str, Any]:
    passage = _from_json("passages", text)
    if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
        raise InvalidRequest(
            'passages: expected JSON objects with a "text", as `search` gives them'
        )
    return {name: value for name, value in passage.items() if name not in CITATION_FIELDS}


def _from_json(name: str, text: str) -> Any:
    try:
        value = json.loads(text)
        # Python also reads NaN and infinity, which are not JSON, and half of an escaped surrogate
        # pair, which is not text: no tokenizer takes it.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name}: not JSON in UTF-8 ({error})") from error
    return value


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and turn.get("role") in ("user", "assistant")
        and isinstance(turn.get("content"), str)
    )
