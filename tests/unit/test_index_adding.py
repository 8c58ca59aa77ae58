from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from index_samples import HashEmbedder, add, manifest, vector, write

from tritonrag.errors import (
    InternalError,
    InvalidRequest,
    NotFound,
    SetupError,
    Unavailable,
    Unreachable,
)
from tritonrag.index import Snapshot, embedding, layout, store
from tritonrag.index.embedding import Embedder, OnEmbedded, embed_groups
from tritonrag.index.manifest import EmbedderId
from tritonrag.index.snapshot import Floats
from tritonrag.settings import KEPT_SNAPSHOTS


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write(
        tmp_path / "docs",
        leave="# Leave\n\n30 days.\n\n## Form\n\nForm L-1.",
        pay="# Pay\n\nMonthly.",
    )
    return tmp_path / "docs"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def live(index: Path) -> Snapshot:
    folder = index / "default"
    return Snapshot.open(folder / str(layout.current(folder)))


def sources(snapshot: Snapshot) -> list[tuple[str, int]]:
    return [(document.source, document.passages) for document in snapshot.documents]


def test_a_first_snapshot(docs: Path, index: Path) -> None:
    report = add(index, docs)
    assert (report.added, report.changed, report.unchanged) == (2, 0, 0)
    snapshot = live(index)
    assert snapshot.name == report.snapshot
    assert sources(snapshot) == [("leave.md", 2), ("pay.md", 1)]
    texts = ["Leave\n30 days.", "Leave > Form\nForm L-1.", "Pay\nMonthly."]
    assert np.array_equal(snapshot.vectors(range(3)), np.stack([vector(text) for text in texts]))
    assert json.loads(snapshot.passage(1))["location"] == "Leave > Form"
    facts = snapshot.manifest
    assert facts.embedder == EmbedderId.of(manifest())
    assert (facts.factory, facts.metric, facts.dimension, facts.parent) == (
        "Flat", "inner_product", 16, None,
    )  # fmt: skip


def test_the_same_files_change_nothing(docs: Path, index: Path) -> None:
    first = add(index, docs)
    embedder = HashEmbedder()
    again = add(index, docs, embedder)
    assert (again.unchanged, again.embedded, again.snapshot) == (2, 0, first.snapshot)
    assert embedder.texts == []


def test_only_what_changed_is_embedded(docs: Path, index: Path) -> None:
    first = add(index, docs)
    write(docs, leave="# Leave\n\n31 days.", new="# New\n\nHello.")
    embedder = HashEmbedder()
    report = add(index, docs, embedder)
    assert (report.added, report.changed, report.unchanged) == (1, 1, 1)
    assert sorted(embedder.texts) == ["Leave\n31 days.", "New\nHello."]
    snapshot = live(index)
    assert sources(snapshot) == [("leave.md", 1), ("new.md", 1), ("pay.md", 1)]
    assert np.array_equal(snapshot.vectors(range(2, 3))[0], vector("Pay\nMonthly."))
    assert snapshot.manifest.parent == first.snapshot


def test_documents_of_earlier_runs_stay(docs: Path, index: Path, tmp_path: Path) -> None:
    add(index, docs)
    write(tmp_path / "more", extra="Extra.")
    add(index, tmp_path / "more")
    assert sources(live(index)) == [("extra.md", 1), ("leave.md", 2), ("pay.md", 1)]


def test_a_file_that_fails_keeps_its_earlier_version(docs: Path, index: Path) -> None:
    first = add(index, docs)
    (docs / "pay.md").write_bytes(b"\0")
    report = add(index, docs)
    assert [Path(failure.name).name for failure in report.failures] == ["pay.md"]
    assert (report.unchanged, report.snapshot) == (1, first.snapshot)


def test_another_embedder_embeds_all_again(docs: Path, index: Path) -> None:
    add(index, docs)
    (docs / "leave.md").unlink()
    embedder = HashEmbedder(dimension=8)
    report = add(index, docs, embedder, sha256="cd" * 32)
    assert report.embedder_changed
    assert len(embedder.texts) == 3
    snapshot = live(index)
    assert snapshot.manifest.dimension == 8
    assert np.array_equal(snapshot.vectors(range(1))[0], vector("Leave\n30 days.", 8))


