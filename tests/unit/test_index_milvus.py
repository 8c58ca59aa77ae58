"""The same searches on disk and in Milvus Lite; then what Milvus alone can do wrong."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import DIMENSION, manifest, vector
from milvus_lite.adapter.grpc.server import start_server_in_thread

from tritonrag.errors import InvalidRequest, NotFound, SetupError, Unavailable
from tritonrag.index import (
    EmbedderId,
    Query,
    Result,
    Retriever,
    open_retriever,
    parse_filter,
    removing,
    store,
)
from tritonrag.index.columns import Columns
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.milvus import Milvus, alias, collection_of, passages_name
from tritonrag.index.mirroring import mirror
from tritonrag.index.remote import RemoteSnapshot, expression
from tritonrag.metadata import Metadata
from tritonrag.settings import VectorDbSettings

WORDS = ("leave", "days", "travel", "hotel", "salary", "café", "urlaub", 'quote"s', "back\\slash")


@dataclass
class Lite:
    """A Milvus Lite server that can be stopped and started again on its port."""

    folder: Path
    port: int = 0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._server, self._db, self.port = start_server_in_thread(
            str(self.folder), port=self.port, max_workers=4
        )

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._db.close()

    @property
    def settings(self) -> VectorDbSettings:
        return VectorDbSettings(f"http://127.0.0.1:{self.port}", "", 2)


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lite]:
    made = Lite(tmp_path_factory.mktemp("milvus") / "data")
    yield made
    made.stop()


@pytest.fixture
def milvus(lite: Lite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Milvus]:
    """Use Milvus for what the test writes and serves; it is empty."""
    monkeypatch.setenv("VECTOR_DB_URI", lite.settings.uri)
    monkeypatch.setenv("VECTOR_DB_TIMEOUT", "2")
    with Milvus(lite.settings) as made:
        yield made
        for name in made("list_aliases")["aliases"]:
            made("drop_alias", name)
        for name in made("list_collections"):
            made("drop_collection", name)


def document(number: int) -> DocumentRecord:
    metadata = Metadata(
        tags=("even",) if number % 2 == 0 else ("odd", 'a "quoted" tag'),
        access=("staff",) if number % 3 == 0 else (),
        created=f"2026-01-{number + 1:02d}" if number % 4 else "",
        fields={"level": number, "area": "hr" if number < 5 else 'o"ps\\'},
    )
    return DocumentRecord(f"hr/{number:02d}.md", f"T {number}", "0", "r", 2, metadata)


def contents(count: int = 12, start: int = 0, **more: Any) -> store.Contents:
    documents = [document(number) for number in range(start, start + count)]
    passages = [
        json.dumps({"id": f"{each.source}#{part}", "source": each.source, "title": each.title,
                    "text": f"{WORDS[(n + part) % len(WORDS)]} {WORDS[n % 4]} {n} 中文 é",
                    "location": f"T {n}", "start": 10 * part, "end": 10 * part + 12},
                   ensure_ascii=False).encode()
        for n, each in enumerate(documents, start) for part in range(2)
    ]  # fmt: skip
    rows = np.array([vector(f"{n}") for n in range(2 * start, 2 * (start + count))], np.float32)
    fields = {"embedder": EmbedderId.of(manifest())} | more
    return store.Contents(
        dimension=DIMENSION, recipe="r", documents=documents, passages=passages,
        vectors=[rows.reshape(-1, DIMENSION)], **fields,
    )  # fmt: skip


def publish(index: Path, collection: str = "default", **more: Any) -> str:
    with store.writing(index, collection) as folder:
        return store.publish(folder, contents(**more)).snapshot


def quiet(index: Path, **more: Any) -> Retriever:
    """Return a retriever over ``index`` that looks only when it is told to."""
    return Retriever(index, manifest(), poll_seconds=3600, **more)


@pytest.fixture
def both(
    tmp_path: Path, milvus: Milvus, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Retriever, Retriever]]:
    publish(tmp_path)
    with quiet(tmp_path) as disk, open_retriever(manifest(), print) as remote:
        yield disk, remote


def asked(text: str = "3", **fields: Any) -> Query:
    where = parse_filter(json.dumps(fields.pop("filter", {})))
    groups = frozenset(fields.pop("groups", ()))
    return Query(vector(text), filter=where, groups=groups, **fields)


def test_both_answer_alike(both: tuple[Retriever, Retriever]) -> None:
    queries = [
        asked(top_k=5),
        asked(top_k=100),
        asked(top_k=100, groups=["staff", "nobody"]),
        asked(top_k=4, mode="sparse", question="Leave days in the café"),
        asked(top_k=4, mode="sparse", question="nothing shares xyzzy"),
        asked(top_k=30, mode="hybrid", question="urlaub travel 中文"),
        asked(top_k=5, mode="hybrid", question="hotel", min_score=0.1),
        asked(top_k=5, diversity=0.7),
        asked(top_k=5, merge=True, groups=["staff"]),
        asked(top_k=100, filter={"tags": 'a "quoted" tag'}),
        asked(top_k=100, filter={"area": 'o"ps\\'}, groups=["staff"]),
        asked(top_k=100, filter={"$not": {"created": {"$lte": "2026-01-06"}}}),
        asked(top_k=100, filter={"level": {"$gt": 3, "$lt": 9}, "tags": {"$ne": "odd"}}),
        asked(top_k=9, mode="hybrid", question="leave", filter={"source": {"$prefix": "hr/0"}}),
        asked(top_k=9, filter={"source": "none.md"}),
    ]
    disk, remote = both
    for query, expected, result in zip(
        queries, disk.search(queries), remote.search(queries), strict=True
    ):
        found, wanted = map(_apart, (result, expected))
        assert [each for each, _ in found] == [each for each, _ in wanted], query
        for (_, scores), (_, others) in zip(found, wanted, strict=True):
            assert scores == pytest.approx(others, abs=3e-6)
        assert result.scores == pytest.approx(expected.scores, abs=1e-5)


def _apart(result: Result) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Return each passage without its scores, and those."""
    parts = []
    for passage in map(json.loads, result.passages):
        scores = {name: passage.pop(name) for name in list(passage) if name.endswith("score")}
        parts.append((passage, scores))
    return parts


