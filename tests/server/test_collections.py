"""Collections on the real server: who may read what, metrics, removal, swaps under load."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import psutil
import pytest
from servers import REPOSITORY, Served, tritonrag

from tritonrag.artifacts import EmbedderManifest
from tritonrag.client import Client
from tritonrag.errors import InvalidRequest, NotFound
from tritonrag.index import EmbedderId, store
from tritonrag.index.manifest import DocumentRecord
from tritonrag.metadata import Metadata

SWAPPED_DOCUMENTS, SWAPPED_PASSAGES = 20, 12_000


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc) as made:
        yield made


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def publish(
    served: Served, collection: str, documents: list[tuple[str, str, Metadata]], vectors: np.ndarray
) -> None:
    """Make (source, text, metadata) live, each with as many passages, all of the same text."""
    embedder = EmbedderManifest.load(REPOSITORY)
    each = len(vectors) // len(documents)
    contents = store.Contents(
        embedder=EmbedderId.of(embedder),
        dimension=embedder.dimension,
        recipe="r",
        documents=[
            DocumentRecord(source, source, "0" * 64, "r", each, metadata)
            for source, _, metadata in documents
        ],
        passages=(
            json.dumps({"id": source, "text": text, "source": source, "title": source,
                        "location": ""}).encode()
            for source, text, _ in documents
            for _ in range(each)
        ),
        vectors=[vectors],
    )  # fmt: skip
    with store.writing(served.index_dir, collection) as folder:
        store.publish(folder, contents)


TEAMS = [
    ("open.md", "Everybody has 28 days of leave.", Metadata()),
    ("hr/pay.md", "Salaries are paid monthly.", Metadata(access=("hr",), tags=("pay",))),
    ("it/vpn.md", "The VPN needs a token.", Metadata(access=("it", "ops"), fields={"level": 3})),
]


@pytest.fixture(scope="module")
def teams(served: Served, client: Client) -> str:
    publish(served, "teams", TEAMS, client.embed([text for _, text, _ in TEAMS]))
    until(lambda: exists(client, "teams"))
    return "teams"


def exists(client: Client, collection: str) -> bool:
    try:
        client.search("x", collection=collection)
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_groups_and_filters_decide_what_is_found(served: Served, teams: str, protocol: str) -> None:
    url = served.grpc if protocol == "grpc" else served.http

    def found(groups: list[str] | None = None, **where: object) -> list[str]:
        passages = client.search("work", collection=teams, groups=groups, filter=where or None)
        return sorted(passage.source for passage in passages)

    with Client(url, protocol) as client:
        assert found() == found(["sales"]) == ["open.md"]
        assert found(["hr", "ops"]) == ["hr/pay.md", "it/vpn.md", "open.md"]
        assert found(["hr"], source={"$prefix": "hr/"}) == ["hr/pay.md"]
        assert found(["ops"], level={"$gte": 3}) == ["it/vpn.md"]
        assert found(["ops"], **{"$not": {"level": 3}}) == ["open.md"]
        assert found(tags="pay") == []
        with pytest.raises(InvalidRequest, match="unknown field 'level'"):
            found(["hr"], level=3)


def test_an_answer_cites_what_the_caller_may_read(served: Served, teams: str) -> None:
    ask = ("ask", "When are salaries paid?", "--collection", teams, "--url", served.grpc, "--json")
    for options, sources in ((), {"open.md"}), (("--group", "hr"), {"open.md", "hr/pay.md"}):
        done = tritonrag(*ask, *options)
        assert {each["source"] for each in json.loads(done.stdout)["citations"]} == sources


def metrics(served: Served, name: str, **labels: str) -> dict[str, float]:
    """Return the series of a metric with these labels, by all their labels."""
    url = f"http://127.0.0.1:{served.running.ports.metrics}/metrics"
    lines = httpx.get(url, trust_env=False).text.splitlines()
    series = (re.fullmatch(name + r"\{(.*)\} (\S+)", line) for line in lines)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return {
        each[1]: float(each[2]) for each in series if each and all(w in each[1] for w in wanted)
    }


def test_metrics_tell_of_collections_and_searches(
    served: Served, client: Client, teams: str
) -> None:
    def one(name: str) -> float:
        (value,) = metrics(served, name, collection=teams, version="1").values()
        return value

    until(lambda: bool(metrics(served, "tritonrag_searches_total", collection=teams)))
    before = one("tritonrag_searches_total")
    for _ in range(5):
        client.search("x", collection=teams)
    until(lambda: one("tritonrag_searches_total") >= before + 5)  # and those from just before
    assert one("tritonrag_index_passages") == one("tritonrag_index_documents") == 3
    assert one("tritonrag_index_refused") == 0
    assert 0 <= time.time() - one("tritonrag_index_snapshot_created_seconds") < 600
    batches = metrics(served, "tritonrag_search_batch_seconds_count")
    buckets = metrics(served, "tritonrag_search_batch_seconds_bucket", le="+Inf")
    assert list(batches.values()) == list(buckets.values()) > [0]


def test_a_removed_collection_is_gone_from_server_and_metrics(
    served: Served, client: Client, teams: str
) -> None:
    options = ("--index-dir", str(served.index_dir))
    archive = str(served.index_dir.parent / "teams.tar.gz")
    assert tritonrag("index", "export", teams, archive, *options).returncode == 0
    assert tritonrag("index", "import", archive, "--collection", "copy", *options).returncode == 0
    until(lambda: exists(client, "copy"))
    assert len(client.search("x", collection="copy", groups=["hr", "it"])) == 3
    until(lambda: bool(metrics(served, "tritonrag_index_passages", collection="copy")))
    done = tritonrag("index", "remove", "--all", "--yes", "--collection", "copy", *options)
    assert done.returncode == 0, done.stderr
    until(lambda: not exists(client, "copy"), seconds=2)
    until(lambda: not metrics(served, "tritonrag_index_passages", collection="copy"))


def test_swaps_under_load_fail_nothing_mix_nothing_and_keep_no_memory(
    served: Served, client: Client
) -> None:
    """Each snapshot's passages say its number; one holds 18 MB of vectors."""
    dice = np.random.default_rng(0)
    vectors = dice.normal(size=(SWAPPED_PASSAGES, client.embed(["x"]).shape[1]))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def swap(number: int) -> None:
        records = [
            (f"{place}.md", f"snapshot {number}", Metadata()) for place in range(SWAPPED_DOCUMENTS)
        ]
        publish(served, "swapped", records, vectors)
        until(lambda: answer() == {f"snapshot {number}"})

    def answer() -> set[str]:
        return {passage.text for passage in client.search("x", collection="swapped", top_k=20)}

    def load() -> None:
        while not stop.is_set():
            try:
                seen.append(answer())
            except Exception as error:
                failures.append(error)

    stop, seen, failures = threading.Event(), list[set[str]](), list[Exception]()
    publish(served, "swapped", [("0.md", "", Metadata())], vectors[:1])
    until(lambda: exists(client, "swapped"))
    (retrieve,) = (
        each for each in psutil.Process(served.running.pid).children()
        if any("/retrieve/1/" in argument for argument in each.cmdline())
    )  # fmt: skip
    clients = [threading.Thread(target=load) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        for number in range(2):
            swap(number)
        time.sleep(1.5)  # the snapshots before are gone by then
        level = retrieve.memory_info().rss
        for number in range(2, 12):
            swap(number)
    finally:
        stop.set()
        for each in clients:
            each.join()
    assert failures == []
    assert [each for each in seen if len(each) != 1] == []
    assert len({text for each in seen for text in each}) >= 12

    until(lambda: retrieve.memory_info().rss - level < vectors.nbytes / 2)
