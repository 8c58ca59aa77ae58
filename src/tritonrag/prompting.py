"""From a question and passages to the prompt that the LLM reads.

Pure text: knows neither Triton nor an engine. The chat template and the token counts come from
the caller, so the same code builds the training prompts of the demo LLM and those of the server.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from tritonrag.contract import MAX_HISTORY_BYTES
from tritonrag.errors import InvalidRequest
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

Message = dict[str, str]


def user_message(question: str, passages: Sequence[tuple[str, str]], pointers: int = 0) -> str:
    """Return the user message for ``(heading, text)`` passages, numbered from 1, best first.

    For an LLM with ``pointers`` (:mod:`tritonrag.quoting`) each sentence stands between its own,
    and the question comes last alone, so that in training one reading serves many questions. After
    it stand the pointers of the sentences that share most words with it.
    """
    if not pointers:
        asked = f"Question: {' '.join(question.split())}"
        return "\n\n".join([asked, *_numbered(passages), asked])
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


def messages(user: str, history: Sequence[Message] = ()) -> list[Message]:
    """Return the chat messages: system, earlier turns, then the user message."""
    return [
        {"role": "system", "content": SYSTEM},
        *history,
        {"role": "user", "content": user},
    ]


def chat_template(source: str, **special_tokens: str) -> Callable[[list[Message]], str]:
    """Return a function that renders messages with a Hugging Face chat template.

    ``special_tokens`` are the names a template may use (``bos_token``, ``eos_token``). Rendering is
    sandboxed as in ``transformers``, since a template comes with a downloaded model.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    template = environment.from_string(source)
    return lambda turns: template.render(
        messages=turns, add_generation_prompt=True, **special_tokens
    )


def parse_history(text: str) -> list[Message]:
    """Return the earlier turns in ``text``, a JSON list of ``{"role", "content"}``.

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
    return turns


def parse_passages(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Return the passages in JSON ``texts``, empty strings (padding) left out.

    Raises:
        InvalidRequest: one is not a JSON object with a ``text``.
    """
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
    ``pointers`` is how many the LLM has.
    """

    render: Callable[[list[Message]], str]
    count_tokens: Callable[[str], int]
    context_tokens: int
    answer_tokens: int
    pointers: int = 0

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
        whole = self._render(question, passages, history)
        if self._fits(whole):  # as nearly always
            return Prompt(whole, _kept(passages))
        passages = [self._fitting(question, passages[0]), *passages[1:]]
        turns = self._recent(question, passages[:1], history)
        # Tokens grow with passages: find the most that fit without rendering every count.
        over = bisect_left(
            range(1, len(passages) + 1),
            True,
            key=lambda kept: not self._fits(self._render(question, passages[:kept], turns)),
        )
        text = self._render(question, passages[:over], turns)
        dropped = [{"mark": None, "dropped": "context", **passage} for passage in passages[over:]]
        return Prompt(text, _kept(passages[:over]) + dropped)

    def _fitting(self, question: str, passage: dict[str, Any]) -> dict[str, Any]:
        """Return the best passage, cut after the last word that fits beside the question."""

        def fits(length: int) -> bool:
            return self._fits(self._render(question, [{**passage, "text": text[:length]}], ()))

        text = str(passage["text"])
        if fits(len(text)):
            return passage
        most = bisect_left(range(1, len(text)), True, key=lambda length: not fits(length))
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
        pairs = [(heading(passage), str(passage["text"])) for passage in passages]
        return self.render(messages(user_message(question, pairs, self.pointers), history))

    def _fits(self, text: str) -> bool:
        return self.count_tokens(text) <= self.context_tokens - self.answer_tokens


def _kept(passages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"mark": number, **passage} for number, passage in enumerate(passages, 1)]


def heading(passage: dict[str, Any]) -> str:
    """Return what a passage is headed with in the prompt: its location, or else its title."""
    return str(passage.get("location") or passage.get("title") or "")


def _passage(text: str) -> dict[str, Any]:
    passage = _from_json("passages", text)
    if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
        raise InvalidRequest(
            'passages: expected JSON objects with a "text", as `search` gives them'
        )
    return passage


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


def _raise(message: str) -> None:
    raise InvalidRequest(f"history: the LLM's chat template refuses it: {message}")
