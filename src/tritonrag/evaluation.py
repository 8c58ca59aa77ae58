"""How good retrieval is against judgements: BEIR's files, and measures with confidence intervals.

``pytrec_eval`` computes the measures, as TREC does. Knows neither an index nor a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritonrag.errors import InvalidRequest

MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "recall@100": "recall_100",
            "mrr": "recip_rank"}  # fmt: skip
"""What is reported, by ``pytrec_eval``'s name for it."""

DEPTH = 100
"""Documents of a ranking that are judged."""

RESAMPLES, CONFIDENCE, _SEED = 2000, 0.95, 0

Qrels = dict[str, dict[str, int]]
"""Query to document to how relevant it is, 0 not at all."""


@dataclass(frozen=True)
class CorpusDocument:
    """One line of ``corpus.jsonl``."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Estimate:
    """A mean over queries and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def read_corpus(path: Path) -> list[CorpusDocument]:
    """Return the documents of a ``corpus.jsonl``: ``_id``, ``text`` and perhaps ``title``.

    Raises:
        InvalidRequest: the file cannot be read, or a line is not so; the message has its number.
    """
    documents = [
        CorpusDocument(_field(path, line, value, "_id"), _field(path, line, value, "title", ""),
                       _field(path, line, value, "text"))
        for line, value in _objects(path)
    ]  # fmt: skip
    _check_unique(path, [document.id for document in documents])
    return documents


def read_queries(path: Path) -> dict[str, str]:
    """Return the text of each query of a ``queries.jsonl``: ``_id`` and ``text``.

    Raises:
        InvalidRequest: as :func:`read_corpus`.
    """
    found = [
        (_field(path, line, value, "_id"), _field(path, line, value, "text"))
        for line, value in _objects(path)
    ]
    _check_unique(path, [query for query, _ in found])
    return dict(found)


def read_qrels(path: Path) -> Qrels:
    """Return the judgements of a ``qrels.tsv``: query, document and score, below a header.

    Raises:
        InvalidRequest: the file cannot be read, or a line is not so; the message has its number.
    """
    qrels: Qrels = {}
    for number, line in _lines(path):
        parts = line.split("\t")
        try:
            query, document, score = parts[0], parts[1], int(parts[2])
        except (IndexError, ValueError):
            if number == 1:
                continue  # the header
            raise InvalidRequest(
                f"{path}: line {number}: expected query, document and a whole number with tabs "
                f"between, got {line[:80]!r}"
            ) from None
        qrels.setdefault(query, {})[document] = score
    return qrels


def check_together(
    documents: Sequence[CorpusDocument], queries: Mapping[str, str], qrels: Qrels
) -> None:
    """Check that the three files belong together.

    Raises:
        InvalidRequest: no query is judged, or a judgement names a query or document there is not.
    """
    ids = {document.id for document in documents}
    for query, judged in qrels.items():
        if query not in queries:
            raise InvalidRequest(f"--qrels: query {query!r} is not in --queries")
        for document in judged:
            if document not in ids:
                raise InvalidRequest(f"--qrels: document {document!r} is not in --corpus")
    if not any(score > 0 for judged in qrels.values() for score in judged.values()):
        raise InvalidRequest("--qrels: no document is relevant to any query")


def evaluate(rankings: Mapping[str, Sequence[str]], qrels: Qrels) -> dict[str, Estimate]:
    """Return each measure over the judged queries.

    Args:
        rankings: of each judged query its documents, best first.
        qrels: the judgements; a query without a relevant document is left out.
    """
    import pytrec_eval

    judged = {query: found for query, found in qrels.items() if any(found.values())}
    run = {
        query: {document: float(-rank) for rank, document in enumerate(rankings[query][:DEPTH])}
        for query in judged
    }
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.10,100",
                                                        "recip_rank"})  # fmt: skip
    found = evaluator.evaluate(run)
    return {
        name: estimate([found.get(query, {}).get(measure, 0.0) for query in judged])
        for name, measure in MEASURES.items()
    }


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value a query, with the percentiles of its bootstrap."""
    array = np.asarray(values)
    places = np.random.default_rng(_SEED).integers(len(array), size=(RESAMPLES, len(array)))
    edges = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low, high = np.quantile(array[places].mean(axis=1), edges)
    return Estimate(float(array.mean()), float(low), float(high))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: is not UTF-8 ({error.reason})") from error


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{path}: line {number}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise InvalidRequest(f"{path}: line {number}: expected a JSON object")
        yield number, value


def _field(
    path: Path, line: int, value: Mapping[str, Any], name: str, default: str | None = None
) -> str:
    found = value.get(name, default)
    if not isinstance(found, str) or (name == "_id" and not found):
        raise InvalidRequest(f"{path}: line {line}: `{name}` is {found!r:.80}, expected a string")
    return found


def _check_unique(path: Path, ids: Sequence[str]) -> None:
    if not ids:
        raise InvalidRequest(f"{path}: is empty")
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise InvalidRequest(f"{path}: `_id` {each!r} occurs twice")
        seen.add(each)
