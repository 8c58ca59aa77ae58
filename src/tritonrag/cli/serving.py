"""``tritonrag serve``, ``up``, ``down`` and ``status``: the embedded server."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritonrag.cli.options import INDEX, REPOSITORY, AsJson, IndexDir
from tritonrag.client import AnswerStream, Client
from tritonrag.errors import NotFound, TritonragError, Unavailable
from tritonrag.settings import REPOSITORY_VARIABLE, URL_VARIABLE

if TYPE_CHECKING:
    from tritonrag.server.process import EmbeddedServer, Running

StateDir = Annotated[Path, typer.Option(help="Folder of the server's state, log and backends.")]
Repository = Annotated[
    Path, typer.Option(envvar=REPOSITORY_VARIABLE, help="Model repository to serve.")
]
HttpPort = Annotated[int, typer.Option(min=1, max=65535, help="HTTP port on 127.0.0.1.")]
GrpcPort = Annotated[int, typer.Option(min=1, max=65535, help="gRPC port on 127.0.0.1.")]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535, help="Port of /metrics on 127.0.0.1.")]

Config = Annotated[
    str,
    typer.Option(
        help="Config variant, <model>/configs/NAME.pbtxt, for every model that has it; rerank puts "
        "a reranker behind the search.",
        metavar="NAME",
    ),
]

STATE = Path(".tritonrag")

PROBE = "health probe"


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (serve, up, down, status):
        app.command()(command)


def serve(
    repository: Repository = REPOSITORY,
    index_dir: IndexDir = INDEX,
    state_dir: StateDir = STATE,
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    config: Config = "",
) -> None:
    """Run the embedded server in the foreground until Ctrl-C."""
    ports = (http_port, grpc_port, metrics_port)
    server, running = start(repository, index_dir, state_dir, ports, config=config, bound=True)
    print("Ctrl-C stops the server.")
    try:
        code = server.wait(running)
    finally:
        server.stop()
    raise Unavailable(f"the server ended by itself with status {code}; see {server.log}")


def up(
    repository: Repository = REPOSITORY,
    index_dir: IndexDir = INDEX,
    state_dir: StateDir = STATE,
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    config: Config = "",
) -> None:
    """Start the embedded server in the background and wait until it is ready."""
    ports = (http_port, grpc_port, metrics_port)
    start(repository, index_dir, state_dir, ports, config=config, bound=False)
    print("`tritonrag down` stops the server.")


def down(state_dir: StateDir = STATE) -> None:
    """Stop the embedded server, and remove what an earlier crash left behind."""
    from tritonrag.server.process import EmbeddedServer

    stopped = EmbeddedServer(state_dir).stop()
    print("stopped" if stopped else "no server was running")


def status(
    state_dir: StateDir = STATE,
    url: Annotated[
        str, typer.Option(envvar=URL_VARIABLE, help="Ask this gRPC address, host:port, instead.")
    ] = "",
    probe: Annotated[
        bool, typer.Option("--probe", help="Send a question through every model: health checks.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell whether the server is ready; exit status 1 where it is not."""
    address, facts = (url, {}) if url else _known(state_dir)
    facts |= {"grpc": address, "ready": False}
    started = time.perf_counter()
    try:
        with Client(address, timeout=5) as client:
            facts["ready"] = client.ready()
            if probe:
                _probe(client)
                facts["probe_ms"] = round((time.perf_counter() - started) * 1e3, 1)
    except TritonragError as error:
        facts |= {"ready": False, "error": str(error)}
    if as_json:
        print(json.dumps(facts))
    else:
        print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    if not facts["ready"]:
        raise typer.Exit(1)


def _probe(client: Client) -> None:
    """Send a question through every model, down to the thread of the engine.

    It is cancelled beforehand, so that no LLM has to answer it. Where the default collection does
    not exist, retrieval has answered by saying so, and only `generate` is left to ask.
    """
    try:
        _pass_through(client.ask(PROBE, top_k=1))
    except NotFound:
        _pass_through(client.generate(PROBE))


def _pass_through(stream: AnswerStream) -> None:
    stream.cancel()
    stream.read()


def _known(state_dir: Path) -> tuple[str, dict[str, object]]:
    from tritonrag.server.process import HOST, EmbeddedServer

    running = EmbeddedServer(state_dir).running()
    if running is None:
        raise Unavailable("no server runs here; start one with `tritonrag up`")
    return f"{HOST}:{running.ports.grpc}", {
        "pid": running.pid,
        "http": f"http://{HOST}:{running.ports.http}",
        "metrics": f"http://{HOST}:{running.ports.metrics}/metrics",
        "repository": running.repository,
        **({"config": running.config} if running.config else {}),
        "index": running.index_dir,
    }


def start(
    repository: Path,
    index_dir: Path,
    state_dir: Path,
    ports: tuple[int, int, int],
    *,
    config: str = "",
    bound: bool,
) -> tuple[EmbeddedServer, Running]:
    """Start the embedded server on ``ports`` (HTTP, gRPC, metrics) and print where it listens."""
    from tritonrag.server.process import EmbeddedServer, Ports

    server = EmbeddedServer(state_dir)
    began = time.perf_counter()
    interactive = sys.stderr.isatty()

    def progress(line: str) -> None:
        if interactive:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    try:
        running = server.start(
            repository, index_dir, Ports(*ports), config=config, bound_to_parent=bound,
            progress=progress,
        )  # fmt: skip
    finally:
        progress("")
    print(f"server ready in {time.perf_counter() - began:.1f} s (pid {running.pid})")
    print(f"  gRPC     127.0.0.1:{running.ports.grpc}")
    print(f"  HTTP     http://127.0.0.1:{running.ports.http}")
    print(f"  metrics  http://127.0.0.1:{running.ports.metrics}/metrics")
    print(f"  log      {server.log}")
    return server, running
