"""Search modes and lists through the real server, and retrieval measured through it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raw import search, stream
from servers import Served, tritonrag
from tritonclient.utils import InferenceServerException

QUESTION = "How many days of annual leave do full-time employees receive?"


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_every_mode_finds_the_page(served: Served, mode: str) -> None:
    passages = search(served.grpc, question=QUESTION, mode=mode)
    assert passages[0]["source"] == "leave.md"
    assert ("dense_score" in passages[0]) is (mode != "dense")


def test_a_threshold_diversity_and_merging(served: Served) -> None:
    plain = search(served.grpc, question=QUESTION, top_k=20)
    edge = plain[4]["score"]
    assert len(search(served.grpc, question=QUESTION, top_k=20, min_score=edge - 1e-4)) == 5
    merged = search(served.grpc, question=QUESTION, top_k=5, merge=True, diversity=0.3)
    assert len(merged) == 5


def test_rag_takes_the_same_options(served: Served) -> None:
    responses = list(stream(served.grpc, question=QUESTION, mode="hybrid", merge=True, top_k=3))
    citations = json.loads(responses[0]["citations"])
    assert "dense_score" in citations[0]
    assert len(citations) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fuzzy"}, "mode: 'fuzzy' is not one of dense, sparse, hybrid"),
        ({"min_score": 2.0}, "min_score: 2 is not in -1 to 1"),
        ({"diversity": 1.5}, "diversity: 1.5 is not in 0 to 1"),
    ],
)
def test_bad_options_are_refused(served: Served, fields: dict[str, object], message: str) -> None:
    with pytest.raises(InferenceServerException) as raised:
        search(served.grpc, question=QUESTION, **fields)
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in raised.value.message()


def test_retrieval_is_measured_through_the_server(served: Served, tmp_path: Path) -> None:
    texts = {"a": "Cats sleep most of the day.", "b": "Ships cross the sea.", "c": "Bread rises."}
    write_lines(
        tmp_path / "corpus.jsonl", [{"_id": id, "text": text} for id, text in texts.items()]
    )
    asked = {"1": "sleeping cats", "2": "a ship at sea"}
    write_lines(tmp_path / "queries.jsonl", [{"_id": id, "text": q} for id, q in asked.items()])
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t1\n")
    files = [part for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")
             for part in (f"--{name.partition('.')[0]}", str(tmp_path / name))]  # fmt: skip
    where = ["--url", served.grpc, "--index-dir", str(served.index_dir)]
    ended = tritonrag("eval", "retrieval", *files, *where, "--mode", "hybrid")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found["mode"], found["queries"]) == ("hybrid", 2)
    assert found["ndcg@10"] == found["recall@100"] == found["mrr"] == 1.0
    assert not list(served.index_dir.glob("*eval*"))


def write_lines(path: Path, values: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
