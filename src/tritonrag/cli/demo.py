"""``tritonrag demo``: the whole project in one command, on the sample handbook."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tritonrag.cli import index, query, serving
from tritonrag.cli.options import INDEX, REPOSITORY, IndexDir
from tritonrag.client import Client
from tritonrag.errors import InternalError

INDEX_TIMEOUT_S = 10.0
HANDBOOK = Path("samples/handbook")
QUESTIONS = (
    "How many days of annual leave do full-time employees receive?",
    "When do carried-over days expire?",
    "How many characters must a password have?",
)


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the answers; status 1 without citations.")
    ] = False,
    documents: Annotated[Path, typer.Option(help="Folder to index.")] = HANDBOOK,
    repository: serving.Repository = REPOSITORY,
    index_dir: IndexDir = INDEX,
    state_dir: serving.StateDir = serving.STATE,
    http_port: serving.HttpPort = 8000,
    grpc_port: serving.GrpcPort = 8001,
    metrics_port: serving.MetricsPort = 8002,
    watchdog_port: serving.WatchdogPort = 8003,
) -> None:
    """Start the embedded server, index the sample handbook and ask three questions."""
    from tritonrag.server.background import watch

    ports = (http_port, grpc_port, metrics_port, watchdog_port)
    server = serving.start(repository, index_dir, state_dir, ports)
    try:
        url = f"127.0.0.1:{grpc_port}"
        print()
        index.add([str(documents)], url=url, index_dir=index_dir, repository=repository)
        with Client(url) as client:
            _await_index(client)
            for question in QUESTIONS:
                print(f"\n> {question}")
                if not query.stream_answer(client, question):
                    raise InternalError(f"no citation came with the answer to {question!r}")
        if not once:
            _invite(http_port, url)
            watch(server)
    finally:
        server.stop()


def _await_index(client: Client) -> None:
    """Wait until the server has noticed the new snapshot, which takes it up to a second."""
    deadline = time.monotonic() + INDEX_TIMEOUT_S
    while not client.search(QUESTIONS[0], top_k=1).passages:
        if time.monotonic() > deadline:
            raise InternalError("the server does not serve the index; see its log")
        time.sleep(0.1)


def _invite(http_port: int, url: str) -> None:
    print(
        f"""
The server stays up until Ctrl-C. In another terminal:
  .venv/bin/tritonrag ask "When do carried-over days expire?"
  .venv/bin/tritonrag search "parental leave" --top-k 3
  curl -N http://127.0.0.1:{http_port}/v2/models/rag/generate_stream \\
    -d '{{"question": "When do carried-over days expire?"}}'
gRPC clients: {url}, models `rag`, `search` and `embed_text` (docs/contract.md)"""
    )
