"""Two versions of a model on the real server: side by side, promoted, rolled back, removed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from servers import REPOSITORY, Served, serve
from tiny_artifacts import install_embedder
from typer.testing import CliRunner

from tritonrag import rollout, versions
from tritonrag.cli import app
from tritonrag.client import AsyncClient, Client
from tritonrag.client.administration import Administration
from tritonrag.errors import RequestError, SetupError, TritonragError
from tritonrag.server.ports import free_ports
from tritonrag.server.process import EmbeddedServer
from tritonrag.versions import EMBED, GENERATE

QUESTION = "how many days of leave"
SEARCHERS = 6
ROUNDS = 10
Found = tuple[tuple[str, float], ...]
"""The id and score of each passage: the scores differ between versions."""


def copied(root: Path, *models: str) -> Path:
    """Copy models of the repository without what was exported."""
    for model in models:
        shutil.copytree(
            REPOSITORY / model,
            root / model,
            ignore=lambda folder, names: [
                name for name in names
                if name in ("llm", "configs", "live.json", "__pycache__", "model.onnx")
                or name.endswith(".json") or (name.isdecimal() and name != "1")
            ],
        )  # fmt: skip
    shutil.rmtree(root / "embed" / "1", ignore_errors=True)
    return root


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Served]:
    """The search half of the graph with version 1 of a tiny embedder, over two documents."""
    models = (*EMBED.models, "embed_text", "search")
    repository = copied(tmp_path / "models", *models)
    install_embedder(repository, 1)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "leave.md").write_text("# Leave\n\nhow many days of leave have i\n")
    (docs / "other.md").write_text("# Other\n\na b c d query passage\n")
    for each in serve(tmp_path, repository):
        run(each, "index", "add", str(docs), "--chunk-tokens", "24", "--chunk-overlap", "0")
        yield each


def run(served: Served, *arguments: str, code: int = 0) -> str:
    """Run the command line on this server, its repository and its index."""
    options = ["--repository", served.running.repository]
    if arguments[0] == "index" or arguments[1] in ("promote", "rollback"):
        options += ["--index-dir", served.running.index_dir]
    if arguments[0] == "index":
        options += ["--url", served.grpc]
    else:
        options += ["--state-dir", str(served.server.log.parent)]
    done = CliRunner().invoke(app, [*arguments, *options])
    error = done.exception
    if isinstance(error, TritonragError):
        assert code == (2 if isinstance(error, RequestError) else 1), error
        return str(error)
    assert (done.exit_code, error) == (code, None), done.output
    return done.output


def repository(served: Served) -> Path:
    return Path(served.running.repository)


def install_second(served: Served) -> None:
    """Install version 2 of the embedder, as an export does, and index for it."""
    install_embedder(repository(served), 2)
    rollout.add_version(repository(served), EMBED, 2)
    run(served, "models", "load", "embed", "2")
    run(served, "index", "add", "--embedder-version", "2", "--chunk-tokens", "24",
        "--chunk-overlap", "0")  # fmt: skip


def found(client: Client) -> Found:
    return tuple((each.id, round(each.score, 4)) for each in client.search(QUESTION, top_k=2))


def steps(served: Served, ensemble: str = "search") -> set[int]:
    with Administration(served.grpc) as server:
        return set(server.steps(ensemble).values())


async def test_a_new_version_serves_beside_the_live_one(search: Served) -> None:
    with Client(search.grpc) as client:
        before = found(client)
        install_second(search)
        first, second = (client.embed([QUESTION], "query", version=n) for n in (1, 2))
        assert np.abs(first - second).max() > 0.1
        assert np.array_equal(client.embed([QUESTION], "query"), first)
        assert found(client) == before
        assert client.health().versions["embed"] == [1, 2]
    with Client(search.http, "http") as client:
        assert np.allclose(client.embed([QUESTION], "query", version=2), second)
    async with AsyncClient(search.grpc) as client:
        assert np.array_equal(await client.embed([QUESTION], "query", version=2), second)
    assert (repository(search) / "tokenize/2/model.py").is_symlink()
    assert steps(search) == {1}


@contextmanager
def under_load(served: Served) -> Iterator[list[Found]]:
    """Search without a pause from several clients; yield the answers. No request may fail."""
    answers: list[Found] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        with Client(served.grpc) as client:
            while not stop.is_set():
                try:
                    answers.append(found(client))
                except BaseException as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(SEARCHERS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_promotions_under_load_fail_no_request_and_mix_no_versions(search: Served) -> None:
    with Client(search.grpc) as client:
        first = found(client)
        with under_load(search) as answers:
            install_second(search)
            assert set(answers) == {first}
            run(search, "models", "promote", "embed", "2")
            second = found(client)
            for _ in range(ROUNDS // 2):
                run(search, "models", "rollback", "embed")
                assert found(client) == first
                run(search, "models", "promote", "embed", "2")
                assert found(client) == second
            run(search, "models", "remove", "embed", "1")
    assert first != second
    assert set(answers) == {first, second}
    assert steps(search) == steps(search, "embed_text") == {2}


def test_the_choice_survives_a_restart(search: Served, tmp_path: Path) -> None:
    install_second(search)
    run(search, "models", "promote", "embed", "2")
    with Client(search.grpc) as client:
        second = found(client)
    handwritten = (repository(search) / "search/config.pbtxt").read_bytes()
    assert handwritten == (REPOSITORY / "search/config.pbtxt").read_bytes()
    search.server.stop()
    again = EmbeddedServer(tmp_path / "state")
    running = again.start(
        repository(search), Path(search.running.index_dir), free_ports(), bound_to_parent=True
    )
    restarted = Served(again, running)
    try:
        with Client(restarted.grpc) as client:
            assert found(client) == second
            assert client.health().versions["retrieve"] == [1, 2]
        listed = json.loads(run(restarted, "models", "--json"))
        assert [each["live"] for each in listed["models"]] == [False, True]
        assert all(each["loaded"] for each in listed["models"])
        assert listed["graph"]["search"] == {"tokenize": 2, "embed": 2, "retrieve": 2}
    finally:
        again.stop()


def test_without_an_index_of_its_own_an_embedder_is_refused(search: Served, tmp_path: Path) -> None:
    install_embedder(repository(search), 2)
    rollout.add_version(repository(search), EMBED, 2)
    refusal = run(search, "models", "promote", "embed", "2", code=1)
    assert "collection default has no index of version 2" in refusal
    assert "`tritonrag index add --embedder-version 2 --collection default`" in refusal
    assert versions.live_version(repository(search), EMBED) == 1
    run(search, "models", "load", "embed", "2")
    run(search, "index", "add", "--embedder-version", "2", "--chunk-tokens", "24",
        "--chunk-overlap", "0")  # fmt: skip
    (tmp_path / "docs" / "new.md").write_text("# New\n\ndays of leave\n")
    run(search, "index", "add", str(tmp_path / "docs"), "--chunk-tokens", "24",
        "--chunk-overlap", "0")  # fmt: skip
    behind = run(search, "models", "promote", "embed", "2", code=1)
    assert "collection default has newer documents than the index of version 2" in behind


def test_a_version_that_does_not_load_changes_nothing(search: Served) -> None:
    with Client(search.grpc) as client:
        before = found(client)
        install_embedder(repository(search), 2)
        (repository(search) / "embed/2/model.onnx").write_bytes(b"no model")
        rollout.add_version(repository(search), EMBED, 2)
        with under_load(search) as answers:
            refusal = run(search, "models", "load", "embed", "2", code=1)
        assert "load failed for model 'embed': version 2" in refusal
        assert "\n" not in refusal
        assert set(answers) == {before}
        assert client.health().versions["embed"] == [1]
        assert steps(search) == {1}
        run(search, "models", "remove", "embed", "2")
        assert client.health().versions["tokenize"] == [1]
        assert found(client) == before


def test_a_version_is_removed_but_not_the_live_one(search: Served) -> None:
    install_second(search)
    assert "is the live one" in run(search, "models", "remove", "embed", "1", code=2)
    run(search, "models", "promote", "embed", "2")
    run(search, "models", "remove", "embed", "1")
    assert not (repository(search) / "embed/1").exists()
    assert (repository(search) / "tokenize/1/model.py").is_file()
    with Client(search.grpc) as client:
        assert client.health().versions["embed"] == [2]
        assert found(client)
    assert "no version to go back to" in run(search, "models", "rollback", "embed", code=2)


def test_models_are_loaded_for_the_key_alone(search: Served) -> None:
    with (
        Administration(search.grpc) as stranger,
        pytest.raises(SetupError, match="TRITONRAG_ADMIN_KEY"),
    ):
        stranger.load("search")
    with httpx.Client(trust_env=False) as http:
        for order in ("models/search/load", "models/search/unload", "index"):
            answer = http.post(f"{search.http}/v2/repository/{order}", json={})
            assert "restricted" in answer.text
    assert (search.server.log.parent / "server.json").stat().st_mode & 0o077 == 0


def test_an_answer_of_the_pinned_llm_can_be_cancelled_beside_a_higher_version(
    endless: Served, tmp_path: Path
) -> None:
    """Requests without a version go to the highest one, those of the graph to the live one."""
    models = Path(shutil.copytree(endless.running.repository, tmp_path / "models"))
    shutil.copytree(models / "generate/1/llm", models / "generate/2/llm")
    rollout.add_version(models, GENERATE, 2)
    shutil.copytree(endless.index_dir, tmp_path / "index")
    for each in serve(tmp_path, models):
        with Client(each.grpc, timeout=60) as client, Administration(each.grpc) as server:
            assert client.health().versions["generate"] == [1, 2]
            for live in (1, 2):
                run(each, "models", "promote", "generate", str(live))
                assert server.steps("rag")["generate"] == server.steps("rag")["prompt"] == live
                assert server.steps("cancel") == {"generate": live}
                with client.ask("How many days of leave?", max_tokens=4000) as stream:
                    next(iter(stream))
                    stream.cancel()
                    assert stream.read().finish_reason == "cancelled"
                with client.generate("and", version=live, max_tokens=3) as stream:
                    assert stream.read().finish_reason == "length"
