"""Attacks by files: truncated snapshots, links, sidecars, names, folders that nobody serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from servers import REPOSITORY, ROOT, Served, statistics, tritonrag

from tritonrag.artifacts import EmbedderManifest
from tritonrag.client import Client
from tritonrag.errors import NotFound, TritonragError, Unavailable
from tritonrag.index import EmbedderId, archive, layout, store, vectors
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.positional import SMALL_BYTES
from tritonrag.metadata import Metadata

PASSAGES = 3_000
WORDS = 120
"""Different words of a passage: enough for postings that are read from disk."""


@pytest.fixture(scope="module")
def client(empty: Served) -> Iterator[Client]:
    with Client(empty.grpc) as made:
        yield made


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def add(served: Served, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    options = ["--url", served.grpc, "--index-dir", str(served.index_dir)]
    done = tritonrag("index", "add", *map(str, arguments), *options)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def publish(served: Served, collection: str, documents: int, count: int, words: int) -> None:
    """Make random passages live; each says its number."""
    embedder = EmbedderManifest.load(REPOSITORY)
    random = np.random.default_rng(7)
    rows = random.normal(size=(count, embedder.dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    texts = [
        f"passage {n} " + " ".join(f"w{word}" for word in random.integers(0, 5000, words))
        for n in range(count)
    ]
    each = count // documents
    contents = store.Contents(
        embedder=EmbedderId.of(embedder),
        dimension=embedder.dimension,
        recipe="r",
        documents=[
            DocumentRecord(f"d{n}.md", "D", "0" * 64, "r", each, Metadata())
            for n in range(documents)
        ],
        passages=(
            json.dumps({"id": f"{n}", "text": text, "source": f"d{n // each}.md", "title": "D",
                        "location": ""}).encode()
            for n, text in enumerate(texts)
        ),
        vectors=[rows],
    )  # fmt: skip
    with store.writing(served.index_dir, collection) as folder:
        store.publish(folder, contents)


@pytest.fixture(scope="module")
def pair(empty: Served, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections, of which `a` has every file that there is; return an export of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "EXACT_UP_TO", PASSAGES - 1)
        publish(empty, "a", 30, PASSAGES, WORDS)
    publish(empty, "b", 3, 30, 5)
    until(lambda: all(answers(client, name) for name in "ab"))
    return archive.export(empty.index_dir, "a", tmp_path_factory.mktemp("export") / "a.tar")


def answers(client: Client, collection: str) -> bool:
    try:
        return bool(client.search("w7 w8", collection=collection, mode="hybrid").passages)
    except TritonragError:
        return False


@contextmanager
def searching(served: Served, collection: str, errors: list[Exception]) -> Iterator[list[int]]:
    """Search without pause in another thread; yield how often so far."""
    ended, count = threading.Event(), [0]

    def run() -> None:
        with Client(served.grpc) as client:
            while not ended.is_set():
                try:
                    found = client.search("w7", collection=collection, mode="hybrid")
                    assert found.passages
                except Exception as error:
                    errors.append(error)
                count[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()


def live(served: Served, collection: str) -> Path:
    folder = served.index_dir / collection
    return folder / str(layout.current(folder))


def test_truncating_any_file_of_a_collection_leaves_the_others(
    empty: Served, client: Client, pair: Path
) -> None:
    """And the collection comes back with its next snapshot."""
    names = sorted(path.name for path in live(empty, "a").iterdir())
    large = {path.name for path in live(empty, "a").iterdir() if path.stat().st_size > SMALL_BYTES}
    assert {"passages.jsonl", "vectors.npy", "bm25.scores.npy", "bm25.passages.npy"} <= large
    errors: list[Exception] = []
    refused: dict[str, str] = {}
    with searching(empty, "b", errors) as searches:
        for name in names:
            path = live(empty, "a") / name
            os.truncate(path, path.stat().st_size // 2)
            before = searches[0]
            for mode in ("dense", "sparse", "hybrid"):
                try:
                    assert client.search("w7 w8", collection="a", mode=mode, top_k=50).passages
                except Unavailable as error:
                    refused[name] = str(error)
            until(lambda before=before: searches[0] > before + 3)
            archive.install(empty.index_dir, pair, None, "a", on_opening=lambda found: None)
            fresh = live(empty, "a").name
            until(lambda fresh=fresh: serves(client, "a", fresh))
            assert answers(client, "a")
    assert errors == []
    assert refused.keys() <= large
    assert {"passages.jsonl", "vectors.npy", "bm25.scores.npy"} <= refused.keys()
    for said in refused.values():
        assert said.startswith("collection a: its index cannot be served: snapshot")
        assert str(empty.index_dir) not in said
    log = empty.server.log.read_text(errors="replace")
    assert "collection a: refused: snapshot" in log
    assert "signal" not in log.lower().replace("signal (2)", "")


def serves(client: Client, collection: str, snapshot: str) -> bool:
    from tritonrag.client.snapshots import why_not_served

    dimension = EmbedderManifest.load(REPOSITORY).dimension
    return why_not_served(client, collection, snapshot, dimension) == ""


def test_a_search_names_its_snapshot_and_gets_no_other(
    empty: Served, client: Client, pair: Path
) -> None:
    assert serves(client, "b", live(empty, "b").name)
    assert not serves(client, "b", live(empty, "a").name)
    assert not serves(client, "none", live(empty, "a").name)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "leave.md").write_text("# Leave\n\nEmployees have 28 days of leave.\n")
    (tmp_path / "docs" / "pay.md").write_text("# Pay\n\nSalaries are paid monthly by the bank.\n")
    (tmp_path / "docs" / "pay.md.meta.yaml").write_text("access: [hr]\n")
    return tmp_path / "docs"


def sources(client: Client, collection: str, groups: tuple[str, ...] = ()) -> set[str]:
    found = client.search("salaries", collection=collection, groups=groups)
    return {passage.source for passage in found.passages}


def test_not_found_names_what_the_caller_may_read(
    empty: Served, client: Client, docs: Path, pair: Path
) -> None:
    add(empty, docs / "pay.md", "--collection", "wages")
    for groups, named in (((), False), (("it",), False), (("hr", "it"), True)):
        with pytest.raises(NotFound) as raised:
            client.search("salaries", collection="none", groups=groups)
        assert ("wages" in str(raised.value)) == named
        assert "there are a, b" in str(raised.value)


def test_nothing_closed_is_opened_by_a_mistake(empty: Served, client: Client, docs: Path) -> None:
    name = ("--collection", "opened")
    (docs / "pay.md.meta.yaml").rename(docs.parent / "kept.yaml")
    add(empty, docs, *name)
    assert sources(client, "opened") == {"leave.md", "pay.md"}
    (docs.parent / "kept.yaml").rename(docs / "pay.md.meta.yaml")
    add(empty, docs, *name)
    assert sources(client, "opened") == {"leave.md"}
    (docs / "pay.md.meta.yaml").unlink()
    done = add(empty, docs, *name)
    assert "pay.md: would be open to everyone: it was for hr" in done.stderr
    assert sources(client, "opened") == {"leave.md"}
    index = ("--index-dir", str(empty.index_dir))
    done = tritonrag("index", "rollback", *name, *index)
    assert done.returncode == 2
    assert "pay.md: was for hr, is for everyone" in done.stderr
    time.sleep(1)
    assert sources(client, "opened") == {"leave.md"}
    assert sources(client, "opened", ("hr",)) == {"leave.md", "pay.md"}
    done = add(empty, docs, *name, "--allow-opening", "--json")
    assert json.loads(done.stdout)["opened"] == [
        {"source": "pay.md", "before": ["hr"], "after": []}
    ]
    assert sources(client, "opened") == {"leave.md", "pay.md"}


def test_links_out_of_the_folder_are_refused_and_named(
    empty: Served, client: Client, docs: Path
) -> None:
    (docs.parent / "secret.md").write_text("# Secret\n\nThe salaries of all.\n")
    (docs / "linked.md").symlink_to("../secret.md")
    (docs / "shadow.txt").symlink_to("/etc/shadow")
    (docs / "etc").symlink_to("/etc")
    done = add(empty, docs, "--collection", "links")
    for name in ("linked.md", "shadow.txt", "etc"):
        assert f"not indexed: {docs / name}: is a link that leads out of its folder" in done.stderr
    assert sources(client, "links", ("hr",)) == {"leave.md", "pay.md"}
    (docs / "shadow.txt").unlink()
    (docs / "etc").unlink()
    add(empty, docs, "--collection", "links", "--follow-links")
    assert sources(client, "links", ("hr",)) == {"leave.md", "linked.md", "pay.md"}


def test_a_folder_that_the_server_does_not_read_is_not_called_live(
    empty: Served, client: Client, docs: Path, tmp_path: Path
) -> None:
    name = ("--collection", "elsewhere", "--url", empty.grpc)
    for _ in range(2):
        done = tritonrag("index", "add", str(docs), *name, "--index-dir", str(tmp_path / "other"))
        assert done.returncode == 1, done.stdout + done.stderr
        assert "is live" not in done.stdout + done.stderr
        assert "stays live" not in done.stdout
        assert f"is in {tmp_path / 'other'}, but the server at {empty.grpc} does not" in done.stderr
        assert "no collection is called 'elsewhere'" in done.stderr
        assert "--index-dir" in done.stderr
    done = add(empty, docs, "--collection", "elsewhere", "--json")
    assert json.loads(done.stdout)["served"] is True
    assert sources(client, "elsewhere") == {"leave.md"}
    http = ("--protocol", "http", "--url", empty.http.removeprefix("http://"))
    done = tritonrag("index", "sync", str(docs), "--collection", "elsewhere", *http, "--json",
                     "--index-dir", str(empty.index_dir))  # fmt: skip
    assert json.loads(done.stdout)["served"] is True, done.stderr


def test_a_path_that_is_not_there_ends_a_run_at_once(empty: Served, tmp_path: Path) -> None:
    for command in ("add", "sync"):
        started = time.monotonic()
        done = tritonrag("index", command, str(tmp_path / "none"), "--url", empty.grpc,
                         "--index-dir", str(empty.index_dir))  # fmt: skip
        assert done.returncode == 2
        assert f"{tmp_path / 'none'}: no such file or folder; nothing was changed" in done.stderr
        assert time.monotonic() - started < 5 * 4  # and not after 5, 10, 20 and 40 seconds


def embedded(served: Served) -> int:
    return int(statistics(served, "embed")["inference_count"])


TERMINAL = """
import signal
from tritonrag.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
"""The command as on a terminal: under nohup or in a script's background, SIGINT is ignored."""