def test_an_embedder_beside_the_live_one_mirrors_its_documents(docs: Path, index: Path) -> None:
    ours, theirs = "ab" * 32, "cd" * 32
    first = add(index, docs)
    folder = index / "default"
    assert add(index, docs, HashEmbedder(), sha256=theirs, live=ours).embedded == 3
    assert layout.current(folder) == layout.current(folder, ours) == first.snapshot
    write(docs, leave="# Leave\n\n31 days.", new="# New\n\nHello.")
    add(index, docs)
    embedder = HashEmbedder()
    report = add(index, docs / "none", embedder, sha256=theirs, live=ours)
    assert sorted(embedder.texts) == ["Leave\n31 days.", "New\nHello."]
    assert (report.added, report.embedded, report.embedder_changed) == (0, 2, False)
    other = Snapshot.open(folder / str(layout.current(folder, theirs)))
    assert sources(other) == sources(live(index))
    assert other.manifest.embedder.sha256 == theirs
    again = add(index, docs / "none", embedder, sha256=theirs, live=ours)
    assert (again.embedded, again.snapshot) == (0, other.name)


def test_no_embedders_live_snapshot_is_removed(docs: Path, index: Path) -> None:
    theirs = add(index, docs, HashEmbedder(), sha256="cd" * 32).snapshot
    for number in range(KEPT_SNAPSHOTS + 2):
        write(docs, leave=f"# Leave\n\n{number} days.")
        add(index, docs)
    names = layout.snapshots(index / "default")
    assert theirs in names
    assert len(names) == KEPT_SNAPSHOTS + 1


def test_nothing_half_done_after_an_interrupt(docs: Path, index: Path) -> None:
    first = add(index, docs)
    write(docs, pay="# Pay\n\nWeekly.")

    class Interrupted(HashEmbedder):
        def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(index, docs, Interrupted())
    assert layout.snapshots(index / "default") == [first.snapshot]
    assert add(index, docs).changed == 1


