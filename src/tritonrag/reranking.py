"""The order of passages by a cross-encoder, which reads the question and a passage together.

Pairs of all questions are tokenized at once and scored in batches of similar length. Knows neither
Triton nor ONNX Runtime: the model itself is a function from token ids to logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from tritonrag.errors import InternalError
from tritonrag.prompting import CHARS_PER_TOKEN, heading
from tritonrag.tokenizing import PAD_MULTIPLE

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

Score = Callable[[Ids, Ids, Ids], Floats]
"""Token ids, attention mask and token types, all [pairs, length], to logits [pairs]."""

Passage = dict[str, Any]


@dataclass(frozen=True)
class Candidates:
    """A question, the passages found for it, best first, and how many of them are wanted."""

    question: str
    passages: list[Passage]
    top_k: int


@dataclass(frozen=True, eq=False)
class Ranked:
    """The passages wanted, best first: JSON objects in UTF-8, scores float32 ``[n]``."""

    passages: list[bytes]
    scores: Floats


@dataclass(frozen=True)
class BatchLimits:
    """What one run of the model takes at most: pairs, and tokens with padding."""

    pairs: int
    tokens: int


class PairTokenizer:
    """The tokenizer of a cross-encoder. Not thread-safe."""

    def __init__(self, file: Path, max_tokens: int) -> None:
        """Load ``tokenizer.json``; a longer pair is cut where its longer text ends."""
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")
        self._tokenizer.encode_special_tokens = True  # `[SEP]` in a text is text
        self._max_tokens = max_tokens
        known = map(self._tokenizer.token_to_id, ("[PAD]", "<pad>"))
        self._pad_id = next((each for each in known if each is not None), 0)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Encoding]:
        """Return the pairs in tokens, unpadded."""
        most = self._max_tokens * CHARS_PER_TOKEN  # what is cut off need not be tokenized first
        cut = [(question[:most], text[:most]) for question, text in pairs]
        encoded: list[Encoding] = self._tokenizer.encode_batch_fast(cut)
        return encoded

    def pad(self, encodings: Sequence[Encoding]) -> tuple[Ids, Ids, Ids]:
        """Return ids, mask and types [pairs, length], padded to one length."""
        longest = max(len(each.ids) for each in encodings)
        # Padding must not lead past the model's last position.
        width = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self._max_tokens)
        ids = np.full((len(encodings), width), self._pad_id, np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, each in enumerate(encodings):
            length = len(each.ids)
            ids[row, :length], mask[row, :length] = each.ids, 1
            types[row, :length] = each.type_ids
        return ids, mask, types


class Reranker:
    """Scores and orders the passages of many questions at once."""

    def __init__(
        self, tokenizer: PairTokenizer, score: Score, activation: str, limits: BatchLimits
    ) -> None:
        """Take the model as a function; ``activation`` is ``sigmoid`` or ``identity``."""
        self._tokenizer = tokenizer
        self._score = score
        self._activation = activation
        self._limits = limits

    def rerank(self, batch: Sequence[Candidates]) -> list[Ranked | InternalError]:
        """Return the best passages of each question, in the order of ``batch``.

        A question for which the model gave something else than numbers gets an error, alone.
        """
        pairs = [(each.question, pair_text(passage)) for each in batch for passage in each.passages]
        logits = self.logits(pairs)
        ends = np.cumsum([len(each.passages) for each in batch])[:-1]
        return [
            ranked(each, part, self._activation)
            for each, part in zip(batch, np.split(logits, ends), strict=True)
        ]

    def logits(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Return the logit of each pair of question and passage, float32 [pairs]."""
        encodings = self._tokenizer.encode(pairs)
        found = np.empty(len(pairs), np.float32)
        for rows in batches([len(each.ids) for each in encodings], self._limits):
            found[rows] = self._score(*self._tokenizer.pad([encodings[row] for row in rows]))
        return found


def pair_text(passage: Passage) -> str:
    """Return what the model reads of a passage: as the embedder, its heading, then its text."""
    title = heading(passage)
    return f"{title}\n{passage['text']}" if title else str(passage["text"])


def batches(lengths: Sequence[int], limits: BatchLimits) -> Iterator[list[int]]:
    """Yield the places of ``lengths`` (tokens of each pair), shortest first, in batches.

    A pair longer than ``limits.tokens`` makes a batch of its own.
    """
    rows: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = -(-lengths[place] // PAD_MULTIPLE) * PAD_MULTIPLE
        full = len(rows) == limits.pairs or (len(rows) + 1) * padded > limits.tokens
        if rows and full:
            yield rows
            rows = []
        rows.append(place)
    if rows:
        yield rows


def activated(logits: Floats, activation: str) -> Floats:
    """Return the scores of logits."""
    if activation == "identity":
        return logits
    with np.errstate(over="ignore"):  # e to the power of a large number is infinite: the score is 0
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def ranked(candidates: Candidates, logits: Floats, activation: str) -> Ranked | InternalError:
    """Return the wanted passages by falling logit; equal ones keep the order they came in."""
    if not np.isfinite(logits).all():
        return InternalError(
            "the reranker's score of a passage is no number; export it with more precision "
            "(export/reranker.py --precision fp32)"
        )
    # By the logits, since scores far from 0.5 round to the same number.
    order = np.argsort(-logits, kind="stable")[: candidates.top_k]
    scores = activated(logits[order], activation)
    passages = [
        _rescored(candidates.passages[place], score)
        for place, score in zip(order.tolist(), scores.tolist(), strict=True)
    ]
    return Ranked(passages, scores)


def _rescored(passage: Passage, score: float) -> bytes:
    """Return a passage as JSON with its new score; what it had becomes ``retrieval_score``."""
    before = {"retrieval_score": passage["score"]} if "score" in passage else {}
    return json.dumps(passage | {"score": round(score, 6)} | before, ensure_ascii=False).encode()
