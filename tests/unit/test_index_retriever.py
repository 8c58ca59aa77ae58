from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from index_samples import HashEmbedder, add, manifest, vector, write

from tritonrag.errors import InvalidRequest, NotFound, Unavailable
from tritonrag.index import Query, Result, Retriever, layout, parse_filter
from tritonrag.index.catalogue import describe, describe_all
from tritonrag.index.searching import SPARE
from tritonrag.index.store import roll_back, writing

Log = list[str]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    made = tmp_path / "docs"
    write(made, **{f"d{number}": f"# Doc {number % 2}\n\nText {number}." for number in range(6)})
    return made


@pytest.fixture
def index(tmp_path: Path, docs: Path) -> Path:
    add(tmp_path / "index", docs)
    return tmp_path / "index"


@pytest.fixture
def log() -> Log:
    return []


@pytest.fixture
def retriever(index: Path, log: Log) -> Iterator[Retriever]:
    with Retriever(index, manifest(), log.append, poll_seconds=0.01) as made:
        yield made


def query(text: str, **options: object) -> Query:
    return Query(vector(text), **options)  # type: ignore[arg-type]


def found(result: Result) -> list[str]:
    return [json.loads(passage)["source"] for passage in result.passages]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_nearest_comes_first_with_its_score(retriever: Retriever) -> None:
    (result,) = retriever.search([query("Doc 1\nText 3.", top_k=3)])
    best = json.loads(result.passages[0])
    assert list(best) == [
        "id", "text", "source", "title", "location", "heading_path", "place", "start", "end",
        "score",
    ]  # fmt: skip
    assert (best["text"], best["source"], best["score"]) == ("Text 3.", "d3.md", 1.0)
    assert result.scores.dtype == np.float32
    assert result.scores[0] == pytest.approx(1, abs=1e-6)
    assert sorted(result.scores, reverse=True) == list(result.scores)
    assert len(result.passages) == 3


def test_a_batch_mixes_collections_filters_and_top_k(index: Path, docs: Path, log: Log) -> None:
    add(index, docs, collection="other")
    pair = '{"source": ["d2.md", "d3.md"]}'
    batch = [
        query("Doc 0\nText 0.", top_k=1),
        query("Doc 0\nText 0.", top_k=100),
        query("Doc 0\nText 0.", filter=parse_filter('{"title": "Doc 1"}'), top_k=100),
        query("Doc 0\nText 2.", collection="other", filter=parse_filter(pair)),
        query("Doc 0\nText 0.", filter=parse_filter('{"source": "d0.md", "title": "Doc 1"}')),
        query("Doc 0\nText 0.", filter=parse_filter('{"source": "none.md"}')),
    ]
    with Retriever(index, manifest(), log.append) as retriever:
        results = retriever.search(batch)
    assert [len(result.passages) for result in results] == [1, 6, 3, 2, 0, 0]
    assert found(results[0]) == found(results[1])[:1] == ["d0.md"]
    assert set(found(results[2])) == {"d1.md", "d3.md", "d5.md"}
    assert found(results[3])[0] == "d2.md"


