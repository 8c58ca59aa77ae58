from __future__ import annotations

import json
from pathlib import Path

import pytest

from tritonrag import evaluation
from tritonrag.errors import InvalidRequest

CRANFIELD = Path(__file__).parents[3] / "shared/data/retrieval/cranfield"


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n"
                            for each in values))  # fmt: skip
    return path


def test_the_files_are_read(tmp_path: Path) -> None:
    corpus = lines(tmp_path / "c", {"_id": "a", "text": "x", "more": 1}, "", {"_id": "b",
                   "title": "T", "text": ""})  # fmt: skip
    documents = evaluation.read_corpus(corpus)
    assert documents == [
        evaluation.CorpusDocument("a", "", "x"), evaluation.CorpusDocument("b", "T", ""),
    ]  # fmt: skip
    queries = evaluation.read_queries(lines(tmp_path / "q", {"_id": "1", "text": "y"}))
    assert queries == {"1": "y"}
    qrels = evaluation.read_qrels(lines(tmp_path / "r", "query-id\tcorpus-id\tscore", "1\ta\t2"))
    assert qrels == {"1": {"a": 2}}
    evaluation.check_together(documents, queries, qrels)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"text": "x"}', "line 2: `_id` is None, expected a string"),
        ('{"_id": 7, "text": "x"}', "line 2: `_id` is 7"),
        ('{"_id": "b"}', "line 2: `text` is None"),
        ('{"_id": "a", "text": "x"}', "`_id` 'a' occurs twice"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = lines(tmp_path / "corpus.jsonl", {"_id": "a", "text": "x"}, line)
    with pytest.raises(InvalidRequest, match=message) as raised:
        evaluation.read_corpus(path)
    assert "corpus.jsonl" in str(raised.value)


@pytest.mark.parametrize("line", ["1 a 1", "1\ta", "1\ta\tgood"])
def test_a_bad_judgement_is_named(tmp_path: Path, line: str) -> None:
    path = lines(tmp_path / "qrels.tsv", "query-id\tcorpus-id\tscore", "1\ta\t1", line)
    with pytest.raises(InvalidRequest, match="line 3: expected query, document and a whole number"):
        evaluation.read_qrels(path)


def test_a_file_that_is_missing_empty_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read: No such file"):
        evaluation.read_queries(tmp_path / "none")
    with pytest.raises(InvalidRequest, match="is empty"):
        evaluation.read_queries(lines(tmp_path / "empty"))
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    with pytest.raises(InvalidRequest, match="is not UTF-8"):
        evaluation.read_queries(tmp_path / "latin")


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ({"2": {"a": 1}}, "query '2' is not in --queries"),
        ({"1": {"z": 1}}, "document 'z' is not in --corpus"),
        ({"1": {"a": 0}}, "no document is relevant"),
        ({}, "no document is relevant"),
    ],
)
def test_files_that_do_not_belong_together(qrels: evaluation.Qrels, message: str) -> None:
    documents = [evaluation.CorpusDocument("a", "", "x")]
    with pytest.raises(InvalidRequest, match=message):
        evaluation.check_together(documents, {"1": "y"}, qrels)


def test_measures() -> None:
    qrels = {"1": {"a": 1, "b": 1}, "2": {"c": 1}, "3": {"d": 0}}
    found = evaluation.evaluate({"1": ["x", "a"], "2": []}, qrels)
    assert found["mrr"].mean == pytest.approx((0.5 + 0) / 2)
    assert found["recall@10"].mean == found["recall@100"].mean == pytest.approx((0.5 + 0) / 2)
    ideal = 1 + 1 / 1.585
    assert found["ndcg@10"].mean == pytest.approx(1 / 1.585 / ideal / 2, abs=1e-3)


def test_a_confidence_interval_holds_the_mean_and_narrows_with_more_queries() -> None:
    few, many = (evaluation.estimate([0.0, 1.0] * times) for times in (10, 1000))
    assert few.low < few.mean == many.mean == 0.5 < few.high
    assert many.high - many.low < (few.high - few.low) / 5
    assert evaluation.estimate([0.0, 1.0] * 10) == few


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="the test collection is not here")
def test_the_cranfield_collection_belongs_together() -> None:
    documents = evaluation.read_corpus(CRANFIELD / "corpus.jsonl")
    queries = evaluation.read_queries(CRANFIELD / "queries.jsonl")
    qrels = evaluation.read_qrels(CRANFIELD / "qrels.tsv")
    evaluation.check_together(documents, queries, qrels)
    assert (len(documents), len(queries)) == (1400, 225)
