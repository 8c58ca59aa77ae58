"""Starts real servers for the tests, and runs the command line as a user would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tritonrag.server import background
from tritonrag.server.ports import free_ports
from tritonrag.server.process import EmbeddedServer, Running

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


def add(served: Served, path: Path) -> None:
    """Index a folder on a running server."""
    options = ["--url", served.grpc, "--index-dir", str(served.index_dir)]
    added = tritonrag("index", "add", str(path), *options)
    assert added.returncode == 0, added.stderr


def tritonrag(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    command = [sys.executable, "-m", "tritonrag", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def serve(folder: Path, repository: Path = REPOSITORY) -> Iterator[Served]:
    """Serve the whole graph with its state and index in `folder`."""
    server = EmbeddedServer(folder / "state")
    running = server.start(repository, folder / "index", free_ports(), bound_to_parent=True)
    try:
        yield Served(server, running)
    finally:
        server.stop()


@contextmanager
def supervised(folder: Path, repository: Path = REPOSITORY) -> Iterator[Served]:
    """Serve the whole graph with its watchdog, in the background as `tritonrag up` does."""
    server = EmbeddedServer(folder / "state")
    running = background.start(server, repository, folder / "index", free_ports())
    try:
        yield Served(server, running)
    finally:
        server.stop()
