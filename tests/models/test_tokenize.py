"""tokenize with the fake of pb_utils."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pb_fake
import pytest

from tritonrag.tokenizing import PAD_MULTIPLE

LIMIT = 32
"""The longest input of the embedder here, below the multiple that questions are padded to."""

PAD, UNK, HOW, MANY, QUERY, PASSAGE, COLON = 0, 1, 2, 3, 9, 10, 11


@pytest.fixture
def model(repository: Path) -> Iterator[pb_fake.Served]:
    with pb_fake.loaded("tokenize", repository) as served:
        yield served


def test_a_question_becomes_padded_ids(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(text=["how many"]))

    padding = LIMIT - 4
    assert answer["input_ids"].tolist() == [[QUERY, COLON, HOW, MANY] + [PAD] * padding]
    assert answer["attention_mask"].tolist() == [[1] * 4 + [0] * padding]


def test_passages_are_padded_less(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(text=["how", "how " * 20], role=["passage"] * 2))
    (short,) = model.infer(model.request(text=["how"], role=["passage"]))

    assert answer["attention_mask"].sum(axis=1).tolist() == [3, 22]
    assert answer["input_ids"].shape == (2, LIMIT)
    assert short["input_ids"].shape == (1, PAD_MULTIPLE)


def test_the_role_chooses_the_prefix(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(text=["how", "how"], role=["passage", "query"]))

    assert answer["input_ids"][:, 0].tolist() == [PASSAGE, QUERY]


def test_all_requests_of_a_batch_share_one_length_and_keep_their_order(
    model: pb_fake.Served,
) -> None:
    requests = [
        model.request(text=["how"]),
        model.request(text=["many " * 9, "days", "of"]),
        model.request(text=["a", "b"]),
    ]

    answers = model.infer(*requests)

    assert [answer["input_ids"].shape for answer in answers] == [(1, 32), (3, 32), (2, 32)]
    assert answers[0]["input_ids"][0, 2] == HOW
    assert answers[1]["attention_mask"].sum(axis=1).tolist() == [11, 3, 3]
    assert answers[2]["input_ids"][:, 2].tolist() == [12, 13]


def test_a_long_text_is_truncated_to_the_embedder(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(text=["how " * 1000]))

    assert answer["input_ids"].shape == (1, LIMIT)
    assert answer["attention_mask"].all()


@pytest.mark.parametrize(
    ("text", "role", "message"),
    [
        ("", "query", "question: is empty or blank"),
        (" \n\t\u3000", "query", "question: is empty or blank"),
        ("é" * 4097, "query", "question: is 8194 bytes of UTF-8, the limit is 8192"),
        ("a" * 65537, "passage", "text: is 65537 bytes of UTF-8, the limit is 65536"),
        (b"caf\xe9", "query", "question: is not UTF-8 (byte 3 is 0xe9)"),
        (b"caf\xe9", "passage", "text: is not UTF-8 (byte 3 is 0xe9)"),
        ("how", "document", "role: is 'document', expected query or passage"),
        ("how", b"\xff", "role: is not UTF-8"),
    ],
)
def test_a_bad_request_fails_alone(
    model: pb_fake.Served, text: str | bytes, role: str | bytes, message: str
) -> None:
    good = model.request(text=["how"])
    answers = model.infer(good, model.request(text=[text], role=[role]), good)

    assert [answer.code for answer in answers] == ["", "INVALID_ARG", ""]
    assert answers[1].message.startswith(message)
    assert answers[0]["input_ids"].shape == answers[2]["input_ids"].shape == (1, LIMIT)


def test_the_longest_question_allowed_is_taken(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(text=["é" * 4096]))

    assert answer["input_ids"].dtype == np.int64


def test_an_unexpected_failure_tells_the_client_a_log_id_only(
    model: pb_fake.Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("/secret/path: gone")

    monkeypatch.setattr(model.model._tokenizer, "encode", fail)
    answers = model.infer(model.request(text=["how"]), model.request(text=[" "]))

    assert [answer.code for answer in answers] == ["INTERNAL", "INVALID_ARG"]
    assert "secret" not in answers[0].message
    assert "Traceback" not in answers[0].message
    (line,) = pb_fake.errors_logged()
    log_id = answers[0].message.rsplit(" ", 1)[1]
    assert f"log id {log_id}:" in line
    assert "OSError: /secret/path: gone" in line
    assert "Traceback" in line


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("text", [" ", "a" * 8193, b"caf\xe9", "how"])
def test_a_request_that_failed_is_freed_at_once(
    model: pb_fake.Served,
    monkeypatch: pytest.MonkeyPatch,
    no_garbage_collection: None,
    text: str | bytes,
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("gone") from ValueError("before")

    monkeypatch.setattr(model.model._tokenizer, "encode", fail)
    request = model.request(text=[text])
    freed = weakref.ref(request)
    (answer,) = model.infer(request)
    del request

    assert answer.message
    assert freed() is None
