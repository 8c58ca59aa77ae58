"""How one server is started, and how its watchdog's port is kept: without a tritonserver."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tritonrag.errors import SetupError
from tritonrag.server import container, launch, monitor
from tritonrag.server.installation import Installation
from tritonrag.server.launch import Launch, Triton, start_ticks
from tritonrag.server.ports import free_ports
from tritonrag.server.process import EmbeddedServer, _runs

KEY = "k" * 20


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def program(folder: Path, body: str) -> Path:
    path = folder / "tritonserver"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return path


def test_a_program_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    triton = Triton(Launch([str(tmp_path / "none")], os.environ, KEY))
    with pytest.raises(SetupError, match="none: cannot be started .*No such file"):
        triton.start()
    assert not triton.alive


def test_a_program_that_ends_at_once_gives_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = program(tmp_path, "raise SystemExit(7)")
    monkeypatch.setattr(Installation, "binary", property(lambda found: binary))
    repository = tmp_path / "models"
    (repository / "embed").mkdir(parents=True)
    (repository / "embed" / "config.pbtxt").touch()
    server = EmbeddedServer(tmp_path / "state")
    with pytest.raises(SetupError, match="did not start: it ended with status 7"):
        server.start(repository, tmp_path / "index", free_ports())
    assert server.running() is None


def test_a_key_that_stays_visible_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "PARSED_S", 0.1)
    binary = program(tmp_path, "import time; time.sleep(60)")  # it never has a second thread
    triton = Triton(Launch([str(binary)], os.environ, KEY))
    with caplog.at_level(logging.WARNING):
        triton.start()
    assert triton.alive
    triton.end()
    assert "the admin key stays in the server's command line" in caplog.text
    assert KEY not in caplog.text


STARTS = """
import subprocess
from tritonrag.server.control import Control
from tritonrag.server.ports import Ports
control = Control(Ports(1, 1, 1, 1), "k" * 20)
for _ in range(100):
    control.serves("embed")
    assert subprocess.run(["true"], preexec_fn=lambda: None).returncode == 0
"""


def test_a_start_beside_open_connections_is_as_any_other() -> None:
    """What gRPC did in forked processes aborted one in twenty."""
    environment = {name: each for name, each in os.environ.items() if "GRPC" not in name}
    command = [sys.executable, "-c", STARTS]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_process_is_known_by_when_it_started() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        started = start_ticks(process.pid)
        assert _runs(process.pid, started)
        assert not _runs(process.pid, started + 1)
        process.kill()
        eventually(lambda: not _runs(process.pid, started))
    assert not _runs(process.pid, started)


def test_the_state_of_an_older_release_is_no_server_and_is_cleaned_up(tmp_path: Path) -> None:
    ports = {"http": 1, "grpc": 2, "metrics": 3, "watchdog": 4}
    state = {"pid": os.getpid(), "started": time.time(), "prefix": "tritonrag_old_"}
    values = state | {"ports": ports, "repository": "r", "index_dir": "i"}
    (tmp_path / "server.json").write_text(json.dumps(values))
    server = EmbeddedServer(tmp_path)
    assert server.running() is None
    assert not server.stop()
    assert not (tmp_path / "server.json").exists()


def test_regions_are_closed_while_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SHARED_MEMORY", tmp_path)
    triton = Triton(Launch([], {}, KEY))
    triton.prefix = "mine_"
    triton.loading()
    ours, theirs = tmp_path / "mine_1", tmp_path / "theirs_1"
    for file in (theirs, ours):
        file.touch()
        file.chmod(0o644)
    eventually(lambda: ours.stat().st_mode & 0o777 == 0o600)
    triton.loaded()
    assert theirs.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "options",
    [
        ["--allow-http=false"],
        ["--allow-http", "0"],
        ["--allow-grpc=False"],
        ["--http-address=10.1.2.3"],
        ["--grpc-address=127.0.0.1", "--grpc-address=10.1.2.3"],
    ],
)
def test_a_server_that_cannot_be_asked_is_refused(options: list[str]) -> None:
    with pytest.raises(SetupError, match=options[0].partition("=")[0]):
        container.check(["tritonserver", *options])


@pytest.mark.parametrize("option", ["--allow-metrics=false", "--metrics-address=10.1.2.3"])
def test_a_server_without_metrics_is_watched_with_a_warning(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    container.check(["tritonserver", option])
    assert f"{option}: without metrics" in caplog.text


def test_usual_options_are_fine(caplog: pytest.LogCaptureFixture) -> None:
    every = [f"--{name}-address=0.0.0.0" for name in ("http", "grpc", "metrics")]
    container.check(["tritonserver", "--allow-http=true", "--http-port=8000", *every])
    container.check(["tritonserver", "--http-address=127.0.0.1"])
    assert caplog.text == ""


class Watched:
    """As :class:`Watchdog`."""

    alive = healthy = True

    def __init__(self) -> None:
        self.restarts = {("embed", "died"): 2}
        self.measured = 0

    def memory(self) -> dict[str, int]:
        self.measured += 1
        return {"embed": 5_000_000}

    def waiting(self) -> dict[str, int]:
        return {"embed": 1}


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def port(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(monitor, "READ_S", 0.5)
    monkeypatch.setattr(monitor, "MEMORY_S", 60.0)
    port = free_ports().watchdog
    with monitor.monitored(watched, "127.0.0.1", port):  # type: ignore[arg-type]
        yield port
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def ready(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        url = f"http://127.0.0.1:{port}/health/ready"
        return httpx.get(url, trust_env=False).status_code == 200
    return False


def test_slow_clients_take_bounded_places_and_for_a_bounded_time(port: int) -> None:
    with contextlib.ExitStack() as opened:
        slow = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(monitor.PLACES + 10)
        ]
        refused = slow[monitor.PLACES :]
        for each in refused:
            each.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""
        end = time.monotonic() + 5
        while not ready(port):
            assert time.monotonic() < end
            for each in slow:
                with contextlib.suppress(OSError):
                    each.send(b"G")  # a byte now and then, so that no single read takes long
            time.sleep(0.05)


def test_memory_is_measured_once_for_scrapes_in_quick_order(port: int, watched: Watched) -> None:
    for path in ("status", "metrics", "status"):
        httpx.get(f"http://127.0.0.1:{port}/{path}", trust_env=False).raise_for_status()
    assert watched.measured == 1


def test_the_watchdog_may_open_as_many_files_as_are_allowed(port: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
