"""``tritonrag serve``, ``up``, ``down``, ``status`` and ``supervise``: servers and their health."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from tritonrag.cli.options import INDEX, REPOSITORY, AsJson, IndexDir
from tritonrag.client import Client
from tritonrag.client.probe import probe as send_probe
from tritonrag.errors import TritonragError, Unavailable
from tritonrag.settings import (
    REPOSITORY_VARIABLE,
    URL_VARIABLE,
    WATCHDOG_VARIABLE,
    describe_llm,
)

if TYPE_CHECKING:
    from tritonrag.server.process import EmbeddedServer

StateDir = Annotated[Path, typer.Option(help="Folder of the server's state, log and backends.")]
Repository = Annotated[
    Path, typer.Option(envvar=REPOSITORY_VARIABLE, help="Model repository to serve.")
]
HttpPort = Annotated[int, typer.Option(min=1, max=65535, help="HTTP port on 127.0.0.1.")]
GrpcPort = Annotated[int, typer.Option(min=1, max=65535, help="gRPC port on 127.0.0.1.")]
MetricsPort = Annotated[int, typer.Option(min=1, max=65535, help="Port of /metrics on 127.0.0.1.")]
WatchdogPort = Annotated[
    int, typer.Option(min=1, max=65535, help="Port of the watchdog on 127.0.0.1.")
]

Config = Annotated[
    str,
    typer.Option(
        help="Config variant, <model>/configs/NAME.pbtxt, for every model that has it; rerank puts "
        "a reranker behind the search.",
        metavar="NAME",
    ),
]

STATE = Path(".tritonrag")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    for command in (serve, up, down, status):
        app.command()(command)
    app.command(context_settings={"ignore_unknown_options": True})(supervise)


def serve(
    repository: Repository = REPOSITORY,
    index_dir: IndexDir = INDEX,
    state_dir: StateDir = STATE,
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    watchdog_port: WatchdogPort = 8003,
    config: Config = "",
) -> None:
    """Run the embedded server and its watchdog in the foreground until Ctrl-C."""
    from tritonrag.server.background import watch

    ports = (http_port, grpc_port, metrics_port, watchdog_port)
    server = start(repository, index_dir, state_dir, ports, config=config)
    print("Ctrl-C stops the server.")
    watch(server)


def up(
    repository: Repository = REPOSITORY,
    index_dir: IndexDir = INDEX,
    state_dir: StateDir = STATE,
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    watchdog_port: WatchdogPort = 8003,
    config: Config = "",
) -> None:
    """Start the embedded server and its watchdog in the background; wait until it is ready."""
    ports = (http_port, grpc_port, metrics_port, watchdog_port)
    start(repository, index_dir, state_dir, ports, config=config, in_background=True)
    print("`tritonrag down` stops the server.")


def supervise(
    command: Annotated[list[str], typer.Argument(help="tritonserver and its options, after `--`.")],
    watchdog_address: Annotated[
        str, typer.Option(help="Address that the watchdog listens on.")
    ] = "127.0.0.1",
    watchdog_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the watchdog.")
    ] = 8003,
    start_seconds: Annotated[
        float,
        typer.Option(
            min=1, help="How long the models may take to load before the server is started again."
        ),
    ] = 600,
) -> None:
    """Run any tritonserver under the watchdog, as the container does, until SIGTERM."""
    from tritonrag.server.container import run

    run(command, watchdog_address, watchdog_port, start_seconds)


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
    watchdog: Annotated[
        str,
        typer.Option(
            envvar=WATCHDOG_VARIABLE,
            help="Watchdog of the server that --url names, host:port: memory, restarts, queues.",
        ),
    ] = "",
    probe: Annotated[
        bool, typer.Option("--probe", help="Send a question through every model: health checks.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell whether the server is ready, and what it takes; exit status 1 where it is not."""
    address, facts = (url, _named(watchdog)) if url else _known(state_dir)
    facts |= {"grpc": address, "ready": False}
    started = time.perf_counter()
    try:
        with Client(address, timeout=5) as client:
            facts["ready"] = client.ready()
            if probe:
                send_probe(client)
                facts["probe_ms"] = round((time.perf_counter() - started) * 1e3, 1)
    except TritonragError as error:
        facts |= {"ready": False, "error": str(error)}
    if told := _told(str(facts.pop("watchdog"))):
        facts |= told | {"ready": facts["ready"] and told["ready"]}
    if as_json:
        print(json.dumps(facts))
    else:
        print("\n".join(f"{key}: {_line(value)}" for key, value in facts.items()))
    if not facts["ready"]:
        raise typer.Exit(1)


def _named(watchdog: str) -> dict[str, object]:
    """Return what is known here of a server that is named: its LLM by this environment."""
    llm = describe_llm()
    return {"watchdog": watchdog, **({"llm": llm} if llm else {})}


def _told(watchdog: str) -> dict[str, Any]:
    """Return what a watchdog at ``host:port`` knows; nothing where none is named or answers."""
    if not watchdog:
        return {}
    try:
        answer = httpx.get(f"http://{watchdog}/status", timeout=5, trust_env=False)
        return dict(answer.raise_for_status().json())
    except (httpx.HTTPError, ValueError) as error:
        return {"ready": True, "watchdog": f"does not answer at {watchdog} ({error})"}


def _line(value: object) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{key} {_line(each)}" for key, each in value.items()) or "none"


def _known(state_dir: Path) -> tuple[str, dict[str, object]]:
    from tritonrag.server.ports import HOST
    from tritonrag.server.process import EmbeddedServer

    running = EmbeddedServer(state_dir).running()
    if running is None:
        raise Unavailable("no server runs here; start one with `tritonrag up`")
    return f"{HOST}:{running.ports.grpc}", {
        "pid": running.pid,
        "http": f"http://{HOST}:{running.ports.http}",
        "metrics": f"http://{HOST}:{running.ports.metrics}/metrics",
        "watchdog": f"{HOST}:{running.ports.watchdog}" if running.watchdog else "",
        "repository": running.repository,
        **({"config": running.config} if running.config else {}),
        **({"llm": running.llm} if running.llm else {}),
        "index": running.index_dir,
    }


def start(
    repository: Path,
    index_dir: Path,
    state_dir: Path,
    ports: tuple[int, int, int, int],
    *,
    config: str = "",
    in_background: bool = False,
) -> EmbeddedServer:
    """Start the embedded server on ``ports`` (as :class:`Ports`) and print where it listens.

    In the background it is watched and goes on after this process; else it ends with it.
    """
    from tritonrag.server import background
    from tritonrag.server.ports import Ports
    from tritonrag.server.process import EmbeddedServer

    server = EmbeddedServer(state_dir)
    began = time.perf_counter()
    at = Ports(*ports)
    with _progress() as progress:
        if in_background:
            running = background.start(
                server, repository, index_dir, at, config=config, progress=progress
            )
        else:
            running = server.start(
                repository, index_dir, at, config=config, bound_to_parent=True, progress=progress
            )
    print(f"server ready in {time.perf_counter() - began:.1f} s (pid {running.pid})")
    print(f"  gRPC     127.0.0.1:{running.ports.grpc}")
    print(f"  HTTP     http://127.0.0.1:{running.ports.http}")
    print(f"  metrics  http://127.0.0.1:{running.ports.metrics}/metrics")
    print(f"  watchdog http://127.0.0.1:{running.ports.watchdog}/status")
    print(f"  log      {server.log}")
    return server


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield what shows a line in place of the one before, on a terminal only."""
    interactive = sys.stderr.isatty()

    def show(line: str) -> None:
        if interactive:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        show("")