REFUSED: tuple[tuple[Query, type[Exception], str], ...] = (
    (asked(filter={"lvl": 3}), InvalidRequest, "unknown field 'lvl'"),
    (asked(filter={"level": "3"}), InvalidRequest, "`level` is compared with"),
    (asked(collection="other"), NotFound, "'other'; there are default"),
    (asked(mode="sparse"), InvalidRequest, "question: is missing"),
)


def test_both_refuse_alike(both: tuple[Retriever, Retriever]) -> None:
    for retriever in both:
        for query, error, message in REFUSED:
            with pytest.raises(error, match=message):
                retriever.check(query)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    ['"', "\\", "'", 'a" or document >= 0 or "', "%", "é", "中"]
)


@given(areas=st.lists(TEXTS, min_size=6, max_size=6), wanted=TEXTS, negate=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)  # fmt: skip
def test_no_text_of_a_filter_reaches_milvus(areas: list[str], wanted: str, negate: bool) -> None:
    documents = [
        DocumentRecord(f"{n}", "T", "0", "r", 1, Metadata(fields={"area": area}))
        for n, area in enumerate(areas)
    ]
    condition: dict[str, Any] = {"area": {"$ne" if negate else "$eq": wanted}}
    mask = Columns(documents).allowed(parse_filter(json.dumps(condition)), frozenset())
    expected = [n for n, area in enumerate(areas) if (area == wanted) != negate]
    if mask is None:
        assert expected == list(range(6))
        return
    operator, numbers = expression(mask).removeprefix("document ").rsplit("in ", 1)
    listed = set(json.loads(numbers))
    assert expected == [n for n in range(6) if (n in listed) != (operator == "not ")]


