"""rerank with the fake of pb_utils and a reranker whose scores can be told by looking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pb_fake
import pytest
from tiny_artifacts import install_reranker

from tritonrag.errors import SetupError


@pytest.fixture
def reranker(tmp_path: Path) -> Path:
    install_reranker(tmp_path)
    return tmp_path


@pytest.fixture
def model(reranker: Path) -> Iterator[pb_fake.Served]:
    with pb_fake.loaded("rerank", reranker) as served:
        yield served


def passage(text: str, **fields: Any) -> str:
    return json.dumps({"id": text, "text": text, "source": "é.md", "score": 0.5} | fields)


def texts_of(answer: pb_fake.Answer) -> list[list[str]]:
    return [
        [json.loads(each)["text"] if each else "" for each in row.tolist()]
        for row in answer["passages"]
    ]


def test_the_best_come_first_with_both_scores(model: pb_fake.Served) -> None:
    found = [passage("a a"), passage("c c", location="b"), passage("b")]
    (answer,) = model.infer(model.request(question=["a ?"], passages=[found], top_k=[2]))

    assert [json.loads(each) for each in answer["passages"][0]] == [
        {"id": "c c", "text": "c c", "source": "é.md", "score": 9.0, "location": "b",
         "retrieval_score": 0.5},
        {"id": "a a", "text": "a a", "source": "é.md", "score": 3.0, "retrieval_score": 0.5},
    ]  # fmt: skip
    assert answer["scores"].tolist() == [[9.0, 3.0]]


def test_sigmoid_scores_are_from_0_to_1(tmp_path: Path) -> None:
    install_reranker(tmp_path, "sigmoid")
    found = [passage("how how how"), passage("of"), passage("a a a")]
    with pb_fake.loaded("rerank", tmp_path) as served:
        (answer,) = served.infer(served.request(question=["many"], passages=[found]))

    assert texts_of(answer) == [["a a a", "of", "how how how"]]
    np.testing.assert_allclose(answer["scores"], [[0.952574, 0.5, 0.0]], atol=1e-6)


def test_requests_of_different_sizes_are_answered_in_order(model: pb_fake.Served) -> None:
    answers = model.infer(
        model.request(question=["i"], passages=[[passage("a"), passage("b")]], top_k=[1]),
        model.request(
            question=["i", "i"],
            passages=[[passage("a"), ""], [passage("b"), passage("c")]],
            top_k=[2, 2],
        ),
        model.request(question=["i"], passages=[[passage(text) for text in "abcabc"]]),
    )

    assert [texts_of(answer) for answer in answers] == [
        [["b"]], [["a", ""], ["c", "b"]], [["c", "c", "b", "b"]],
    ]  # fmt: skip
    assert answers[1]["scores"].tolist() == [[1.0, -np.inf], [3.0, 2.0]]


def test_no_passage_gives_none(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(question=["a", "b"], passages=[[], []]))

    assert answer["passages"].shape == answer["scores"].shape == (2, 0)


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ({"question": [" "]}, "INVALID_ARG", "question: is empty or blank"),
        ({"question": ["a" * 8193]}, "INVALID_ARG", "question: is 8193 bytes"),
        ({"top_k": [0]}, "INVALID_ARG", "top_k: 0 is not in 1 to 100"),
        ({"top_k": [101]}, "INVALID_ARG", "top_k: 101 is not in 1 to 100"),
        ({"passages": [["{"]]}, "INVALID_ARG", "passages: not JSON"),
        ({"passages": [['{"id": 1}']]}, "INVALID_ARG", "passages: expected JSON objects with a"),
        ({"passages": [[passage("a")] * 101]}, "INVALID_ARG", "passages: 101 for one question"),
        (
            {"passages": [[passage("a" * 5_000_000)]]},
            "INVALID_ARG",
            "passages: one is 10000059 b",
        ),
        ({"passages": [[passage("d")]]}, "INTERNAL", "the reranker's score of a passage is no"),
    ],
)
def test_a_bad_request_fails_alone(
    model: pb_fake.Served, inputs: dict[str, Any], code: str, message: str
) -> None:
    good = {"question": ["i"], "passages": [[passage("a"), passage("b")]]}
    answers = model.infer(model.request(**(good | inputs)), model.request(**good))

    assert [answer.code for answer in answers] == [code, ""]
    assert answers[0].message.startswith(message)
    assert texts_of(answers[1]) == [["b", "a"]]


def test_the_log_says_what_is_served_and_where(model: pb_fake.Served) -> None:
    lines = [message for level, message in pb_fake.Logger.lines if level == "info"]
    assert lines == ["reranker tiny-reranker fp32 (sha256 cdcdcdcdcdcd) on CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("device", "tpu", "parameter device is 'tpu', expected auto, cpu, cuda"),
        ("device", "cuda", "parameter device is 'cuda', but this ONNX Runtime has no CUDA"),
        ("batch_pairs", "0", "parameter batch_pairs is '0', expected 1 to 4096"),
        ("threads", "x", "parameter threads is 'x', expected 0 to 1024"),
    ],
)
def test_a_bad_setting_stops_the_load(
    reranker: Path, parameter: str, value: str, message: str
) -> None:
    settings = {"parameters": {parameter: {"string_value": value}}}
    with (
        pytest.raises(SetupError, match=message),
        pb_fake.loaded("rerank", reranker, settings=settings),
    ):
        pass


def test_no_reranker_says_how_to_get_one(tmp_path: Path) -> None:
    with (
        pytest.raises(SetupError, match=r"no model is installed here; run export/reranker.py"),
        pb_fake.loaded("rerank", tmp_path),
    ):
        pass
