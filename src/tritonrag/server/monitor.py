"""What the watchdog knows, over HTTP: health for probes, metrics for Prometheus, facts for people.

| path            | answer |
|-----------------|--------|
| `/health/live`  | 200 while the server runs, else 503 |
| `/health/ready` | 200 while every model answers, else 503, also where Triton still says ready |
| `/metrics`      | restarts by model and reason, memory by model |
| `/status`       | the same and the queues, as one JSON object |
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from tritonrag.confinement import allow_open_files
from tritonrag.errors import SetupError
from tritonrag.server.watchdog import Watchdog

READ_S = 5.0
"""How long a client may take to send its whole request, and then to take the answer."""

PLACES = 32
"""Most connections at a time; one more is closed at once."""

MEMORY_S = 1.0
"""How long figures of the memory, each of which reads a page per process, are told again."""


class Facts(Collector):
    """A watchdog's figures as Prometheus reads them, taken anew at each scrape."""

    def __init__(self, watchdog: Watchdog) -> None:
        """Take the watchdog."""
        self._watchdog = watchdog
        self._lock = threading.Lock()
        self._memory: dict[str, int] = {}
        self._memory_until = 0.0

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        restarts = CounterMetricFamily(
            "tritonrag_watchdog_restarts",
            "Models and servers that the watchdog replaced",
            labels=["model", "reason"],
        )
        for (model, reason), count in list(self._watchdog.restarts.items()):
            restarts.add_metric([model, reason], count)
        yield restarts
        memory = GaugeMetricFamily(
            "tritonrag_process_memory_bytes",
            "Memory of the server and of its models' processes, shared pages by their share",
            labels=["model"],
        )
        for model, size in self._measured().items():
            memory.add_metric([model], size)
        yield memory

    def as_dict(self) -> dict[str, object]:
        """Return the figures as one JSON object: memory in MB, requests that wait, restarts."""
        restarts: dict[str, dict[str, int]] = {}
        for (model, reason), count in list(self._watchdog.restarts.items()):
            restarts.setdefault(model, {})[reason] = count
        return {
            "ready": self._watchdog.healthy,
            "restarts": restarts,
            "memory_mb": {model: round(size / 1e6, 1) for model, size in self._measured().items()},
            "waiting": self._watchdog.waiting(),
        }

    def _measured(self) -> dict[str, int]:
        with self._lock:
            if time.monotonic() >= self._memory_until:
                self._memory = self._watchdog.memory()
                self._memory_until = time.monotonic() + MEMORY_S
            return self._memory


@contextmanager
def monitored(watchdog: Watchdog, host: str, port: int) -> Iterator[None]:
    """Serve a watchdog's figures during the block.

    From then on this process may have as many open files as the hard limit allows.

    Raises:
        SetupError: the port is in use.
    """
    allow_open_files()
    try:
        server = _Server((host, port), _handler(watchdog))
    except OSError as error:
        raise SetupError(
            f"watchdog port {port} is in use ({error.strerror}); choose another with "
            "--watchdog-port, or stop what uses it"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="monitor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """A server whose connections are bounded in number, and each in the time for its request."""

    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._read_until: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self._read_until) < PLACES

    def process_request(self, request: Any, client_address: Any) -> None:
        self._read_until[request] = time.monotonic() + READ_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._read_until.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End the reading of what takes too long; called twice a second."""
        now = time.monotonic()
        for request, until in list(self._read_until.items()):
            if now > until:
                with suppress(OSError):  # it has just been closed
                    request.shutdown(socket.SHUT_RD)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep clients that break off out of the log."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _handler(watchdog: Watchdog) -> type[BaseHTTPRequestHandler]:
    facts = Facts(watchdog)
    registry = CollectorRegistry()
    registry.register(facts)

    class Handler(BaseHTTPRequestHandler):
        timeout = READ_S

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
            elif self.path == "/status":
                self._answer(200, json.dumps(facts.as_dict()).encode(), "application/json")
            elif self.path == "/health/live":
                self._say(watchdog.alive)
            elif self.path == "/health/ready":
                self._say(watchdog.healthy)
            else:
                self._answer(404, b"/health/live /health/ready /metrics /status\n")

        def _say(self, well: bool) -> None:
            self._answer(200 if well else 503, b"ok\n" if well else b"not ready\n")

        def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Leave the log to what happens."""

    return Handler