def test_swap_rollback_prune_and_removal_are_followed(
    tmp_path: Path, milvus: Milvus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONRAG_KEEP_SNAPSHOTS", "2")
    first = publish(tmp_path)
    with open_retriever(manifest(), print) as remote:

        def live() -> str:
            remote.refresh()
            return remote.collections["default"].name

        assert live() == first
        second = publish(tmp_path, start=1)
        assert remote.collections["default"].manifest.passages == 24
        assert live() == second
        assert remote.collections["default"].manifest.parent == first
        with store.writing(tmp_path, "default") as folder:
            store.roll_back(folder)
        assert live() == first
        removing.remove_documents(tmp_path, "default", ["hr/00.md"])
        live()
        assert [json.loads(p)["source"] for p in remote.search([asked("0", top_k=1)])[0].passages]
        assert remote.collections["default"].manifest.documents == 11
        third = publish(tmp_path, collection="with-dash_x")
        remote.refresh()
        assert remote.collections["with-dash_x"].name == third
        remote.check(asked("0", collection="with-dash_x", snapshot=third))
        with pytest.raises(NotFound, match="snapshot: .* is not live here"):
            remote.check(asked("0", snapshot=third))
        with pytest.raises(NotFound, match="there are default, with-dash_x"):
            remote.check(asked("0", collection="none"))
        snapshots = [name for name in milvus("list_collections") if not name.endswith("DOCUMENTS")]
        assert len(snapshots) == 3
        removing.remove_collection(tmp_path, "default")
        remote.refresh()
        assert sorted(remote.collections) == ["with-dash_x"]
        assert len(milvus("list_collections")) == 2


def test_a_snapshot_of_another_embedder_is_refused(tmp_path: Path, milvus: Milvus) -> None:
    publish(tmp_path)
    other = manifest(sha256="cd" * 32)
    with open_retriever(other, print) as remote:
        assert "was built with the embedder tiny" in remote.refusals["default"]
        with store.writing(tmp_path, "default") as folder:
            more = contents(count=3, embedder=EmbedderId.of(other))
            store.publish(folder, more, current=False)
        remote.refresh()
        assert len(remote.collections["default"]) == 6
    with open_retriever(manifest(), print) as remote:
        assert len(remote.collections["default"]) == 24


def test_an_empty_collection_answers_nothing(tmp_path: Path, milvus: Milvus) -> None:
    publish(tmp_path, count=0)
    with open_retriever(manifest(), print) as remote:
        queries = [asked(), asked(mode="hybrid", question="leave")]
        assert [len(each.passages) for each in remote.search(queries)] == [0, 0]


def test_an_interrupted_upload_is_done_again(tmp_path: Path, milvus: Milvus, lite: Lite) -> None:
    snapshot = publish(tmp_path)
    name = passages_name("default", snapshot)
    milvus("delete", name, filter="number in [1, 2]")
    mirror(tmp_path / "default", lite.settings)
    assert milvus("query", name, output_fields=["count(*)"])[0]["count(*)"] == 24


def test_documents_that_differ_are_refused(tmp_path: Path, milvus: Milvus) -> None:
    name = passages_name("default", publish(tmp_path))
    milvus("delete", f"{name}_DOCUMENTS", filter="number == 0")
    with pytest.raises(SetupError, match="cannot be read in Milvus"):
        RemoteSnapshot.open(milvus, name)


def test_a_passage_too_long_for_milvus_is_named(tmp_path: Path, milvus: Milvus) -> None:
    long = json.dumps({"text": "x" * 70_000, "location": ""}).encode()
    made = contents(count=1)
    with (
        pytest.raises(SetupError, match=r"hr/00.md is 70\d+ bytes .* holds 65535; cut smaller"),
        store.writing(tmp_path, "default") as folder,
    ):
        store.publish(folder, store.Contents(**{**vars(made), "passages": [long, long]}))


def test_milvus_goes_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_lite: Lite
) -> None:
    lines: list[str] = []
    monkeypatch.setenv("VECTOR_DB_URI", f"http://127.0.0.1:{free_lite.port}")
    monkeypatch.setenv("VECTOR_DB_TOKEN", "user:secret")
    monkeypatch.setenv("VECTOR_DB_TIMEOUT", "1")
    first = publish(tmp_path)
    free_lite.stop()
    with open_retriever(manifest(), lines.append) as remote:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"Milvus at 127.0.0.1:\d+: ") as caught:
            remote.search([asked()])
        assert time.monotonic() - started < 1.5
        with pytest.raises(Unavailable, match="not brought to Milvus, where it is as before"):
            publish(tmp_path, start=1)
        with pytest.raises(Unavailable, match="as before"):
            removing.remove_collection(tmp_path, "default")
        assert (tmp_path / "default").is_dir()
        free_lite.start()
        until(lambda: "default" in remote.collections)
        assert remote.collections["default"].name == first
        with store.writing(tmp_path, "default"):
            pass  # a run that finds nothing new
        until(lambda: remote.collections["default"].name != first)
        free_lite.stop()
        with pytest.raises(Unavailable):
            remote.search([asked()])
        free_lite.start()
        until(lambda: answers(remote))
    assert sum("live" in line for line in lines) == 2
    assert "secret" not in str(lines) + str(caught.value)


def test_a_milvus_that_says_nothing_costs_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with Milvus(VectorDbSettings(address, "", 1)) as milvus, pytest.raises(Unavailable):
            milvus("list_collections")
        assert time.monotonic() - started < 1.5


def answers(retriever: Retriever) -> bool:
    try:
        return bool(retriever.search([asked()])[0].passages)
    except Unavailable:
        return False


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def free_lite(tmp_path: Path) -> Iterator[Lite]:
    made = Lite(tmp_path / "milvus")
    yield made
    made.stop()


@pytest.mark.parametrize("collection", ["default", "a-b", "a_b", "x_live", "0"])
def test_names_lead_back_to_their_collection(collection: str) -> None:
    assert collection_of(alias(collection)) == collection
    assert collection_of(alias(collection, "ab" * 32)) == collection
    assert collection_of(passages_name(collection, "20261124T155136.123456Z-ab12")) is None


def test_settings_are_checked_and_show_no_credentials() -> None:
    assert VectorDbSettings.from_environment({}) is None
    with pytest.raises(SetupError, match="VECTOR_DB_URI is not a URL"):
        VectorDbSettings.from_environment({"VECTOR_DB_URI": "./secret.db"})
    with pytest.raises(SetupError, match="VECTOR_DB_TIMEOUT is 'x'"):
        VectorDbSettings.from_environment({"VECTOR_DB_URI": "http://m", "VECTOR_DB_TIMEOUT": "x"})
    made = VectorDbSettings.from_environment(
        {"VECTOR_DB_URI": "https://m:19530", "VECTOR_DB_TOKEN": "me:pw1"}
    )
    assert made is not None
    assert made.address == "m:19530"
    assert "pw1" not in repr(made)
    assert made.redacted("auth with me:pw1 failed") == "auth with *** failed"
