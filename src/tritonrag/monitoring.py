"""How scheduled runs go, for machines: a health file for probes, and metrics for Prometheus."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tritonrag.errors import SetupError
from tritonrag.scheduling import Counts, Watcher, now


class HealthFile(Watcher):
    """One JSON object, replaced as a whole whenever something happens; its age tells of a hang."""

    def __init__(self, path: Path) -> None:
        """Write ``path``, and at once, so that a folder that is not there is reported.

        Raises:
            SetupError: it cannot be written.
        """
        self._path = path
        self._facts: dict[str, Any] = {
            "state": "starting",
            "last_success": None,
            "last_counts": None,
            "last_failure": None,
            "last_error": None,
            "failures_in_a_row": 0,
            "next_run": None,
        }
        try:
            self._replace()
        except OSError as error:
            reason = error.strerror or error
            raise SetupError(f"--health-file: {path}: cannot be written: {reason}") from error

    def started(self) -> None:
        """Say that a run is under way."""
        self._write(state="running", next_run=None)

    def succeeded(self, counts: Counts, seconds: float) -> None:
        """Say when and what."""
        self._write(
            state="done", last_success=_stamp(now()), last_counts=dict(counts), failures_in_a_row=0
        )

    def failed(self, error: Exception) -> None:
        """Say when and why."""
        failures = self._facts["failures_in_a_row"] + 1
        self._write(
            state="failed",
            last_failure=_stamp(now()),
            last_error=str(error) or type(error).__name__,
            failures_in_a_row=failures,
        )

    def waiting(self, until: datetime) -> None:
        """Say until when."""
        self._write(state="waiting", next_run=_stamp(until))

    def _write(self, **facts: Any) -> None:
        self._facts |= facts
        # A full disk must not fail the run: the probe sees that the file grows old.
        with suppress(OSError):
            self._replace()

    def _replace(self) -> None:
        self._facts["updated"] = _stamp(now())
        new = self._path.with_name(f".{self._path.name}.new")
        new.write_text(json.dumps(self._facts, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(new, self._path)


class Metrics(Watcher):
    """Counters and gauges of one collection's runs."""

    def __init__(self, collection: str) -> None:
        """Make the metrics in a registry of their own."""
        registry = self.registry = CollectorRegistry()
        self._collection = collection
        self._runs = Counter(
            "tritonrag_sync_runs", "Attempts.", ("collection", "outcome"), registry=registry
        )
        self._documents = Counter(
            "tritonrag_sync_documents", "Documents.", ("collection", "outcome"), registry=registry
        )
        self._seconds = Gauge(
            "tritonrag_sync_seconds", "Length of the last good run.", ("collection",),
            registry=registry,
        )  # fmt: skip
        self._success = Gauge(
            "tritonrag_sync_last_success_timestamp_seconds", "When the last good run ended.",
            ("collection",), registry=registry,
        )  # fmt: skip
        for outcome in ("success", "failure"):
            self._runs.labels(collection, outcome)

    def succeeded(self, counts: Counts, seconds: float) -> None:
        """Count a run and its documents."""
        self._runs.labels(self._collection, "success").inc()
        self._seconds.labels(self._collection).set(seconds)
        self._success.labels(self._collection).set_to_current_time()
        for outcome, count in counts.items():
            self._documents.labels(self._collection, outcome).inc(count)

    def failed(self, error: Exception) -> None:
        """Count a failure."""
        self._runs.labels(self._collection, "failure").inc()

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[int]:
        """Answer Prometheus at ``host:port`` meanwhile, and yield the port; 0 is any free one.

        Raises:
            SetupError: the address cannot be used.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            reason = error.strerror or error
            raise SetupError(f"--metrics-port: {host}:{port} cannot be used: {reason}") from error
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
