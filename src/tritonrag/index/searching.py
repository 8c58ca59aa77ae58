"""Queries to passages in one snapshot: candidates by vectors, by words or by both, then a list.

Every candidate's cosine similarity is known whatever the mode, so that a threshold, a duplicate and
diversity mean the same in each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tritonrag import fusion
from tritonrag.contract import DENSE, HYBRID, SPARSE
from tritonrag.errors import InvalidRequest
from tritonrag.index.query import Query, Result
from tritonrag.index.searchable import Searchable, View
from tritonrag.index.vectors import Floats, Ids
from tritonrag.tokenizing import check_text

SPARE = 10
"""Candidates beyond ``top_k``, to take the place of near-duplicates."""

POOL = 4
"""Candidates for each passage wanted where they are chosen for diversity or merged."""

FUSED = 100
"""Candidates of each ranking that are fused."""

NEAR = 0.95
"""Cosine similarity from which the words of two passages are compared."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Passages for one query, best first; all arrays are ``[n]``.

    ``scores`` are what the mode ranks by, ``cosines`` the similarities of the vectors, ``bm25`` the
    BM25 scores of those that share a word with the question, by number.
    """

    numbers: Ids
    scores: Floats
    cosines: Floats
    bm25: dict[int, float]

    def at(self, places: Any) -> Candidates:
        """Return some of them."""
        return Candidates(
            self.numbers[places], self.scores[places], self.cosines[places], self.bm25
        )


def check(query: Query, snapshot: Searchable) -> None:
    """Check that a snapshot can answer a query in its mode.

    Raises:
        InvalidRequest: the mode needs a question and there is none, or a BM25 index.
    """
    mode = mode_of(query, snapshot)
    if mode == DENSE or not len(snapshot):
        return
    if not query.question:
        raise InvalidRequest(f"question: is missing; mode {mode!r} searches for its words")
    check_text(query.question, "query")
    if not snapshot.has_words:
        raise InvalidRequest(
            f"mode: {mode!r} needs a BM25 index, and collection {query.collection!r} was indexed "
            "before there was one; use 'dense', or `tritonrag index add` its files again"
        )


def mode_of(query: Query, snapshot: Searchable) -> str:
    """Return the mode of a query: its own, or else the collection's."""
    return query.mode or snapshot.manifest.mode


def search(snapshot: Searchable, queries: Sequence[Query], allowed: Any) -> list[Result]:
    """Return the passages of each query among those ``allowed``, with one dense search for all."""
    view = snapshot.view(allowed)
    modes = [mode_of(query, snapshot) for query in queries]
    depths = [_depth(query, mode) for query, mode in zip(queries, modes, strict=True)]
    dense = iter(_nearest(view, queries, modes, depths))
    results = []
    for query, mode, depth in zip(queries, modes, depths, strict=True):
        found = Candidates(*_NONE, {}) if mode == SPARSE else next(dense)
        if mode != DENSE and snapshot.has_words:  # an empty snapshot has none
            found = _with_words(view, query, mode, depth, found)
        results.append(_result(view, query, mode, found))
    return results


_NONE = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32)


def _pool(query: Query) -> int:
    """Return how many candidates are looked at to make a list of ``top_k``."""
    chosen = query.diversity > 0 or query.merge
    return POOL * query.top_k + SPARE if chosen else query.top_k + SPARE


def _depth(query: Query, mode: str) -> int:
    return _pool(query) if mode == DENSE else max(_pool(query), FUSED)


def _nearest(
    view: View, queries: Sequence[Query], modes: Sequence[str], depths: Sequence[int]
) -> list[Candidates]:
    """Return the candidates by vectors of each query whose mode uses them."""
    places = [place for place, mode in enumerate(modes) if mode != SPARSE]
    if not places:
        return []
    embeddings = np.stack([queries[place].embedding for place in places])
    scores, ids = view.nearest(embeddings, max(depths[place] for place in places))
    found = []
    for row, place in enumerate(places):
        count = min(depths[place], int((ids[row] >= 0).sum()))
        cosines = scores[row, :count]
        found.append(Candidates(ids[row, :count], cosines, cosines, {}))
    return found


