"""The variant with a reranker on the real server: a tiny cross-encoder of random weights, whose
order transformers tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from raw import inputs, search, stream
from servers import HANDBOOK, REPOSITORY, ROOT, Served, tritonrag
from tiny_rerankers import POSITIONS, original_logits, save_tiny_reranker
from tritonclient.utils import InferenceServerException

from tritonrag.artifacts import RERANKER_DIR
from tritonrag.client import Client
from tritonrag.contract import DEFAULT_RETRIEVE_K, DEFAULT_TOP_K, RERANK
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.reranking import pair_text
from tritonrag.server.ports import free_ports
from tritonrag.server.process import EmbeddedServer

QUESTION = "How many days of annual leave do full-time employees receive?"
EXPORT_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [page.read_text(encoding="utf-8") for page in HANDBOOK.glob("*.md")]
    save_tiny_reranker(folder, "bert", texts)
    return folder


def bare_repository(folder: Path) -> Path:
    """Return a model repository like ours, without a reranker."""
    repository = folder / "models"
    shutil.copytree(
        REPOSITORY, repository, copy_function=os.link,
        ignore=shutil.ignore_patterns(RERANKER_DIR.name, "__pycache__"),
    )  # fmt: skip
    return repository


def export(model: Path, repository: Path, *flags: str) -> None:
    command = [sys.executable, "export/reranker.py", "--model", str(model), *flags]
    exported = subprocess.run(
        [*command, "--repository", str(repository)], cwd=ROOT, capture_output=True, text=True,
        timeout=EXPORT_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr


@pytest.fixture(scope="module")
def reranked(
    served: Served, cross_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The graph with the reranker, over the index of the plain server."""
    folder = tmp_path_factory.mktemp("reranked")
    repository = bare_repository(folder)
    export(cross_encoder, repository)
    server = EmbeddedServer(folder / "state")
    running = server.start(
        repository, served.index_dir, free_ports(), config=RERANK, bound_to_parent=True
    )
    try:
        yield Served(server, running)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def wanted(served: Served, cross_encoder: Path) -> list[dict[str, Any]]:
    """The passages that a plain search finds, each with its logit as transformers computes it."""
    found = search(served.grpc, question=QUESTION, top_k=DEFAULT_RETRIEVE_K)
    pairs = [(QUESTION, pair_text(passage)) for passage in found]
    logits = original_logits(cross_encoder, pairs, POSITIONS)
    return [passage | {"logit": logit} for passage, logit in zip(found, logits, strict=True)]


def best(wanted: list[dict[str, Any]], top_k: int) -> list[str]:
    ranked = sorted(wanted, key=lambda passage: -passage["logit"])
    return [passage["id"] for passage in ranked[:top_k]]


def test_the_best_of_what_was_found_come_in_the_order_of_the_cross_encoder(
    reranked: Served, wanted: list[dict[str, Any]]
) -> None:
    found = search(reranked.grpc, question=QUESTION, top_k=5, retrieve_k=12)

    assert [passage["id"] for passage in found] == best(wanted[:12], 5)
    assert best(wanted[:12], 12) != [passage["id"] for passage in wanted[:12]]
    before = {passage["id"]: passage["score"] for passage in wanted}
    for passage in found:
        assert passage["retrieval_score"] == pytest.approx(before[passage["id"]], abs=1e-4)
        assert 0 < passage["score"] < 1


def test_by_default_a_few_of_twenty_are_kept(
    reranked: Served, wanted: list[dict[str, Any]]
) -> None:
    found = search(reranked.grpc, question=QUESTION)
    assert [passage["id"] for passage in found] == best(wanted, DEFAULT_TOP_K)
    assert len(search(reranked.grpc, question=QUESTION, top_k=25)) == 25


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_rag_answers_from_the_reranked_passages(
    reranked: Served, wanted: list[dict[str, Any]], protocol: str
) -> None:
    url = reranked.grpc if protocol == "grpc" else reranked.http
    with Client(url, protocol) as client:
        assert client.ready()
        answer = client.ask(QUESTION, top_k=3, retrieve_k=8).read()
        found = client.search(QUESTION, top_k=3, retrieve_k=8)

    assert answer.finish_reason == "stop"
    assert [citation.id for citation in answer.citations] == best(wanted[:8], 3)
    assert [passage.id for passage in found] == best(wanted[:8], 3)
    assert found[0].extra["retrieval_score"] < 1


def test_concurrent_requests_keep_their_own_top_k(
    reranked: Served, wanted: list[dict[str, Any]]
) -> None:
    def ask(top_k: int) -> list[str]:
        found = search(reranked.grpc, question=QUESTION, top_k=top_k, retrieve_k=10)
        return [passage["id"] for passage in found]

    sizes = [2, 7] * 8
    with ThreadPoolExecutor(len(sizes)) as pool:
        answers = list(pool.map(ask, sizes))
    assert answers == [best(wanted[:10], size) for size in sizes]


