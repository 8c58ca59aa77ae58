"""The ``retrieve`` model's marshalling: a request's rows to queries, results to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tritonrag import contract
from tritonrag.backend.conversions import array, column, response, tensor
from tritonrag.contract import DEFAULT_COLLECTION, DEFAULT_TOP_K
from tritonrag.errors import InvalidRequest
from tritonrag.index import Query, Result, Retriever, parse_filter


def read_queries(request: Any) -> list[Query]:
    """Return one query a row of the request's batch.

    Raises:
        InvalidRequest: a malformed filter, or inputs of different batch sizes.
    """
    embeddings = array(request, contract.EMBEDDING)
    if embeddings is None or embeddings.ndim != 2:
        raise InvalidRequest("embedding: expected shape [batch, dimension]")
    count = len(embeddings)
    collections = column(request, contract.COLLECTION, DEFAULT_COLLECTION, count)
    top_ks = column(request, contract.TOP_K, DEFAULT_TOP_K, count)
    filters = [parse_filter(text) for text in column(request, contract.FILTER, "", count)]
    return [Query(*row) for row in zip(embeddings, collections, top_ks, filters, strict=True)]


def search_all(retriever: Retriever, batch: Sequence[list[Query]]) -> list[list[Result]]:
    """Search the queries of all requests at once; the results are grouped by request again."""
    results = iter(retriever.search([query for queries in batch for query in queries]))
    return [[next(results) for _ in queries] for queries in batch]


def write_results(results: list[Result]) -> Any:
    """Return a request's response, shorter rows padded with ``""`` and a score of -inf."""
    width = max((len(result.passages) for result in results), default=0)
    passages = np.full((len(results), width), b"", dtype=np.object_)
    scores = np.full((len(results), width), -np.inf, dtype=np.float32)
    for row, result in enumerate(results):
        passages[row, : len(result.passages)] = result.passages
        scores[row, : len(result.scores)] = result.scores
    return response(tensor(contract.PASSAGES, passages), tensor(contract.SCORES, scores))
