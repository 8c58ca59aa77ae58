"""Modes, and what is done with the candidates before they are offered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_samples import DIMENSION, HashEmbedder, manifest, parsers, vector, write

from tritonrag.corpus import find_files
from tritonrag.errors import InvalidRequest
from tritonrag.index import EmbedderId, Query, Retriever, Snapshot, layout, store, vectors
from tritonrag.index.adding import Added, Adder
from tritonrag.index.filters import parse_filter
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.searching import search

UNIT = np.eye(DIMENSION, dtype=np.float32)


def publish(
    index_dir: Path,
    documents: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    rows: Sequence[Any],
    **more: Any,
) -> Snapshot:
    """Publish documents of (section, text)s; passage i has the i-th of the rows."""
    lines = [
        json.dumps({"id": f"{source}#{at}", "text": text, "source": source, "title": source,
                    "location": section, "start": 10 * at, "end": 10 * at + 12}).encode()
        for source, parts in documents for at, (section, text) in enumerate(parts)
    ]  # fmt: skip
    contents = store.Contents(
        EmbedderId.of(manifest()), DIMENSION, "r",
        [DocumentRecord(source, source, "0", "r", len(parts)) for source, parts in documents],
        lines, [np.array(rows, np.float32).reshape(-1, DIMENSION)], **more,
    )  # fmt: skip
    with store.writing(index_dir, "default") as folder:
        return Snapshot.open(folder / store.publish(folder, contents).snapshot)


def ask(snapshot: Snapshot, **fields: Any) -> list[dict[str, Any]]:
    where = parse_filter(json.dumps(fields.pop("filter", {})))
    query = Query(**{"embedding": UNIT[0], **fields})
    (result,) = search(snapshot, [query], snapshot.allowed(where))
    passages = [json.loads(passage) for passage in result.passages]
    assert [each["score"] for each in passages] == pytest.approx(result.scores, abs=1e-6)
    return passages


def ids(passages: list[dict[str, Any]]) -> list[str]:
    return [passage["id"] for passage in passages]


def near(cosine: float, axis: int) -> np.ndarray:  # type: ignore[type-arg]
    """Return a unit vector of this cosine to the first axis."""
    return np.asarray(cosine * UNIT[0] + np.sqrt(1 - cosine**2) * UNIT[axis])


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return publish(
        tmp_path,
        [
            ("a", [("A", "red apple")]),
            ("b", [("B", "green pear")]),
            ("c", [("C", "apple and pear")]),
        ],
        [near(0.9, 1), near(0.6, 2), near(0.3, 3)],
    )


def test_dense_ranks_by_the_vectors(snapshot: Snapshot) -> None:
    found = ask(snapshot, question="pear", mode="dense")
    assert ids(found) == ["a#0", "b#0", "c#0"]
    assert [each["score"] for each in found] == pytest.approx([0.9, 0.6, 0.3])
    assert "dense_score" not in found[0]


def test_sparse_ranks_by_words_and_knows_the_similarity(snapshot: Snapshot) -> None:
    found = ask(snapshot, question="pears", mode="sparse")
    assert set(ids(found)) == {"b#0", "c#0"}
    assert {each["id"]: each["dense_score"] for each in found} == {"b#0": 0.6, "c#0": 0.3}
    assert all(each["score"] == each["sparse_score"] > 0 for each in found)


def test_hybrid_fuses_both(snapshot: Snapshot) -> None:
    found = ask(snapshot, question="pear", mode="hybrid")
    assert ids(found)[0] == "b#0"
    assert set(ids(found)) == {"a#0", "b#0", "c#0"}
    assert 0.5 < found[0]["score"] < 1
    assert [("sparse_score" in each) for each in sorted(found, key=lambda each: each["id"])] == [
        False, True, True,
    ]  # fmt: skip


def test_the_collection_has_a_mode_of_its_own(tmp_path: Path) -> None:
    snapshot = publish(tmp_path, [("a", [("A", "x y"), ("A", "z")])], UNIT[:2], mode="sparse")
    assert ids(ask(snapshot, question="z")) == ["a#1"]
    assert ids(ask(snapshot, question="z", mode="dense")) == ["a#0", "a#1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fuzzy"}, "mode: 'fuzzy' is not one of dense, sparse, hybrid"),
        ({"mode": "hybrid"}, "question: is missing; mode 'hybrid'"),
        ({"mode": "sparse", "question": " "}, "question: is empty or blank"),
        ({"min_score": 1.5}, "min_score: 1.5 is not in -1 to 1"),
        ({"min_score": float("nan")}, "min_score: nan"),
        ({"diversity": -0.1}, "diversity: -0.1 is not in 0 to 1"),
    ],
)
def test_bad_queries(
    tmp_path: Path, snapshot: Snapshot, fields: dict[str, Any], message: str
) -> None:
    with (
        Retriever(tmp_path, manifest()) as retriever,
        pytest.raises(InvalidRequest, match=message),
    ):
        retriever.check(Query(UNIT[0], **fields))


def make_old(folder: Path) -> None:
    """Take from a snapshot what format version 3 added."""
    values = json.loads((folder / "manifest.json").read_text())
    for added in ("sizes", "mode", "probing", "analysis"):
        del values[added]
    values["format_version"] = 2
    values["files"] = {name: each for name, each in values["files"].items() if "bm25" not in name}
    (folder / "manifest.json").write_text(json.dumps(values))
    for path in folder.glob("bm25*"):
        path.unlink()


def test_a_snapshot_from_before_bm25_is_searched_by_its_vectors(
    tmp_path: Path, snapshot: Snapshot
) -> None:
    folder = tmp_path / "default" / snapshot.name
    make_old(folder)
    assert len(ask(Snapshot.open(folder))) == 3
    with Retriever(tmp_path, manifest()) as retriever:
        retriever.check(Query(UNIT[0]))
        with pytest.raises(InvalidRequest, match="'default' was indexed before there was one"):
            retriever.check(Query(UNIT[0], mode="hybrid", question="x"))


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_a_threshold_is_of_the_similarity_in_every_mode(snapshot: Snapshot, mode: str) -> None:
    found = ask(snapshot, question="apple pear", mode=mode, min_score=0.5)
    assert set(ids(found)) == {"a#0", "b#0"}


def test_near_duplicates_make_room_for_others(tmp_path: Path) -> None:
    text = "All employees receive leave from their first day on, in full."
    parts = [("A", text), ("A", text.upper()), ("A", text + " 30"), ("A", "something else")]
    rows = [near(0.9, 1), near(0.89, 1), near(0.88, 1), near(0.5, 2)]
    snapshot = publish(tmp_path, [("a", parts)], rows)
    assert ids(ask(snapshot, top_k=3)) == ["a#0", "a#2", "a#3"]


def test_diversity_prefers_what_is_different(tmp_path: Path) -> None:
    parts = [("A", f"text {number}") for number in range(3)]
    snapshot = publish(tmp_path, [("a", parts)], [near(0.9, 1), near(0.89, 1), near(0.6, 2)])
    assert ids(ask(snapshot, top_k=2)) == ["a#0", "a#1"]
    assert ids(ask(snapshot, top_k=2, diversity=0.6)) == ["a#0", "a#2"]


def test_neighbours_of_one_section_are_merged(tmp_path: Path) -> None:
    documents = [
        ("a", [("A", "One. Two."), ("A", "Two. Three."), ("Other", "Four.")]),
        ("b", [("A", "Five.")]),
    ]
    rows = [near(0.7, 1), near(0.9, 2), near(0.8, 3), near(0.6, 4)]
    found = ask(publish(tmp_path, documents, rows), merge=True)
    assert [(each["id"], each["text"]) for each in found] == [
        ("a#0", "One. Two. Three."), ("a#2", "Four."), ("b#0", "Five."),
    ]  # fmt: skip
    assert found[0]["merged"] == ["a#0", "a#1"]
    assert (found[0]["start"], found[0]["end"], found[0]["score"]) == (0, 22, 0.9)
    assert "merged" not in found[1]


def test_an_empty_collection_finds_nothing_in_any_mode(tmp_path: Path) -> None:
    snapshot = publish(tmp_path, [], [])
    for mode in ("dense", "sparse", "hybrid"):
        assert ask(snapshot, question="x", mode=mode, diversity=0.5, merge=True) == []


WORDS = ["north", "south", "east", "west", "up", "down", "left", "right"]


@pytest.fixture(scope="module", params=["exact", "approximate"])
def many(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Snapshot]:
    """600 passages of random words in 100 documents."""
    random = np.random.default_rng(0)
    documents = [
        (f"d{number}", [("S", f"{' '.join(random.choice(WORDS, 4))} {number} {at}")
                        for at in range(6)])
        for number in range(100)
    ]  # fmt: skip
    rows = [vector(f"{number}") for number in range(600)]
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "approximate":
            patch.setattr(vectors, "EXACT_UP_TO", 100)
            patch.setattr(vectors, "AMONG_UP_TO", 50)
        yield publish(tmp_path_factory.mktemp("many"), documents, rows)


def test_the_larger_index_is_used(many: Snapshot) -> None:
    approximate = many.manifest.factory != "Flat"
    assert many.manifest.factory == ("IVF128,SQ8" if approximate else "Flat")
    assert ("vectors.npy" in many.manifest.files) is approximate
    assert many.vectors(range(3, 5)) == pytest.approx(np.stack([vector("3"), vector("4")]))


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid"])
def test_no_mode_finds_what_a_filter_keeps_out(many: Snapshot, mode: str) -> None:
    random = np.random.default_rng(1)
    for turn in range(60):
        sources = tuple(f"d{number}" for number in random.choice(100, random.integers(1, 40)))
        fields: dict[str, Any] = {
            "mode": mode, "top_k": int(random.integers(1, 30)), "merge": bool(turn % 2),
            "diversity": float(random.choice([0, 0.5])), "embedding": vector(f"q{turn}"),
            "question": " ".join(random.choice(WORDS, 3)), "filter": {"source": sources},
        }  # fmt: skip
        found = ask(many, **fields)
        assert {each["source"] for each in found} <= set(sources)
        if mode != "sparse" and not fields["merge"]:
            assert len(found) == min(fields["top_k"], 6 * len(set(sources)))


def test_a_file_of_another_size_is_noticed_without_hashing(tmp_path: Path) -> None:
    snapshot = publish(tmp_path, [("a", [("A", "x")])], UNIT[:1])
    folder = tmp_path / "default" / str(layout.current(tmp_path / "default"))
    assert folder.name == snapshot.name
    with (folder / "bm25.terms.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(Exception, match=r"bm25.terms.json differs"):
        Snapshot.open(folder, verify=False)


def indexed(index_dir: Path, docs: Path, mode: str | None = None) -> Added:
    adder = Adder(index_dir, manifest(), HashEmbedder(), parsers(), mode=mode)
    return adder.add("default", find_files([docs])[0])


def live(index_dir: Path) -> Snapshot:
    folder = index_dir / "default"
    return Snapshot.open(folder / str(layout.current(folder)))


def test_a_collection_keeps_its_mode_until_it_is_given_another(tmp_path: Path) -> None:
    write(tmp_path / "docs", leave="# Leave\n\nThirty days.")
    modes = []
    for mode in (None, "hybrid", None, "dense"):
        modes.append((indexed(tmp_path, tmp_path / "docs", mode), live(tmp_path).manifest.mode))
    assert [mode for _, mode in modes] == ["dense", "hybrid", "hybrid", "dense"]
    assert [done.published for done, _ in modes] == [True, True, False, True]
    assert [done.embedded for done, _ in modes] == [1, 0, 0, 0]


def test_an_older_snapshot_is_written_again_with_what_it_lacks(tmp_path: Path) -> None:
    write(tmp_path / "docs", leave="# Leave\n\nThirty days.")
    indexed(tmp_path, tmp_path / "docs")
    make_old(tmp_path / "default" / live(tmp_path).name)
    assert live(tmp_path).outdated
    done = indexed(tmp_path, tmp_path / "docs")
    assert (done.published, done.unchanged, done.embedded) == (True, 1, 0)
    assert len(ask(live(tmp_path), question="leave", mode="sparse")) == 1
