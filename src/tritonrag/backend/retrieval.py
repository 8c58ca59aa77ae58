"""The ``retrieve`` model's marshalling: a request's rows to queries, results to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tritonrag import contract
from tritonrag.backend.conversions import array, column
from tritonrag.backend.ranking import write_rows
from tritonrag.contract import DEFAULT_COLLECTION, DEFAULT_TOP_K
from tritonrag.errors import InvalidRequest, TritonragError, Unavailable
from tritonrag.index import Query, Result, Retriever, parse_filter, parse_groups
from tritonrag.index.retriever import CollectionRefused
from tritonrag.limits import passages_to_find


def read_queries(request: Any, least: int = 0) -> list[Query]:
    """Return one query a row of the request's batch.

    ``least`` is how many passages a caller who sends no ``retrieve_k`` gets at least.

    Raises:
        InvalidRequest: a malformed filter or list of groups, ``top_k`` or ``retrieve_k`` out of
            range, or inputs of different batch sizes.
    """
    embeddings = array(request, contract.EMBEDDING)
    if embeddings is None or embeddings.ndim != 2:
        raise InvalidRequest("embedding: expected shape [batch, dimension]")
    count = len(embeddings)
    collections = column(request, contract.COLLECTION, DEFAULT_COLLECTION, count)
    top_ks = column(request, contract.TOP_K, DEFAULT_TOP_K, count)
    retrieve_ks = column(request, contract.RETRIEVE_K, None, count)
    counts = [
        passages_to_find(top_k, retrieve_k, least)
        for top_k, retrieve_k in zip(top_ks, retrieve_ks, strict=True)
    ]
    filters = [parse_filter(text) for text in column(request, contract.FILTER, "", count)]
    groups = [parse_groups(text) for text in column(request, contract.GROUPS, "", count)]
    questions = column(request, contract.QUESTION_OF_SEARCH, "", count)
    modes = column(request, contract.MODE, None, count)
    least_scores = column(request, contract.MIN_SCORE, -1.0, count)
    diversities = column(request, contract.DIVERSITY, 0.0, count)
    merges = column(request, contract.MERGE, False, count)
    snapshots = column(request, contract.SNAPSHOT, "", count)
    return [
        Query(*row)
        for row in zip(
            embeddings, collections, counts, filters, groups, questions, modes, least_scores,
            diversities, merges, snapshots, strict=True,
        )
    ]  # fmt: skip


def search_all(
    retriever: Retriever, batch: Sequence[list[Query]]
) -> list[list[Result] | Exception]:
    """Search the queries of all requests at once; the results are grouped by request again.

    A collection may be removed, or damaged, after its queries were checked: then they fail, and no
    others.
    """
    try:
        results = iter(retriever.search([query for queries in batch for query in queries]))
    except CollectionRefused:
        return [_alone(retriever, queries) for queries in batch]
    except Unavailable as error:  # each by itself would wait as long for the same
        return [error for _ in batch]
    except TritonragError:
        return [_alone(retriever, queries) for queries in batch]
    return [[next(results) for _ in queries] for queries in batch]


def _alone(retriever: Retriever, queries: list[Query]) -> list[Result] | Exception:
    try:
        return retriever.search(queries)
    except TritonragError as error:
        return error


def write_results(results: list[Result]) -> Any:
    """Return a request's response."""
    return write_rows([(each.passages, each.scores) for each in results])