BAD = [
    ({"retrieve_k": 0}, "retrieve_k: 0 is not in 1 to 100"),
    ({"retrieve_k": 101}, "retrieve_k: 101 is not in 1 to 100"),
    ({"retrieve_k": 3}, "retrieve_k: 3 is under top_k, which is 4"),
    ({"top_k": 0}, "top_k: 0 is not in 1 to 100"),
    ({"top_k": 101}, "top_k: 101 is not in 1 to 100"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_bad_number_is_refused(reranked: Served, fields: dict[str, int], message: str) -> None:
    with pytest.raises(InferenceServerException) as raised:
        search(reranked.grpc, question=QUESTION, **fields)
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in raised.value.message()
    with pytest.raises(InferenceServerException, match=f"INVALID_ARG: {message}"):
        list(stream(reranked.grpc, question=QUESTION, **fields))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_plain_server_says_that_it_has_no_reranker(served: Served, protocol: str) -> None:
    url = served.grpc if protocol == "grpc" else served.http
    with Client(url, protocol) as client:
        for asked in (client.search, lambda *q, **k: client.ask(*q, **k).read()):
            with pytest.raises(InvalidRequest, match=r"no reranker.*tritonrag up --config rerank"):
                asked(QUESTION, retrieve_k=10)


def test_the_command_line_reranks_and_its_probe_passes(
    reranked: Served, wanted: list[dict[str, Any]]
) -> None:
    options = ["--top-k", "2", "--retrieve-k", "6", "--url", reranked.grpc, "--json"]
    found = tritonrag("search", QUESTION, *options)
    assert found.returncode == 0, found.stderr
    passages = json.loads(found.stdout)["passages"]
    assert [passage["id"] for passage in passages] == best(wanted[:6], 2)
    assert tritonrag("status", "--url", reranked.grpc, "--probe").returncode == 0


def test_two_versions_rerank_side_by_side_and_the_graph_moves_between_them(
    reranked: Served, wanted: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Comes last of those on this server: a second version stays loaded until it is removed."""
    texts = [page.read_text(encoding="utf-8") for page in HANDBOOK.glob("*.md")]
    save_tiny_reranker(tmp_path / "other", "bert", texts, seed=1)
    repository = Path(reranked.running.repository)
    export(tmp_path / "other", repository, "--as-version", "2")
    state = ["--repository", str(repository), "--state-dir", str(reranked.server.log.parent)]

    def models(*arguments: str) -> None:
        done = tritonrag("models", *arguments, *state)
        assert done.returncode == 0, done.stderr

    def searched() -> list[str]:
        return [each["id"] for each in search(reranked.grpc, question=QUESTION, retrieve_k=20)]

    first = best(wanted, DEFAULT_TOP_K)
    logits = original_logits(
        tmp_path / "other", [(QUESTION, pair_text(each)) for each in wanted], POSITIONS
    )
    second = best(
        [each | {"logit": logit} for each, logit in zip(wanted, logits, strict=True)],
        DEFAULT_TOP_K,
    )
    assert first != second
    models("load", "rerank", "2")
    asked = {
        "question": QUESTION,
        "passages": [json.dumps(each) for each in wanted],
        "top_k": DEFAULT_TOP_K,
    }
    with triton.InferenceServerClient(reranked.grpc) as client:
        for version, expected in (("1", first), ("2", second)):
            found = client.infer("rerank", inputs(**asked), model_version=version)
            rows = [json.loads(row) for row in found.as_numpy("passages")[0]]
            assert [row["id"] for row in rows] == expected
    assert searched() == first
    models("promote", "rerank", "2", "--index-dir", str(reranked.index_dir))
    assert searched() == second
    models("rollback", "rerank", "--index-dir", str(reranked.index_dir))
    assert searched() == first
    models("remove", "rerank", "2")


def start(repository: Path, tmp_path: Path, config: str) -> None:
    server = EmbeddedServer(tmp_path / "state")
    try:
        server.start(repository, tmp_path / "index", free_ports(), config=config)
    finally:
        server.stop()


def test_without_a_reranker_the_variant_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as raised:
        start(bare_repository(tmp_path), tmp_path, RERANK)
    assert str(raised.value).count("\n") == 0
    assert "no model is installed here; run export/reranker.py --model" in str(raised.value)


def test_an_unknown_variant_is_refused_with_those_there_are(tmp_path: Path) -> None:
    options = ["--config", "nope", "--state-dir", str(tmp_path / "state")]
    refused = tritonrag("up", "--repository", str(bare_repository(tmp_path)), *options)
    assert refused.returncode == 1
    assert refused.stderr == (
        "tritonrag: --config nope: no model has a configs/nope.pbtxt; choose of: "
        "openvino, ort-tensorrt, rerank, tensorrt\n"
    )
    small = tmp_path / "small"
    small.mkdir()
    (small / "tokenize").symlink_to(REPOSITORY / "tokenize")
    with pytest.raises(SetupError, match="there are no variants here"):
        start(small, tmp_path, "nope")
