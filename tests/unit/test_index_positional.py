"""Files of a live snapshot that are truncated, deleted or changed in place."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from index_samples import HashEmbedder, add, manifest, write

from tritonrag.errors import NotFound, SetupError, Unavailable
from tritonrag.index import Query, Retriever, Snapshot, layout, positional, tuning, vectors
from tritonrag.index.positional import ArrayFile, PositionalFile, open_array

LARGE = 400
DIMENSION = 64


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every file as large, and lists as worth while from few passages on."""
    monkeypatch.setattr(positional, "SMALL_BYTES", 0)
    monkeypatch.setattr(vectors, "EXACT_UP_TO", 100)
    monkeypatch.setattr(tuning, "TRAINING_PER_LIST", 40)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of two collections, approximate and with words."""
    folder = tmp_path_factory.mktemp("whole")
    text = "\n\n".join(f"# Part {n}\n\nText of part {n}, word{n}." for n in range(LARGE))
    write(folder / "docs", one=text, two="# Two\n\nShort.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "EXACT_UP_TO", 100)
        for collection in ("a", "b"):
            add(folder / "index", folder / "docs", HashEmbedder(DIMENSION), collection)
    return folder / "index"


@pytest.fixture
def index(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "index"))


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def retriever(index: Path, log: list[str]) -> Iterator[Retriever]:
    made = Retriever(index, manifest(dimension=DIMENSION), log.append, poll_seconds=3600)
    with made:
        made._closed.set()  # The tests say when it looks.
        yield made


def queries(collection: str) -> list[Query]:
    """Return what reads every file of a snapshot."""
    asked = np.random.default_rng(5).normal(size=(4, DIMENSION)).astype(np.float32)
    return [
        Query(each, collection, 20, question="word7 text", mode=mode)
        for each in asked
        for mode in ("dense", "sparse", "hybrid")
    ]


def live(index: Path, collection: str) -> Path:
    return index / collection / str(layout.current(index / collection))


READ = ["passages.jsonl", "vectors.npy", "bm25.scores.npy", "bm25.passages.npy"]
HELD = [
    "manifest.json", "documents.jsonl", "passages.offsets.npy", "vectors.faiss", "bm25.starts.npy",
    "bm25.terms.json", "bm25.json",
]  # fmt: skip


def test_these_are_all_files(index: Path) -> None:
    assert sorted(READ + HELD) == sorted(path.name for path in live(index, "a").iterdir())


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("left", [0, 100, 0.9])
def test_a_truncated_file_costs_its_own_collection_alone(
    retriever: Retriever, index: Path, log: list[str], name: str, left: float
) -> None:
    path = live(index, "a") / name
    size = path.stat().st_size
    os.truncate(path, int(left * size) if left < 1 else left)
    refused = []
    for ours, theirs in zip(queries("a"), queries("b"), strict=True):
        try:
            retriever.search([ours])
        except Unavailable as error:
            refused.append(error)
        assert retriever.search([theirs])[0].passages
    assert all(f"snapshot {path.parent.name} is damaged: {name}" in str(each) for each in refused)
    assert all(str(index) not in str(each) for each in refused)
    retriever.refresh()
    assert list(retriever.collections) == ["b"]
    with pytest.raises(Unavailable, match="collection a: its index cannot be served"):
        retriever.search(queries("a"))
    retriever.refresh()
    assert sum("collection a: refused" in line for line in log) in (1, 2)


@pytest.mark.parametrize("name", HELD)
def test_what_is_in_memory_is_not_missed(retriever: Retriever, index: Path, name: str) -> None:
    expected = [result.passages for result in retriever.search(queries("a"))]
    os.truncate(live(index, "a") / name, 0)
    retriever.refresh()
    assert [result.passages for result in retriever.search(queries("a"))] == expected


def test_a_deleted_snapshot_is_served_on(retriever: Retriever, index: Path) -> None:
    shutil.rmtree(live(index, "a"))
    retriever.refresh()
    assert all(result.passages for result in retriever.search(queries("a")))


def test_a_collection_comes_back_with_its_next_snapshot_or_its_files(
    retriever: Retriever, index: Path, whole: Path
) -> None:
    path = live(index, "a") / "passages.jsonl"
    content = path.read_bytes()
    os.truncate(path, 10)
    retriever.refresh()
    assert list(retriever.collections) == ["b"]
    path.write_bytes(content)
    retriever._live = {
        name: each.__class__(each.seen, each.snapshot, each.refusal, 0.0)
        for name, each in retriever._live.items()
    }  # as after the seconds that a refusal lasts
    retriever.refresh()
    assert all(result.passages for result in retriever.search(queries("a")))
    os.truncate(path, 10)
    retriever.refresh()
    shutil.copytree(live(whole, "a"), path.parent, dirs_exist_ok=True)
    layout.set_current(index / "a", path.parent.name, manifest().sha256)
    retriever.refresh()
    assert all(result.passages for result in retriever.search(queries("a")))


def test_a_file_changed_in_place_is_refused_at_the_next_look(
    retriever: Retriever, index: Path
) -> None:
    path = live(index, "a") / "passages.jsonl"
    with path.open("r+b") as opened:
        opened.write(b"[")
    os.utime(path, ns=(1, 1))
    retriever.refresh()
    assert list(retriever.collections) == ["b"]
    assert "differs from when it was written" in retriever.refusals["a"]


@pytest.mark.parametrize(
    "name", [*READ, "passages.offsets.npy", "vectors.faiss", "bm25.starts.npy"]
)
def test_a_file_truncated_while_it_is_loaded(
    index: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Sizes and hashes were right a moment before."""
    from tritonrag.index import snapshot

    monkeypatch.setattr(snapshot, "_check_sizes", lambda folder, manifest: None)
    size = (live(index, "a") / name).stat().st_size
    for left in sorted({0, 1, 60, 128, size // 3, size // 2, size - 1}, reverse=True):
        os.truncate(live(index, "a") / name, left)
        with pytest.raises(SetupError, match="is damaged"):
            Snapshot.open(live(index, "a"), verify=False)


def test_a_collection_that_may_not_be_read_does_not_stop_the_others(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root may read everything, the system's answer is played."""
    stat = Path.stat

    def denied(path: Path, **options: bool) -> os.stat_result:
        if path.parent == index / "a":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    def closed(path: Path, **options: str) -> str:
        denied(path)
        return path.read_bytes().decode(options["encoding"])

    monkeypatch.setattr(Path, "stat", denied)
    monkeypatch.setattr(Path, "read_text", closed)
    name = f"CURRENT-{manifest().sha256[:12]}"
    with Retriever(index, manifest(dimension=DIMENSION)) as retriever:
        assert list(retriever.collections) == ["b"]
        assert retriever.refusals == {"a": f"{name}: Permission denied"}


def test_a_pointer_that_cannot_be_read_is_named_without_its_path(index: Path) -> None:
    (index / "a" / f"CURRENT-{manifest().sha256[:12]}").unlink()
    (index / "a" / "CURRENT").unlink()
    (index / "a" / "CURRENT").mkdir()
    with Retriever(index, manifest(dimension=DIMENSION)) as retriever:
        assert list(retriever.collections) == ["b"]
        with pytest.raises(NotFound, match="there are b "):
            retriever.check(queries("a")[0])


def test_the_index_itself_cannot_be_listed(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    retriever.refresh()
    retriever.refresh()
    assert log[-1] == "index: the index cannot be listed: Permission denied"
    assert sum("cannot be listed" in line for line in log) == 1
    assert all(result.passages for result in retriever.search(queries("a")))


@pytest.mark.parametrize("many", [1, 1000])
def test_an_array_file_gives_what_numpy_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(positional, "_MANY", many)
    array = np.arange(300, dtype=np.float32).reshape(100, 3)
    np.save(tmp_path / "a.npy", array)
    opened = open_array(tmp_path / "a.npy")
    assert isinstance(opened, ArrayFile)
    numbers = np.random.default_rng(0).integers(-1, 100, (7, 5))
    ascending = np.flatnonzero(np.arange(100) % 7 < 4)
    for key in (slice(3, 9), slice(None), slice(5, 5), numbers, ascending, np.array([], np.int64)):
        assert np.array_equal(opened[key], array[key])
    assert opened.shape == array.shape


def test_reads_do_not_end_before_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may give less than was asked for."""
    (tmp_path / "f").write_bytes(bytes(range(200)))
    file = PositionalFile(tmp_path / "f")
    whole = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, size, at: whole[0](fd, min(size, 7), at))
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: whole[1](fd, [to[0][:7]], at))
    assert file.read(20, 100) == bytes(range(20, 120))
    with pytest.raises(SetupError, match="shorter than when it was opened"):
        file.read(150, 60)


def test_files_are_closed_with_their_snapshot(index: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = opened()
    snapshots = [Snapshot.open(live(index, "a")) for _ in range(5)]
    assert opened() == before + 5 * len(READ)
    del snapshots
    assert opened() == before


def test_nothing_of_a_snapshot_is_mapped(index: Path) -> None:
    """In a process of its own, where nothing else is."""
    program = (
        "import sys; from pathlib import Path; from tritonrag.index import Snapshot, positional\n"
        "positional.SMALL_BYTES = 0; snapshot = Snapshot.open(Path(sys.argv[1]))\n"
        "assert sys.argv[1] not in Path('/proc/self/maps').read_text()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(live(index, "a"))], check=True)