def test_a_failed_write_leaves_the_live_snapshot(
    docs: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(index, docs)
    write(docs, pay="# Pay\n\nWeekly.")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_write_vectors", full)
    with pytest.raises(SetupError, match="No space left"):
        add(index, docs)
    assert [path.name for path in (index / "default").iterdir() if path.is_dir()] == [
        first.snapshot
    ]
    assert live(index).name == first.snapshot


def test_what_a_killed_writer_left_is_removed(docs: Path, index: Path) -> None:
    left = index / "default" / f"{layout.UNFINISHED}20260101T000000.000000Z-0000"
    left.mkdir(parents=True)
    (left / "vectors.faiss").write_bytes(b"half")
    add(index, docs)
    assert not left.exists()


def test_a_second_writer_waits(docs: Path, index: Path) -> None:
    waiting, done = threading.Event(), threading.Event()

    def second() -> None:
        with store.writing(index, "default", waiting.set):
            done.set()

    with store.writing(index, "default"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        assert not done.is_set()
    thread.join(5)
    assert done.is_set()


def test_old_snapshots_are_removed_but_never_the_live_one(docs: Path, index: Path) -> None:
    made = []
    for number in range(KEPT_SNAPSHOTS + 2):
        write(docs, pay=f"# Pay\n\nVersion {number}.")
        made.append(add(index, docs).snapshot)
    folder = index / "default"
    assert layout.snapshots(folder) == made[-KEPT_SNAPSHOTS:]
    assert made == sorted(made, key=str)


def test_rollback(docs: Path, index: Path) -> None:
    first = add(index, docs).snapshot
    write(docs, pay="# Pay\n\nWeekly.")
    second = add(index, docs).snapshot
    with store.writing(index, "default") as folder:
        assert store.roll_back(folder).snapshot == first == layout.current(folder)
        with pytest.raises(NotFound, match=f"no snapshot before the live one; there are: {first}"):
            store.roll_back(folder)
        assert store.roll_back(folder, second).snapshot == second
        with pytest.raises(NotFound, match="no snapshot 'x'"):
            store.roll_back(folder, "x")
    assert add(index, docs).unchanged == 2


def test_rollback_to_a_damaged_snapshot_is_refused(docs: Path, index: Path) -> None:
    first = add(index, docs).snapshot
    write(docs, pay="# Pay\n\nWeekly.")
    second = add(index, docs).snapshot
    (index / "default" / str(first) / "passages.jsonl").write_text("x")
    with (
        store.writing(index, "default") as folder,
        pytest.raises(SetupError, match="passages.jsonl differs"),
    ):
        store.roll_back(folder)
    assert layout.current(index / "default") == second


def test_rollback_from_a_damaged_snapshot(docs: Path, index: Path) -> None:
    first = add(index, docs).snapshot
    write(docs, pay="# Pay\n\nWeekly.")
    second = add(index, docs).snapshot
    (index / "default" / str(second) / "manifest.json").write_text("{")
    with pytest.raises(SetupError, match="is damaged.*tritonrag index rollback"):
        add(index, docs)
    with store.writing(index, "default") as folder:
        assert store.roll_back(folder).snapshot == first


def test_a_collection_has_a_plain_name(docs: Path, index: Path) -> None:
    with pytest.raises(InvalidRequest, match="collection: '../x'"):
        add(index, docs, collection="../x")


def embed_all(
    embedder: Embedder,
    texts: list[str],
    dimension: int,
    on_embedded: OnEmbedded = lambda texts, vectors: None,
    **options: int,
) -> Floats:
    groups = [("only", texts)]
    ((_, vectors),) = embed_groups(embedder, groups, dimension, on_embedded, **options)
    return vectors


def test_texts_of_like_length_share_a_batch() -> None:
    embedder = HashEmbedder()
    texts = ["x" * (number % 7 + 1) + str(number) for number in range(75)]
    counted: list[int] = []
    vectors = embed_all(
        embedder, texts, 16, lambda some, vectors: counted.append(len(some)), batch_texts=32
    )
    assert np.array_equal(vectors, np.stack([vector(text) for text in texts]))
    assert sorted(counted) == sorted(embedder.batches) == [11, 32, 32]


def test_a_busy_server_is_tried_again_but_an_absent_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "RETRY_SECONDS", (0.0, 0.0))

    class Busy(HashEmbedder):
        refusals: list[int]
        error: type[Unavailable] = Unavailable

        def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
            self.batches.append(0)
            if len(self.batches) in self.refusals:
                raise self.error("the queue is full")
            return super().embed(texts, role)

    embedder = Busy()
    embedder.refusals = [1, 3]
    assert len(embed_all(embedder, ["a", "b", "c"], 16, batch_texts=1, in_flight=1)) == 3
    absent = Busy()
    absent.refusals, absent.error = [1], Unreachable
    with pytest.raises(Unreachable):
        embed_all(absent, ["a"], 16)


def test_a_server_too_slow_for_many_calls_at_a_time_gets_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding, "RETRY_SECONDS", (0.01,) * 3)

    class Slow(HashEmbedder):
        at_work = threading.Semaphore(1)

        def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
            if not self.at_work.acquire(blocking=False):
                raise Unavailable("request timeout expired")
            try:
                threading.Event().wait(0.005)
                return super().embed(texts, role)
            finally:
                self.at_work.release()

    texts = [str(number) for number in range(40)]
    vectors = embed_all(Slow(), texts, 16, batch_texts=1)
    assert np.array_equal(vectors, np.stack([vector(text) for text in texts]))


def test_bad_embeddings_are_refused() -> None:
    with pytest.raises(SetupError, match="dimension 8"):
        embed_all(HashEmbedder(), ["a"], 8)

    class Broken(HashEmbedder):
        def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
            return np.full((len(texts), 16), np.nan, np.float32)

    with pytest.raises(InternalError, match="finite"):
        embed_all(Broken(), ["a"], 16)
