"""Real servers for the tests: one over the sample handbook, one over an empty index."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tritonrag.server.process import EmbeddedServer, Running, free_ports

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
HANDBOOK = ROOT / "samples" / "handbook"


@dataclass(frozen=True)
class Served:
    """A running server and how to reach it."""

    server: EmbeddedServer
    running: Running

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.running.ports.grpc}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.running.ports.http}"

    @property
    def index_dir(self) -> Path:
        return Path(self.running.index_dir)


def tritonrag(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "tritonrag", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def _serve(folder: Path) -> Iterator[Served]:
    server = EmbeddedServer(folder / "state")
    running = server.start(REPOSITORY, folder / "index", free_ports(), bound_to_parent=True)
    try:
        yield Served(server, running)
    finally:
        server.stop()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph over the sample handbook."""
    for each in _serve(tmp_path_factory.mktemp("served")):
        added = tritonrag(
            "index", "add", str(HANDBOOK), "--url", each.grpc, "--index-dir", str(each.index_dir)
        )
        assert added.returncode == 0, added.stderr
        yield each


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph with nothing indexed."""
    yield from _serve(tmp_path_factory.mktemp("empty"))