def test_an_interrupted_run_goes_on_where_it_was(empty: Served, tmp_path: Path) -> None:
    sections = (f"# Part {n}\n\n" + f"Rule {n} is kept. " * 10 for n in range(250))
    (tmp_path / "rules.md").write_text("\n\n".join(sections))
    name = ("--collection", "rules")
    options = ["--url", empty.grpc, "--index-dir", str(empty.index_dir), *name]
    command = [sys.executable, "-c", TERMINAL, "index", "add", str(tmp_path / "rules.md")]
    before = embedded(empty)
    with subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: embedded(empty) >= before + 64 or process.poll() is not None, 60)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "the same command goes on where this one was" in errors
    done = json.loads(add(empty, tmp_path / "rules.md", *name, "--json").stdout)
    assert done["resumed"] >= 32
    assert done["resumed"] + done["embedded"] == done["passages"] >= 250


def test_names_and_texts_steer_no_terminal(empty: Served, docs: Path) -> None:
    (docs / "\x1b]0;owned\x07.md").write_bytes(b"a\0b")
    (docs / "\u202etxt.exe").write_bytes(b"x")
    (docs / "title.md").write_text("# \x1b[2JTitle\n\nText of \x9b31m it.\n")
    name = ("--collection", "escapes", "--index-dir", str(empty.index_dir))
    said = add(empty, docs, "--collection", "escapes").stderr
    said += add(empty, docs, "--collection", "escapes", "--json").stdout
    said += tritonrag("index", "stats", *name).stdout
    said += tritonrag("index", "remove", "\x1b[2J", *name).stderr
    said += tritonrag("index", "sync", str(docs), "--dry-run", *name).stdout
    assert all(each.isprintable() or each == "\n" for each in said)
    assert "\\x1b]0;owned\\x07.md: not text" in said
