"""Start, stop and crash of the embedded server: nothing may stay behind, every failure has a line.

Most tests serve `tokenize`, `embed` and `embed_text` alone, which start in a second or two.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from servers import REPOSITORY, ROOT, serve, tritonrag

from tritonrag.errors import SetupError
from tritonrag.server.ports import Ports, free_ports
from tritonrag.server.process import EmbeddedServer


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with the embedder alone."""
    repository = tmp_path / "models"
    repository.mkdir()
    for model in ("tokenize", "embed", "embed_text"):
        (repository / model).symlink_to(REPOSITORY / model)
    return repository


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    embedded = EmbeddedServer(tmp_path / "state")
    yield embedded
    embedded.stop()


def leftovers(prefix: str) -> list[str]:
    files = [file.name for file in Path("/dev/shm").glob(f"{prefix}*")]
    processes = [
        str(process.pid)
        for process in psutil.process_iter(["cmdline"])
        if any(prefix in argument for argument in process.info["cmdline"] or ())
    ]
    return files + processes


def start(server: EmbeddedServer, repository: Path, tmp_path: Path, ports: Ports | None = None):
    return server.start(repository, tmp_path / "index", ports or free_ports(), bound_to_parent=True)


def test_stop_is_quick_and_leaves_nothing(
    server: EmbeddedServer, small: Path, tmp_path: Path
) -> None:
    running = start(server, small, tmp_path)
    assert running.ready
    assert leftovers(running.prefix)
    began = time.monotonic()
    assert server.stop()
    assert time.monotonic() - began < 5
    assert leftovers(running.prefix) == []
    assert server.running() is None


def test_after_a_kill_the_next_start_works_and_cleans_up(
    server: EmbeddedServer, small: Path, tmp_path: Path
) -> None:
    killed = start(server, small, tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    psutil.Process(killed.pid).wait(5)
    assert leftovers(killed.prefix)
    again = start(server, small, tmp_path, killed.ports)
    assert again.ready
    assert leftovers(killed.prefix) == []


def test_a_second_start_is_refused(server: EmbeddedServer, small: Path, tmp_path: Path) -> None:
    running = start(server, small, tmp_path)
    with pytest.raises(SetupError, match=rf"pid {running.pid}.*tritonrag down"):
        start(server, small, tmp_path)
    assert running.ready


def test_a_port_in_use_is_named(server: EmbeddedServer, small: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free = free_ports()
        with pytest.raises(SetupError, match=rf"grpc port {port} is in use.*--grpc-port"):
            start(server, small, tmp_path, Ports(free.http, port, free.metrics, free.watchdog))


def test_equal_ports_are_refused(server: EmbeddedServer, small: Path, tmp_path: Path) -> None:
    port = free_ports().http
    with pytest.raises(SetupError, match="choose four different ones"):
        start(server, small, tmp_path, Ports(port, port, port, port))


def test_a_folder_that_cannot_be_made_is_named(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"file/state: cannot be made a folder.*--state-dir"):
        start(EmbeddedServer(tmp_path / "file" / "state"), small, tmp_path)


def test_a_start_during_another_is_refused(
    server: EmbeddedServer, small: Path, tmp_path: Path
) -> None:
    refused: list[SetupError] = []

    def second(line: str) -> None:
        if not refused:
            with pytest.raises(SetupError, match="another start is under way") as raised:
                start(server, small, tmp_path)
            refused.append(raised.value)

    server.start(small, tmp_path / "index", free_ports(), progress=second)
    assert refused


def test_a_missing_artefact_gives_one_line_with_the_remedy(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    repository = tmp_path / "bare"
    shutil.copytree(REPOSITORY / "embed", repository / "embed")
    shutil.rmtree(repository / "embed" / "1")
    (repository / "embed" / "1").mkdir()
    with pytest.raises(SetupError) as raised:
        start(server, repository, tmp_path)
    lines = str(raised.value).splitlines()
    assert len(lines) == 2, lines
    assert "model embed" in lines[0]
    assert "make models" in lines[0]
    assert "whole log" in lines[1]
    assert server.running() is None


def test_a_folder_without_models_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no model repository"):
        start(server, tmp_path, tmp_path)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_serve_takes_its_server_along(
    small: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    ports = free_ports()
    command = [
        sys.executable, "-m", "tritonrag", "serve", "--repository", str(small),
        "--index-dir", str(tmp_path / "index"), "--state-dir", str(tmp_path / "served"),
        "--http-port", str(ports.http), "--grpc-port", str(ports.grpc),
        "--metrics-port", str(ports.metrics), "--watchdog-port", str(ports.watchdog),
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert "server ready" in process.stdout.readline()
        running = EmbeddedServer(tmp_path / "served").running()
        assert running is not None
        process.send_signal(signal_number)
        code = process.wait(10)
    assert code == (130 if signal_number == signal.SIGINT else -signal.SIGKILL)
    deadline = time.monotonic() + 6
    while leftovers(running.prefix) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert leftovers(running.prefix) == []


@pytest.mark.parametrize("model", ["prompt", "generate"])
def test_the_probe_notices_a_model_that_died(tmp_path: Path, model: str) -> None:
    with contextlib.contextmanager(serve)(tmp_path) as served:
        probe = ("status", "--url", served.grpc, "--probe")
        before = tritonrag(*probe)
        for process in psutil.Process(served.running.pid).children():
            if any(f"/{model}/1/" in argument for argument in process.cmdline()):
                process.kill()
        after = tritonrag(*probe)
    assert before.returncode == 0, before.stdout
    assert after.returncode == 1
    assert f"{model}_0_0" in after.stdout
