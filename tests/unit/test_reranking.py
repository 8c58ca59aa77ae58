"""Ordering by a cross-encoder, with a function in place of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tritonrag.errors import InternalError
from tritonrag.reranking import (
    BatchLimits,
    Candidates,
    PairTokenizer,
    Ranked,
    Reranker,
    activated,
    batches,
    pair_text,
)

WORDS = ("[UNK]", "[SEP]", "[PAD]", "q", "r", "a", "b", "c", "nan")
LIMITS = BatchLimits(pairs=3, tokens=64)


class Model:
    """Scores a pair by the ids of its passage's words, and remembers the shapes it saw."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, ids: Any, mask: Any, types: Any) -> Any:
        assert ids.shape == mask.shape == types.shape
        assert (ids[mask == 0] == WORDS.index("[PAD]")).all()
        self.shapes.append(ids.shape)
        scores = (ids * mask * types).sum(1).astype(np.float32)
        return np.where((ids == WORDS.index("nan")).any(1), np.nan, scores)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A:0 [SEP]:0 $B:1", special_tokens=[("[SEP]", 1)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def reranker(tokenizer: Path, model: Model) -> Reranker:
    return Reranker(PairTokenizer(tokenizer, 40), model, "identity", LIMITS)


def candidates(*texts: str, question: str = "q", top_k: int = 9) -> Candidates:
    passages = [{"id": str(n), "text": text, "score": 0.5} for n, text in enumerate(texts)]
    return Candidates(question, passages, top_k)


def ids_of(answer: Ranked | InternalError) -> list[str]:
    assert isinstance(answer, Ranked)
    return [json.loads(passage)["id"] for passage in answer.passages]


def test_the_best_come_first_with_both_scores(reranker: Reranker) -> None:
    (answer,) = reranker.rerank([candidates("a", "c c", "b", top_k=2)])

    assert isinstance(answer, Ranked)
    assert [json.loads(passage) for passage in answer.passages] == [
        {"id": "1", "text": "c c", "score": 14.0, "retrieval_score": 0.5},
        {"id": "2", "text": "b", "score": 6.0, "retrieval_score": 0.5},
    ]
    assert answer.scores.tolist() == [14.0, 6.0]


def test_equal_passages_keep_the_order_they_came_in(reranker: Reranker) -> None:
    (answer,) = reranker.rerank([candidates("a", "b", "a", "b")])

    assert ids_of(answer) == ["1", "3", "0", "2"]


def test_pairs_of_all_questions_are_scored_together(reranker: Reranker, model: Model) -> None:
    many = [candidates("a", "b"), candidates(), candidates("b", "c", "a", question="r", top_k=1)]
    answers = reranker.rerank(many)

    assert [ids_of(answer) for answer in answers] == [["1", "0"], [], ["1"]]
    assert model.shapes == [(3, 16), (2, 16)]


def test_scores_do_not_depend_on_the_batch(tokenizer: Path) -> None:
    texts = ["a " * n + "b" for n in (1, 30, 3, 17, 60, 2)]
    pairs = [("q", text) for text in texts]
    found = [
        Reranker(PairTokenizer(tokenizer, 40), Model(), "identity", limits).logits(pairs)
        for limits in (BatchLimits(1, 16), BatchLimits(4, 64), BatchLimits(99, 9999))
    ]
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()


def test_special_tokens_in_a_text_are_text(tokenizer: Path) -> None:
    made = Tokenizer.from_file(str(tokenizer))
    made.add_special_tokens(["[SEP]"])
    made.save(str(tokenizer))

    (pair,) = PairTokenizer(tokenizer, 40).encode([("q [SEP] a", "[SEP]b")])

    assert pair.ids.count(WORDS.index("[SEP]")) == 1


def test_a_long_pair_is_cut_where_its_longer_text_ends(tokenizer: Path) -> None:
    pairs = PairTokenizer(tokenizer, 20)
    (encoding,) = pairs.encode([("q r", "a " * 100)])

    assert [WORDS[number] for number in encoding.ids[:4]] == ["q", "r", "[SEP]", "a"]
    assert len(encoding.ids) == 20
    ids, _, _ = pairs.pad([encoding])
    assert ids.shape == (1, 20), "padding must not lead past the last position"


def test_a_score_that_is_no_number_fails_its_own_question(reranker: Reranker) -> None:
    bad, good = reranker.rerank([candidates("a", "nan"), candidates("a")])

    assert isinstance(bad, InternalError)
    assert "--precision fp32" in str(bad)
    assert ids_of(good) == ["0"]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([5], [[0]]),
        ([9, 3, 7, 5], [[1, 3, 2], [0]]),  # at most three pairs
        ([30, 31, 32], [[0, 1], [2]]),  # at most 64 tokens with padding
        ([200, 10], [[1], [0]]),  # one that is over the limit by itself
    ],
)
def test_batches(lengths: list[int], expected: list[list[int]]) -> None:
    assert list(batches(lengths, LIMITS)) == expected


def test_sigmoid_takes_any_logit() -> None:
    logits = np.array([-1000, -2, 0, 2, 1000], np.float32)
    scores = activated(logits, "sigmoid")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0, 0.1192, 0.5, 0.8808, 1], atol=1e-4)
    assert activated(logits, "identity").tolist() == logits.tolist()


def test_order_is_by_logit_where_scores_round_to_one(tokenizer: Path, model: Model) -> None:
    reranker = Reranker(PairTokenizer(tokenizer, 40), model, "sigmoid", LIMITS)
    (answer,) = reranker.rerank([candidates("c " * 9, "c " * 10)])

    assert isinstance(answer, Ranked)
    assert answer.scores.tolist() == [1.0, 1.0]
    assert ids_of(answer) == ["1", "0"]


def test_a_passage_is_read_as_it_was_embedded() -> None:
    assert pair_text({"text": "t", "location": "Leave > Days", "title": "x"}) == "Leave > Days\nt"
    assert pair_text({"text": "t", "title": "x"}) == "x\nt"
    assert pair_text({"text": "t"}) == "t"
