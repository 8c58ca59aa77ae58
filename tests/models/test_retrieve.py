"""retrieve with the fake of pb_utils and a small index."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pb_fake
import pytest
from tiny_artifacts import embedder, write_snapshot

from tritonrag.contract import DEFAULT_RETRIEVE_K, RERANK
from tritonrag.index import layout
from tritonrag.index.manifest import SnapshotManifest

UNIT = np.eye(4, dtype=np.float32).tolist()


@pytest.fixture
def model(repository: Path, index_dir: Path) -> Iterator[pb_fake.Served]:
    write_snapshot(index_dir, "default", [("a.md", ["zero", "éins"]), ("b.md", ["two"])])
    write_snapshot(index_dir, "other", [("o.md", ["only"])])
    with pb_fake.loaded("retrieve", repository) as served:
        yield served


def texts_of(answer: pb_fake.Answer) -> list[list[str]]:
    return [
        [json.loads(each)["text"] if each else "" for each in row.tolist()]
        for row in answer["passages"]
    ]


def test_passages_come_best_first_with_all_their_fields(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(embedding=[UNIT[1]], top_k=[1]))

    assert json.loads(answer["passages"][0, 0]) == {
        "id": "a.md#1", "text": "éins", "source": "a.md", "title": "a.md",
        "location": "a.md > 1", "score": 1.0,
    }  # fmt: skip
    assert answer["scores"].tolist() == [[1.0]]


def test_requests_of_different_sizes_are_answered_in_order(model: pb_fake.Served) -> None:
    answers = model.infer(
        model.request(embedding=[UNIT[2], UNIT[0]], top_k=[1, 1]),
        model.request(embedding=[UNIT[0]], collection=["other"]),
        model.request(embedding=[UNIT[1]], top_k=[1]),
    )

    assert [texts_of(answer) for answer in answers] == [[["two"], ["zero"]], [["only"]], [["éins"]]]


def test_shorter_rows_are_padded(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(embedding=[UNIT[0], UNIT[2]], top_k=[1, 3]))

    assert texts_of(answer)[0] == ["zero", "", ""]
    assert answer["scores"][0].tolist() == [1.0, -np.inf, -np.inf]
    assert texts_of(answer)[1][0] == "two"


def test_retrieve_k_says_how_many_to_find(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(embedding=[UNIT[1]], top_k=[1], retrieve_k=[2]))

    assert len(texts_of(answer)[0]) == 2


def test_for_a_reranker_more_are_found(repository: Path, index_dir: Path) -> None:
    write_snapshot(index_dir, "default", [("a.md", [f"text {n}" for n in range(30)])])
    counts = []
    with pb_fake.loaded("retrieve", repository, variant=RERANK) as served:
        for more in ({}, {"top_k": [25]}, {"retrieve_k": [7]}, {"top_k": [0]}):
            (answer,) = served.infer(served.request(embedding=[UNIT[0]], **more))
            counts.append(answer.message or answer["passages"].shape[1])

    assert counts == [DEFAULT_RETRIEVE_K, 25, 7, "top_k: 0 is not in 1 to 100"]


def test_documents_for_others_are_not_found(repository: Path, index_dir: Path) -> None:
    write_snapshot(
        index_dir, "default", [("a.md", ["zero"]), ("b.md", ["one"])], access={"a.md": ["hr"]}
    )
    with pb_fake.loaded("retrieve", repository) as served:
        row = {"embedding": [UNIT[0]]}
        answers = served.infer(
            served.request(**row),
            served.request(**row, groups=['["it"]']),
            served.request(**row, groups=['["hr"]']),
            served.request(embedding=[UNIT[0]] * 2, groups=['["hr"]', ""]),
        )

    assert [texts_of(answer) for answer in answers] == [
        [["one"]], [["one"]], [["zero", "one"]], [["zero", "one"], ["one", ""]],
    ]  # fmt: skip


def test_a_collection_that_is_removed_fails_its_own_requests_only(
    model: pb_fake.Served, index_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check of a request and the search, another program may remove a collection."""
    retriever = model.model._retriever
    monkeypatch.setattr(retriever, "check", lambda query: None)
    shutil.rmtree(index_dir / "other")
    retriever.refresh()
    gone = model.request(embedding=[UNIT[0]], collection=["other"])
    good = model.request(embedding=[UNIT[0]], top_k=[1])

    answers = model.infer(good, gone, good)

    assert [answer.code for answer in answers] == ["", "NOT_FOUND", ""]
    assert texts_of(answers[2]) == [["zero"]]


