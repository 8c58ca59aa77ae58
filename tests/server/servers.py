"""Starts real servers for the tests, and runs the command line as a user would."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tritonrag.client import Client
from tritonrag.errors import TritonragError
from tritonrag.server import background
from tritonrag.server.ports import free_ports
from tritonrag.server.process import EmbeddedServer, Running
from tritonrag.settings import ADMIN_HEADER

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
HANDBOOK = ROOT / "samples" / "handbook"
QUESTION = "How long is parental leave?"
"""Of the handbook, to which it has an answer."""

RESTARTED_S = 10
"""In this time a server answers again that had to be started again."""


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


def set_parameters(repository: Path, **values: int) -> None:
    """Set parameters of `generate` as an operator does, in its `config.pbtxt`."""
    path = repository / "generate" / "config.pbtxt"
    text = path.read_text()
    for key, value in values.items():
        text, found = re.subn(
            f'(key: "{key}", value: {{ string_value: )"[0-9]*"', rf'\1"{value}"', text
        )
        assert found == 1, key
    path.write_text(text)


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


def statistics(served: Served, model: str) -> dict[str, Any]:
    """Return Triton's statistics of a model, which want the server's key."""
    headers = {ADMIN_HEADER: served.running.key}
    url = f"{served.http}/v2/models/{model}/stats"
    answer = httpx.get(url, headers=headers, trust_env=False).raise_for_status()
    found: dict[str, Any] = answer.json()["model_stats"][0]
    return found


def now(served: Served) -> Running:
    """Return the server as it is now: a restart gives it another process."""
    running = served.server.running()
    assert running is not None
    return running


def found(served: Served) -> bool:
    """Return whether a search over the handbook is answered."""
    try:
        with Client(served.grpc, timeout=5) as client:
            return bool(client.search(QUESTION, top_k=1))
    except TritonragError:
        return False


def eventually(holds: Callable[[], bool], seconds: float) -> None:
    """Return once something holds, which may take some seconds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.05)