def test_one_faiss_call_for_each_collection_and_filter(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = retriever.collections["default"]
    calls: list[tuple[int, int]] = []
    search = snapshot.search

    def counted(embeddings: np.ndarray, count: int, allowed: object) -> object:  # type: ignore[type-arg]
        calls.append((len(embeddings), count))
        return search(embeddings, count, allowed)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot, "search", counted)
    ours, same = parse_filter('{"title": "Doc 1"}'), parse_filter('{"title": ["Doc 1"]}')
    nobody = frozenset({"nobody"})
    retriever.search([
        query("a", top_k=2), query("b", filter=ours), query("c"), query("d", groups=nobody),
        query("e", filter=same),
    ])  # fmt: skip
    assert calls == [(3, 4 + SPARE), (2, 4 + SPARE)]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Query(np.zeros(3, np.float32)), InvalidRequest, r"embedding: shape \[3\].*\[16\]"),
        (Query(np.full(16, np.nan, np.float32)), InvalidRequest, "finite"),
        (Query(np.full(16, 3e38, np.float32)), InvalidRequest, "far too large"),
        (Query(vector("a"), top_k=0), InvalidRequest, "top_k: 0 is not in 1 to 100"),
        (Query(vector("a"), top_k=101), InvalidRequest, "top_k: 101"),
        (Query(vector("a"), collection="../etc"), InvalidRequest, "collection: '../etc'"),
        (Query(vector("a"), collection="hr"), NotFound, "'hr'; there are default"),
    ],
)
def test_bad_queries(
    retriever: Retriever, bad: Query, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        retriever.check(bad)
    with pytest.raises(error, match=message):
        retriever.search([query("a"), bad])


def test_a_field_that_there_is_not_is_refused_and_matches_nothing(retriever: Retriever) -> None:
    """A snapshot may have replaced the one that the filter was checked against."""
    asked = query("a", filter=parse_filter('{"colour": "red"}'))
    with pytest.raises(InvalidRequest, match="unknown field 'colour'"):
        retriever.check(asked)
    assert retriever.search([asked])[0].passages == []


def test_an_empty_index_answers_the_default_collection_with_nothing(tmp_path: Path) -> None:
    with Retriever(tmp_path / "none", manifest()) as retriever:
        (result,) = retriever.search([query("a")])
        assert result.passages == []
        assert result.scores.shape == (0,)
        with pytest.raises(NotFound, match="'hr'; there is none that this caller may read"):
            retriever.check(query("a", collection="hr"))


def test_the_default_collection_is_not_found_where_others_exist(tmp_path: Path, docs: Path) -> None:
    add(tmp_path / "index", docs, collection="hr")
    with (
        Retriever(tmp_path / "index", manifest()) as retriever,
        pytest.raises(NotFound, match="'default'; there are hr"),
    ):
        retriever.check(query("a"))


def test_a_new_snapshot_goes_live_and_rollback_too(
    retriever: Retriever, index: Path, docs: Path, log: Log
) -> None:
    old = retriever.collections["default"].name
    write(docs, d9="# New\n\nFresh words.")
    new = add(index, docs).snapshot
    until(lambda: retriever.collections["default"].name == new)
    assert found(retriever.search([query("New\nFresh words.")])[0])[0] == "d9.md"
    with writing(index, "default") as folder:
        roll_back(folder)
    until(lambda: retriever.collections["default"].name == old)
    assert len(log) == 3


def test_a_replaced_snapshot_is_gone_at_once(retriever: Retriever, index: Path, docs: Path) -> None:
    """Nothing may tie it to itself: the collector of such ties comes by when it likes."""
    retriever.close()
    old = weakref.ref(retriever.collections["default"])
    retriever.search([query("a", filter=parse_filter('{"title": "Doc 1"}'))])
    write(docs, d9="New.")
    add(index, docs)
    gc.disable()
    try:
        retriever.refresh()
        assert old() is None
    finally:
        gc.enable()


def test_a_new_collection_appears(retriever: Retriever, index: Path, docs: Path) -> None:
    add(index, docs, collection="hr")
    until(lambda: "hr" in retriever.collections)


def test_a_damaged_snapshot_is_refused_once(
    retriever: Retriever, index: Path, docs: Path, log: Log
) -> None:
    old = retriever.collections["default"]
    write(docs, d9="New.")
    retriever.close()
    new = str(add(index, docs).snapshot)
    (index / "default" / new / "vectors.faiss").write_bytes(b"rubbish")
    for _ in range(3):
        retriever.refresh()
    assert retriever.collections["default"] is old
    (line,) = log[1:]
    assert new in line
    assert "vectors.faiss differs" in line
    assert f"{old.name} stays live" in line
    assert "tritonrag index rollback" in line
    assert list(retriever.refusals) == ["default"]
    info = describe(index, "default", manifest())
    assert info.refusal
    assert "vectors.faiss differs" in info.refusal
    with writing(index, "default") as folder:
        roll_back(folder)
    retriever.refresh()
    assert retriever.refusals == {}


def test_a_snapshot_of_another_embedder_is_refused(tmp_path: Path, docs: Path, log: Log) -> None:
    index = tmp_path / "other"
    add(index, docs, HashEmbedder(), sha256="cd" * 32)
    with Retriever(index, manifest(), log.append) as retriever:
        assert "tiny fp32 (sha256 cdcdcdcdcdcd), but tiny fp32 (sha256 abababababab)" in log[0]
        with pytest.raises(Unavailable, match="--embedder-version"):
            retriever.check(query("a"))
    assert "cdcdcdcdcdcd" in str(describe_all(index, manifest())[0].refusal)
    assert describe_all(index)[0].refusal is None


def test_each_embedder_has_a_live_snapshot_of_its_own(
    retriever: Retriever, index: Path, docs: Path, log: Log
) -> None:
    ours = retriever.collections["default"].name
    theirs = add(index, docs, HashEmbedder(), sha256="cd" * 32).snapshot
    retriever.refresh()
    assert retriever.collections["default"].name == ours
    assert log[1:] == []
    with Retriever(index, manifest("cd" * 32)) as other:
        assert other.collections["default"].name == theirs


def test_a_pointer_of_its_own_comes_before_the_collections(
    retriever: Retriever, index: Path, docs: Path
) -> None:
    """What an earlier release wrote has no pointer by embedder; it is followed until there is."""
    folder = index / "default"
    ours = layout.current(folder)
    layout.pointer(folder, "ab" * 32).unlink()
    retriever.refresh()
    assert retriever.collections["default"].name == ours
    add(index, docs, HashEmbedder(), sha256="cd" * 32)
    assert layout.current(folder, "ab" * 32) == ours
    assert layout.current(folder) == layout.current(folder, "cd" * 32) != ours


def test_a_newer_format_is_refused(index: Path, log: Log) -> None:
    folder = index / "default"
    path = folder / str(layout.current(folder)) / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 3', '"format_version": 4'))
    with Retriever(index, manifest(), log.append) as retriever:
        with pytest.raises(Unavailable, match="newer than 3"):
            retriever.check(query("a"))
        assert "nothing can be searched in it" in log[0]


@pytest.mark.parametrize("content", ["", "../../etc", "20260101T000000.000000Z-0000"])
def test_a_current_that_leads_nowhere_is_refused(
    retriever: Retriever, index: Path, log: Log, content: str
) -> None:
    layout.pointer(index / "default", "ab" * 32).write_text(content)
    until(lambda: "default" in retriever.refusals)
    assert len(retriever.search([query("a")])[0].passages) == 4


def test_swaps_under_load_mix_no_snapshots(retriever: Retriever, index: Path, docs: Path) -> None:
    stop, mixed, searches = threading.Event(), [], [0]

    def search() -> None:
        while not stop.is_set():
            (result,) = retriever.search([query("a", top_k=100)])
            versions = {json.loads(passage)["text"] for passage in result.passages}
            searches[0] += 1
            if len(versions) > 1:
                mixed.append(versions)

    write(docs, **{f"d{number}": "Version -1." for number in range(6)})
    add(index, docs)
    retriever.refresh()
    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(4):
        write(docs, **{f"d{number}": f"Version {version}." for number in range(6)})
        made = add(index, docs).snapshot
        until(lambda made=made: retriever.collections["default"].name == made)  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    assert mixed == []
    assert searches[0] > 4