def test_a_filter_narrows_the_search(model: pb_fake.Served) -> None:
    (answer,) = model.infer(model.request(embedding=[UNIT[0]], filter=['{"source": "b.md"}']))

    assert texts_of(answer) == [["two"]]


@pytest.mark.parametrize(
    ("inputs", "code", "message"),
    [
        ({"top_k": [0]}, "INVALID_ARG", "top_k: 0 is not in 1 to 100"),
        ({"top_k": [101]}, "INVALID_ARG", "top_k: 101 is not in 1 to 100"),
        ({"top_k": [-1]}, "INVALID_ARG", "top_k: -1 is not in 1 to 100"),
        ({"retrieve_k": [0]}, "INVALID_ARG", "retrieve_k: 0 is not in 1 to 100"),
        ({"retrieve_k": [101]}, "INVALID_ARG", "retrieve_k: 101 is not in 1 to 100"),
        ({"retrieve_k": [3]}, "INVALID_ARG", "retrieve_k: 3 is under top_k, which is 4"),
        ({"collection": ["nowhere"]}, "NOT_FOUND", "there are default, other"),
        ({"collection": ["../x"]}, "INVALID_ARG", "is not a collection's name"),
        ({"collection": [b"\xff"]}, "INVALID_ARG", "collection: is not UTF-8"),
        ({"filter": ["{"]}, "INVALID_ARG", "filter: not JSON"),
        ({"filter": ["[" * 9000]}, "INVALID_ARG", "filter: not JSON"),
        ({"filter": ['{"colour": "red"}']}, "INVALID_ARG", "unknown field 'colour'"),
        ({"filter": ['{"source": {"$is": 1}}']}, "INVALID_ARG", "unknown operator '$is'"),
        ({"groups": ["hr"]}, "INVALID_ARG", "groups: not JSON"),
        ({"groups": [b"\xff"]}, "INVALID_ARG", "groups: is not UTF-8"),
        ({"mode": ["fuzzy"]}, "INVALID_ARG", "mode: 'fuzzy' is not one of dense, sparse, hybrid"),
        ({"mode": ["hybrid"]}, "INVALID_ARG", "question: is missing; mode 'hybrid'"),
        ({"min_score": [-2.0]}, "INVALID_ARG", "min_score: -2 is not in -1 to 1"),
        ({"diversity": [np.nan]}, "INVALID_ARG", "diversity: nan is not in 0 to 1"),
        ({"embedding": [[1.0, 0.0]]}, "INVALID_ARG", "the index has vectors of [4]"),
        ({"embedding": [[np.nan] * 4]}, "INVALID_ARG", "not a finite number"),
    ],
)
def test_a_bad_request_fails_alone(
    model: pb_fake.Served, inputs: dict[str, Any], code: str, message: str
) -> None:
    good = model.request(embedding=[UNIT[0]], top_k=[1])
    bad = model.request(**({"embedding": [UNIT[0]]} | inputs))

    answers = model.infer(good, bad, good)

    assert [answer.code for answer in answers] == ["", code, ""]
    assert message in answers[1].message
    assert texts_of(answers[2]) == [["zero"]]


def test_rows_of_one_batch_have_modes_of_their_own(model: pb_fake.Served) -> None:
    (answer,) = model.infer(
        model.request(
            embedding=[UNIT[0], UNIT[0], UNIT[0]],
            question=["two", "two", "two"],
            mode=["dense", "sparse", "hybrid"],
            top_k=[1, 3, 3],
        )
    )

    assert texts_of(answer) == [["zero", "", ""], ["two", "", ""], ["two", "zero", "éins"]]


def test_a_threshold_is_each_rows_own(model: pb_fake.Served) -> None:
    (answer,) = model.infer(
        model.request(embedding=[UNIT[0], UNIT[0]], min_score=[0.5, -1.0], merge=[True, False])
    )

    assert texts_of(answer)[0] == ["zero", "", ""]
    assert len(set(texts_of(answer)[1])) == 3


def test_nothing_indexed_gives_no_passages(repository: Path, index_dir: Path) -> None:
    with pb_fake.loaded("retrieve", repository) as served:
        (answer,) = served.infer(served.request(embedding=[UNIT[0], UNIT[1]]))

    assert answer["passages"].shape == answer["scores"].shape == (2, 0)