def _with_words(view: View, query: Query, mode: str, depth: int, dense: Candidates) -> Candidates:
    """Return the candidates by words, fused with those by vectors where the mode is hybrid."""
    scores, numbers = view.sharing_words(query.question, depth)
    by_number = dict(zip(numbers.tolist(), scores.tolist(), strict=True))
    if mode == HYBRID:
        numbers, scores = fusion.reciprocal_rank_fusion([dense.numbers, numbers])
    if query.min_score <= -1:
        numbers, scores = numbers[: _pool(query)], scores[: _pool(query)]
    # Not `@`: BLAS would wake threads for it, which takes longer than the work.
    cosines = np.einsum("nd,d->n", view.rows(numbers), query.embedding)
    return Candidates(numbers, scores, cosines, by_number)


def _result(view: View, query: Query, mode: str, found: Candidates) -> Result:
    if query.min_score > -1:
        found = found.at(found.cosines >= query.min_score)
    found = found.at(slice(_pool(query)))
    pooled = query.diversity > 0 or query.merge
    rows = view.rows(found.numbers)
    similarity = rows @ rows.T
    wanted = len(found.numbers) if pooled else query.top_k
    places = _distinct(similarity, wanted, lambda place: _text(view, found.numbers[place]))
    if query.diversity > 0:
        relevance = found.scores[places] / found.scores.max(initial=1)  # BM25 has no upper end
        order = fusion.maximal_marginal_relevance(
            relevance, similarity[np.ix_(places, places)], len(places), query.diversity
        )
        places = [places[at] for at in order]
    offered = found.at(places)
    if query.merge:
        return _merged(view, offered, query.top_k, mode)
    return _plain(view, offered.at(slice(query.top_k)), mode)


def _distinct(similarity: Floats, wanted: int, text: Callable[[int], str]) -> list[int]:
    """Return the places of the first ``wanted`` that are no near-duplicate of one before."""
    near = similarity >= NEAR
    kept: list[int] = []
    for place in range(len(near)):
        if len(kept) == wanted:
            break
        if not any(
            near[place, other] and fusion.near_duplicates(text(place), text(other))
            for other in kept
        ):
            kept.append(place)
    return kept


def _plain(view: View, found: Candidates, mode: str) -> Result:
    passages = [
        view.passage(number)[:-1] + _scores(found, place, mode)
        for place, number in enumerate(found.numbers.tolist())
    ]
    return Result(passages, found.scores.copy())


def _merged(view: View, found: Candidates, top_k: int, mode: str) -> Result:
    """Make one passage of those that follow each other in one section; a run ranks as its best."""
    place_of = {number: place for place, number in enumerate(found.numbers[: 2 * top_k].tolist())}
    runs: list[list[int]] = []
    for number in sorted(place_of):
        if runs and _follows(view, number, runs[-1][-1]):
            runs[-1].append(number)
        else:
            runs.append([number])
    ranked = sorted((min(place_of[number] for number in run), run) for run in runs)[:top_k]
    passages = [_union(view, run)[:-1] + _scores(found, best, mode) for best, run in ranked]
    return Result(passages, found.scores[[best for best, _ in ranked]])


def _follows(view: View, number: int, before: int) -> bool:
    return number == before + 1 and _section(view, number) == _section(view, before)


def _section(view: View, number: int) -> tuple[int, str]:
    return view.document_of(number), str(json.loads(view.passage(number))["location"])


def _union(view: View, numbers: Sequence[int]) -> bytes:
    """Return neighbouring passages as one: the id and start of the first, the end of the last."""
    parts = [json.loads(view.passage(number)) for number in numbers]
    if len(parts) == 1:
        return view.passage(numbers[0])
    whole: dict[str, Any] = dict(parts[0])
    for part in parts[1:]:
        whole["text"] = fusion.joined(whole["text"], part["text"])
        whole["end"] = part.get("end")
    whole["merged"] = [part["id"] for part in parts]
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def _scores(found: Candidates, place: int, mode: str) -> bytes:
    """Return the end of a passage's JSON object: what it scored, and in what."""
    score = b',"score":%.6f' % found.scores[place]
    if mode == DENSE:
        return score + b"}"
    score += b',"dense_score":%.6f' % found.cosines[place]
    words = found.bm25.get(int(found.numbers[place]))
    return score + (b"}" if words is None else b',"sparse_score":%.6f}' % words)


def _text(view: View, number: int) -> str:
    return str(json.loads(view.passage(int(number)))["text"])
