"""The server that the programs of this folder measure: their own, on free ports, over the handbook.

Nothing of a server that may run already is touched: ports, state and index are new, below a
temporary folder that goes away at the end, also after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tritonrag.client import Client
from tritonrag.errors import SetupError
from tritonrag.server import background
from tritonrag.server.ports import HOST, free_ports
from tritonrag.server.process import EmbeddedServer, Running
from tritonrag.settings import ADMIN_HEADER, INDEX_DIR_VARIABLE, URL_VARIABLE

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"
HANDBOOK = ROOT / "samples" / "handbook"
_INSTANCE = re.compile(r"(\w+?)_\d+_\d+")
"""How Triton names an instance of a model to the model's process."""

NOTICE_S = 10
"""A new snapshot is noticed within a second, on an idle machine."""


@dataclass(frozen=True)
class ModelCounts:
    """What Triton's statistics say of one model, since it was loaded or between two looks.

    Times are sums over all requests, in milliseconds. ``batches`` counts executions by their size.
    """

    requests: int
    failures: int
    executions: int
    queue_ms: float
    compute_ms: float
    batches: dict[int, int] = field(default_factory=dict)

    def since(self, earlier: ModelCounts) -> ModelCounts:
        """Return what came after ``earlier``."""
        return ModelCounts(
            self.requests - earlier.requests,
            self.failures - earlier.failures,
            self.executions - earlier.executions,
            self.queue_ms - earlier.queue_ms,
            self.compute_ms - earlier.compute_ms,
            {
                size: count - earlier.batches.get(size, 0)
                for size, count in self.batches.items()
                if count > earlier.batches.get(size, 0)
            },
        )

    @property
    def mean_batch(self) -> float:
        """Requests that one execution answered."""
        return self.requests / self.executions if self.executions else 0.0


@dataclass(frozen=True)
class Served:
    """The running server and what can be seen of it."""

    running: Running
    repository: Path
    index_dir: Path
    backends: Path

    @property
    def grpc(self) -> str:
        """``host:port`` of gRPC."""
        return f"{HOST}:{self.running.ports.grpc}"

    @property
    def http(self) -> str:
        """The URL of HTTP, without a path."""
        return f"http://{HOST}:{self.running.ports.http}"

    @property
    def watchdog(self) -> str:
        """The URL of the watchdog, without a path."""
        return f"http://{HOST}:{self.running.ports.watchdog}"

    def config(self, model: str) -> dict[str, Any]:
        """Return the configuration of a model as the server has read it."""
        found: dict[str, Any] = self._get(f"models/{model}/config")
        return found

    def counts(self) -> dict[str, ModelCounts]:
        """Return Triton's statistics of every model."""
        return {each["name"]: _counts(each) for each in self._get("models/stats")["model_stats"]}

    def by_role(self) -> dict[str, psutil.Process]:
        """Return what runs now: ``tritonserver``, and the process of each model under its name."""
        known = EmbeddedServer(self.backends.parent).running() or self.running
        found: dict[str, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                arguments = process.cmdline()
                if any(known.prefix in argument for argument in arguments):
                    found[_role(arguments)] = process
        return found

    def processes(self) -> frozenset[psutil.Process]:
        """Return the server and the processes of its models; equal as long as none was replaced."""
        return frozenset(self.by_role().values())

    def memory_mb(self) -> float:
        """Return the memory of the whole server, shared pages counted once (PSS), in MB."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6

    def _get(self, path: str) -> Any:
        headers = {ADMIN_HEADER: self.running.key}
        answer = httpx.get(f"{self.http}/v2/{path}", headers=headers, timeout=10)
        return answer.raise_for_status().json()


@contextmanager
def served(
    repository: Path = REPOSITORY,
    documents: Path = HANDBOOK,
    index_dir: Path | None = None,
    config: str = "",
    watched: bool = False,
) -> Iterator[Served]:
    """Serve ``index_dir``, or else an index made of ``documents``; stop the server at the end.

    ``config`` names the config variant to serve, "" for none. ``watched``: with the watchdog, as
    ``tritonrag up`` does.

    Raises:
        SetupError: the server does not start, or the documents cannot be indexed.
    """
    with tempfile.TemporaryDirectory(prefix="tritonrag-perf-") as name:
        folder = Path(name)
        server = EmbeddedServer(folder / "state")
        target = index_dir or folder / "index"
        say("starting the server …")
        try:
            if watched:
                running = background.start(server, repository, target, free_ports(), config=config)
            else:
                running = server.start(
                    repository, target, free_ports(), config=config, bound_to_parent=True
                )
            each = Served(running, repository, target, folder / "state" / "backends")
            if index_dir is None:
                index(each, documents)
            yield each
        finally:
            server.stop()


def say(line: str) -> None:
    """Tell on standard error what is being done; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def index(each: Served, documents: Path) -> None:
    """Index ``documents`` through the server and return when it serves them.

    Raises:
        SetupError: they cannot be indexed.
    """
    say(f"indexing {documents.name} …")
    environment = os.environ | {URL_VARIABLE: each.grpc, INDEX_DIR_VARIABLE: str(each.index_dir)}
    command = [
        sys.executable, "-m", "tritonrag", "index", "add", str(documents),
        "--repository", str(each.repository),
    ]  # fmt: skip
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or ["no reason given"]
        raise SetupError(f"{documents} cannot be indexed: {lines[-1]}")
    with Client(each.grpc) as client:
        end = time.monotonic() + NOTICE_S
        while not client.search("ready?", top_k=1):
            if time.monotonic() > end:
                raise SetupError(f"the server does not see the index of {documents.name}")
            time.sleep(0.1)


def _role(arguments: list[str]) -> str:
    """Return what a process of the server is, by its command line."""
    instances = (_INSTANCE.fullmatch(argument) for argument in arguments)
    return next((match[1] for match in instances if match), Path(arguments[0]).name)


def _counts(each: dict[str, Any]) -> ModelCounts:
    stats = each["inference_stats"]
    compute = sum(
        stats[part]["ns"] for part in ("compute_input", "compute_infer", "compute_output")
    )
    return ModelCounts(
        each["inference_count"],
        stats["fail"]["count"],
        each["execution_count"],
        stats["queue"]["ns"] / 1e6,
        compute / 1e6,
        {batch["batch_size"]: batch["compute_infer"]["count"] for batch in each["batch_stats"]},
    )
