from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from contextlib import closing, nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest
from batch_embedder import BatchEmbedder, Faulty, NotThere, WrongShape
from fake_triton import FakeTriton
from hostile_chunker import HostileChunker
from index_samples import DIMENSION, install, manifest, write
from typer.testing import CliRunner

from tritonrag import distributed
from tritonrag.artifacts import EMBEDDER_DIR
from tritonrag.cli import index
from tritonrag.corpus import find_files
from tritonrag.distributed import Cluster, connected
from tritonrag.errors import InternalError, InvalidRequest, SetupError, Unavailable
from tritonrag.index import adding, layout
from tritonrag.index.adding import Added, Adder
from tritonrag.index.embedding import EmbedGroups, embed_groups
from tritonrag.parsing import Limits, ParserPool, Parsers

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the ray extra")

LIMITS = Limits(seconds=5, memory_mib=256)


@pytest.fixture(scope="module")
def path_of_the_tests() -> Iterator[None]:
    """For the processes that unpickle what these tests define."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


@pytest.fixture(scope="module")
def cluster(path_of_the_tests: None) -> Iterator[Cluster]:
    said = io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with redirect_stdout(said), connected("local") as made:
        assert signal.getsignal(signal.SIGTERM) is before
        yield made
    assert said.getvalue() == ""


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    write(folder, **{f"d{number:02}": text(number) for number in range(1, 24)})
    write(folder, a_crash="crash", k_exit="exit", z_nul="a\0b")
    return folder


def text(number: int) -> str:
    sections = (f"## Part {part}\n\n{'word ' * (part % 7 + number)}." for part in range(number))
    return f"# Title {number}\n\n" + "\n\n".join(sections)


def add(index: Path, folder: Path, parsers: Parsers, embed: EmbedGroups = embed_groups) -> Added:
    adder = Adder(index, manifest(), BatchEmbedder(), parsers, embed_groups=embed)
    return adder.add("default", find_files([folder]).files)


def snapshot(index: Path) -> dict[str, bytes]:
    """The files of the live snapshot; in the manifest, all but its name and when it was made."""
    folder = index / "default" / str(layout.current(index / "default"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    facts = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps(
        {key: facts[key] for key in facts if key not in ("snapshot", "created")}
    ).encode()
    return files


@pytest.mark.usefixtures("path_of_the_tests")
def test_the_snapshot_is_that_of_one_machine_to_the_bit(
    cluster: Cluster, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "GROUP_PASSAGES", 60)
    monkeypatch.setattr(distributed, "WINDOW_FILES", 8)
    monkeypatch.setattr(distributed, "WINDOW_GROUPS", 2)
    monkeypatch.setattr(distributed, "BLOCK_FILES", 3)
    with ParserPool(HostileChunker(), LIMITS, workers=1) as pool:
        here = add(tmp_path / "here", docs, pool)
    there = add(tmp_path / "there", docs, cluster.parsers(HostileChunker(), LIMITS),
                cluster.embed_groups)  # fmt: skip
    assert here.embedded > 60 * 2 * 2
    assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")
    assert [failure.reason for failure in there.failures] == [
        "crashes its parser (SIGSEGV)",
        "ends its parser with exit status 3",
        "not text: it holds NUL bytes",
    ]
    assert there.failures == here.failures
    assert (there.added, there.embedded) == (here.added, here.embedded)


def test_the_command_shares_the_texts_among_servers(
    cluster: Cluster, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "model_repository"
    install(repository)
    manifest(dimension=2).save(repository / EMBEDDER_DIR)  # as the fake servers' embeddings
    monkeypatch.setattr(distributed, "connected", lambda *_: nullcontext(cluster))
    with closing(FakeTriton()) as one, closing(FakeTriton()) as other:
        servers = f"{one.urls['grpc']},{other.urls['grpc']}"
        places = ["--url", servers, "--repository", str(repository), "--index-dir", str(tmp_path)]
        add = ["add", str(docs), *places, "--chunk-tokens", "32", "--chunk-overlap", "8"]
        result = CliRunner().invoke(index.app, [*add, "--ray", "local"])
        asked = [len(server.models.requests) for server in (one, other)]
    assert "25 added, 0 changed, 0 removed, 0 unchanged, 1 failed" in result.stdout
    assert min(asked) > sum(asked) * 0.3
    with pytest.raises(InvalidRequest, match="expected one server; several need --ray"):
        CliRunner().invoke(index.app, add, catch_exceptions=False)


def test_an_error_on_a_worker_is_raised_here(cluster: Cluster) -> None:
    made = cluster.embed_groups(WrongShape(), [("tag", ["one"])], DIMENSION)
    with pytest.raises(SetupError, match="has dimension 16"):
        next(made)


def test_a_bug_on_a_worker_is_one_line(cluster: Cluster) -> None:
    made = cluster.embed_groups(Faulty(), [("tag", ["one"])], DIMENSION)
    with pytest.raises(InternalError, match="^on a worker: KeyError: 'one'$"):
        next(made)


def test_a_worker_that_lacks_a_module_is_named(cluster: Cluster) -> None:
    made = cluster.embed_groups(NotThere(), [("tag", ["one"])], DIMENSION)
    with pytest.raises(Unavailable, match="ray: .*no_such_module.*has the same tritonrag"):
        next(made)


def test_a_cluster_of_this_machine_is_not_seen_from_others(cluster: Cluster) -> None:
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("address", "error", "reason"),
    [
        ("127.0.0.1:9", Unavailable, "--ray 127.0.0.1:9: no cluster answers there"),
        ("127.0.0.1", InvalidRequest, "expected local, auto or the head's host:port"),
        ("ray://127.0.0.1:9", InvalidRequest, "not ray://, which Ray Data does not work over"),
    ],
)
def test_without_a_cluster(address: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason), connected(address):
        pass


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'tritonrag\[ray\]'"), connected("local"):
        pass