def test_a_snapshot_of_another_embedder_is_refused_and_logged(
    repository: Path, index_dir: Path
) -> None:
    other = dataclasses.replace(embedder(), model="elsewhere")
    write_snapshot(index_dir, "default", [("a.md", ["zero"])], served=other)
    with pb_fake.loaded("retrieve", repository) as served:
        (answer,) = served.infer(served.request(embedding=[UNIT[0]]))
        log = [message for level, message in pb_fake.Logger.lines if level == "info"]

    assert answer.code == "UNAVAILABLE"
    assert "elsewhere fp32" in answer.message
    assert "tiny fp32" in answer.message
    assert "refused" in log[0]


def test_a_new_snapshot_goes_live_without_a_reload(model: pb_fake.Served, index_dir: Path) -> None:
    write_snapshot(index_dir, "default", [("new.md", ["newer"])])
    model.model._retriever.refresh()

    (answer,) = model.infer(model.request(embedding=[UNIT[0]]))

    assert texts_of(answer) == [["newer"]]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_metrics_show_collections_and_searches(model: pb_fake.Served, index_dir: Path) -> None:
    def reading(name: str) -> float | None:
        found = pb_fake.metrics().get(name)
        return found.reading if found else None

    until(lambda: "tritonrag_search_batch_seconds" in pb_fake.metrics())
    model.model._metrics._closed.wait = lambda seconds: time.sleep(0.01)  # no second between looks
    model.infer(
        model.request(embedding=[UNIT[0], UNIT[1]]),
        model.request(embedding=[UNIT[0]], collection=["other"]),
        model.request(embedding=[UNIT[0]], top_k=[0]),
    )
    until(lambda: reading("tritonrag_searches_total default") == 2)
    assert reading("tritonrag_searches_total other") == 1
    assert reading("tritonrag_index_passages default") == 3
    assert reading("tritonrag_index_documents default") == 2
    folder = index_dir / "default"
    live = SnapshotManifest.load(folder / str(layout.current(folder)))
    made = datetime.fromisoformat(live.created).timestamp()
    assert reading("tritonrag_index_snapshot_created_seconds default") == made
    assert reading("tritonrag_index_refused default") == 0
    (took,) = pb_fake.metrics()["tritonrag_search_batch_seconds"].observed
    assert 0 < took < 5

    shutil.rmtree(index_dir / "other")
    write_snapshot(
        index_dir, "default", [("a.md", ["x"])],
        served=dataclasses.replace(embedder(), model="elsewhere", sha256="cd" * 32),
    )  # fmt: skip
    layout.pointer(folder, embedder().sha256).unlink()
    model.model._retriever.refresh()
    until(lambda: reading("tritonrag_index_refused default") == 1)
    assert reading("tritonrag_index_passages default") == 3
    assert not [name for name in pb_fake.metrics() if name.endswith(" other")]
    model.model._metrics.close()
    assert pb_fake.metrics() == {}


def test_a_collection_that_is_damaged_fails_its_own_requests_only(
    model: pb_fake.Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one batch with the others, at the moment when it shows."""
    from tritonrag.errors import SetupError

    damaged = model.model._retriever.collections["other"]

    def view(allowed: object) -> None:
        raise SetupError("snapshot x is damaged: passages.jsonl: it is shorter")

    monkeypatch.setattr(damaged, "view", view)
    answers = model.infer(
        model.request(embedding=[UNIT[0]]),
        model.request(embedding=[UNIT[0]], collection=["other"]),
        model.request(embedding=[UNIT[1]], top_k=[1]),
    )
    assert [texts_of(answers[at])[0][0] for at in (0, 2)] == ["zero", "éins"]
    assert answers[1].code == "UNAVAILABLE"
    assert "collection other: its index cannot be served: snapshot x" in answers[1].message
    (again,) = model.infer(model.request(embedding=[UNIT[0]], collection=["other"]))
    assert again.code == "UNAVAILABLE"


def test_a_request_may_name_the_snapshot_that_is_to_be_live(
    model: pb_fake.Served, index_dir: Path
) -> None:
    live = str(layout.current(index_dir / "default"))
    answers = model.infer(
        model.request(embedding=[UNIT[0]], snapshot=[live]),
        model.request(embedding=[UNIT[0]], snapshot=[live], collection=["other"]),
        model.request(embedding=[UNIT[0]], snapshot=["x" * 500]),
    )
    assert texts_of(answers[0])[0][0] == "zero"
    assert [answer.code for answer in answers[1:]] == ["NOT_FOUND"] * 2
    assert len(answers[2].message) < 200
    assert live not in answers[2].message
