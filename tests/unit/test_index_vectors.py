"""Exact and approximate search among vectors, with and without a filter."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from tritonrag.index import tuning, vectors
from tritonrag.index.manifest import Probing
from tritonrag.index.vectors import Allowed, Floats, Vectors

COUNT, DIMENSION = 6000, 24


@pytest.fixture(scope="module")
def rows() -> Floats:
    """Vectors in 60 clusters, in the order of their clusters, as the passages of a document are."""
    random = np.random.default_rng(1)
    centres = np.repeat(random.normal(size=(60, DIMENSION)), COUNT // 60, axis=0)
    made = (centres + 0.3 * random.normal(size=centres.shape)).astype(np.float32)
    faiss.normalize_L2(made)
    return made


@pytest.fixture(scope="module")
def quantised(rows: Floats) -> Vectors:
    index = tuning.build("IVF64,SQ8", rows)
    return Vectors(index, rows, tuning.tuned(index, rows))


@pytest.fixture(params=["exact", "quantised"])
def searched(request: pytest.FixtureRequest, rows: Floats, quantised: Vectors) -> Vectors:
    return quantised if request.param == "quantised" else Vectors(tuning.build("Flat", rows), rows)


def naive(rows: Floats, query: Floats, mask: np.ndarray, k: int) -> list[int]:  # type: ignore[type-arg]
    order = np.argsort(-(rows @ query), kind="stable")
    return [int(number) for number in order if mask[number]][:k]


def masks() -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(2)
    return {
        "all": np.ones(COUNT, bool),
        "half": random.random(COUNT) < 0.5,
        "few": random.random(COUNT) < 0.01,
        "one cluster": np.arange(COUNT) // 100 == 7,
        "two thirds in a row": np.arange(COUNT) > 2000,
        "three": np.isin(np.arange(COUNT), [5, 3000, 5999]),
        "none": np.zeros(COUNT, bool),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("k", [1, 10, 150])
@pytest.mark.parametrize("exact_up_to", [0, 1000])
def test_only_allowed_passages_are_found_and_as_many_as_wanted(
    rows: Floats,
    searched: Vectors,
    name: str,
    k: int,
    exact_up_to: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vectors, "AMONG_UP_TO", exact_up_to)
    mask = masks()[name]
    queries = rows[::997]
    scores, ids = searched.search(queries, k, Allowed(mask))
    for query, found, their in zip(queries, ids, scores, strict=True):
        kept = found[found >= 0]
        assert len(set(kept)) == len(kept) == min(k, mask.sum())
        assert mask[kept].all()
        assert their[: len(kept)] == pytest.approx(rows[kept] @ query, abs=1e-5)
        assert sorted(their, reverse=True) == their.tolist()


def test_exact_search_is_exact(rows: Floats) -> None:
    exact = Vectors(tuning.build("Flat", rows), rows)
    mask = masks()["half"]
    (found,) = exact.search(rows[:1], 10, Allowed(mask))[1]
    assert found.tolist() == naive(rows, rows[0], mask, 10)


def test_the_tuned_recall_holds_for_other_queries(rows: Floats, quantised: Vectors) -> None:
    random = np.random.default_rng(3)
    queries = rows[random.choice(COUNT, 100)] + 0.1 * random.normal(size=(100, DIMENSION))
    queries = queries.astype(np.float32)
    for mask in (masks()["all"], masks()["half"]):
        allowed = Allowed(mask)
        found = quantised.search(queries, 10, allowed)[1]
        nearest = np.array([naive(rows, query, mask, 10) for query in queries])
        assert tuning.recall_of(found, nearest) >= 0.95


def test_a_narrow_filter_far_from_the_question_is_filled_by_searching_every_list(
    rows: Floats, quantised: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "AMONG_UP_TO", 0)
    allowed = Allowed(masks()["one cluster"])
    found = quantised.search(rows[:1], 10, allowed)[1][0].tolist()
    assert sorted(found) == sorted(naive(rows, rows[0], allowed.mask, 10))


def test_lists_are_those_of_the_next_lower_share_tuned_for(rows: Floats) -> None:
    probing = [Probing(1.0, 8, 0.99), Probing(0.02, 64, 0.98), Probing(0.1, 16, 0.99)]
    tuned = Vectors(tuning.build("IVF64,SQ8", rows), rows, probing)
    assert [tuned.lists(share) for share in (1.0, 0.99, 0.1, 0.09, 0.02)] == [8, 16, 16, 64, 64]


def test_the_factory_grows_with_the_passages() -> None:
    made = {count: tuning.factory_for(count) for count in (0, 20_000, 20_001, 1_000_000)}
    assert made == {0: "Flat", 20_000: "Flat", 20_001: "IVF512,SQ8", 1_000_000: "IVF4096,SQ8"}


def test_the_tuning_states_what_it_measured(quantised: Vectors, tmp_path: Path) -> None:
    assert tuning.shares_for(1_000_000) == (1.0, 0.1, 0.05)
    probing = tuning.tuned(quantised.index, quantised.rows)
    assert [each.share for each in probing] == [1.0, 0.1]
    assert all(each.recall >= tuning.TARGET_RECALL or each.lists == 64 for each in probing)
