"""Runs wrk against an HTTP server: the same closed loop for every server that is compared.

wrk keeps N connections busy out of one thread in C, so that it takes little of the machine that the
servers need as well. ``workloads/requests.lua`` gives it the requests, which differ in their texts.
It counts the requests completed within the time; those under way at the end are dropped, as is what
a cold server gained by starting with an empty queue. Install it with ``apt install wrk``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perf_analyzer import Latency, RunFailed

from tritonrag.errors import SetupError

WORKLOADS = Path(__file__).parent / "workloads"
SCRIPT, PACED = WORKLOADS / "requests.lua", WORKLOADS / "paced.lua"
TIMEOUT_S = 120
"""After which wrk counts a request as failed; a slow server at many clients takes long."""


@dataclass(frozen=True)
class Request:
    """One HTTP request; ``body`` is sent as JSON, None sends nothing."""

    method: str
    path: str
    body: dict[str, Any] | None = None

    def line(self) -> str:
        """Return it as the script reads it."""
        body = "" if self.body is None else json.dumps(self.body)
        return f"{self.method}\t{self.path}\t{body}\n"


@dataclass(frozen=True)
class HttpMeasured:
    """What a run measured; tokens are those that the answers state, None if nobody counted.

    ``refused`` were turned away with status 503; then ``latency`` is of the others alone.
    """

    clients: int
    seconds: float
    requests: int
    qps: float
    latency: Latency
    errors: int
    tokens_per_s: float | None = None
    refused: int = 0
    refused_p50_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for a result's file."""
        return asdict(self)


def ensure() -> str:
    """Return where wrk lies.

    Raises:
        SetupError: it is not installed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise SetupError("wrk, which puts the load on HTTP servers, is missing: apt install wrk")
    return program


def run(
    url: str,
    requests: Sequence[Request],
    clients: int,
    seconds: float,
    *,
    tokens: bool = False,
    pause_s: float = 0,
) -> HttpMeasured:
    """Keep ``clients`` connections to ``url`` busy and return what was measured.

    ``tokens``: sum what the answers say of tokens. ``pause_s``: the mean pause of a connection
    before each request, 0 for none.

    Raises:
        SetupError: wrk is not installed.
        RunFailed: wrk ended with an error, or no request was completed.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "requests"
        lines.write_text("".join(each.line() for each in requests), encoding="utf-8")
        command = [
            ensure(), "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s",
            "--timeout", f"{TIMEOUT_S}s", "-s", str(PACED if pause_s else SCRIPT), url, "--",
            str(lines), "0", *([str(1e3 * pause_s)] if pause_s else ["tokens"] if tokens else []),
        ]  # fmt: skip
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + TIMEOUT_S, check=False
        )
    return _measured(ended, clients, tokens)


def _measured(ended: subprocess.CompletedProcess[str], clients: int, tokens: bool) -> HttpMeasured:
    last = (ended.stdout.strip().splitlines() or [""])[-1]
    if ended.returncode or not last.startswith("{"):
        raise RunFailed(f"wrk: {(ended.stderr.strip() or last or ended.returncode)}")
    found = json.loads(last)
    done, seconds = found["requests"], found["seconds"]
    if not done:
        raise RunFailed(f"wrk: no request was completed in {seconds:.0f} s")
    return HttpMeasured(
        clients,
        seconds=round(seconds, 3),
        requests=done,
        qps=round(done / seconds, 3),
        latency=Latency(found["p50_ms"], found["p95_ms"], found["p99_ms"]),
        errors=found["errors"],
        tokens_per_s=round(found["tokens"] / seconds, 2) if tokens else None,
        refused=found.get("refused", 0),
        refused_p50_ms=found.get("refused_p50_ms") or None,
    )
