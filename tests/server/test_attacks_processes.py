"""Processes of the server are killed, stopped and swollen under load: the watchdog has it back."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from servers import QUESTION, RESTARTED_S, ROOT, Served, eventually, now, supervised, tritonrag

from tritonrag.client import Client
from tritonrag.errors import TritonragError, Unavailable
from tritonrag.server.launch import SHARED_MEMORY
from tritonrag.server.ports import free_ports

STUBS = ("tokenize", "embed", "retrieve", "prompt", "generate")

RELOADED_S = 5
"""In this time a model answers again whose process was killed."""


def stub(served: Served, model: str) -> psutil.Process:
    for process in psutil.Process(now(served).pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if f"/{model}/" in process.cmdline()[1]:
                return process
    raise AssertionError(f"no process of {model}")


def answered(served: Served) -> bool:
    try:
        with Client(served.grpc, timeout=5) as client:
            return bool(client.ask(QUESTION, top_k=2).read().citations)
    except TritonragError:
        return False


def healthy(served: Served) -> bool:
    url = f"http://127.0.0.1:{served.running.ports.watchdog}/health/ready"
    return httpx.get(url, trust_env=False).status_code == 200


def restarts(served: Served) -> dict[str, dict[str, int]]:
    url = f"http://127.0.0.1:{served.running.ports.watchdog}/status"
    found: dict[str, dict[str, int]] = httpx.get(url, trust_env=False).json()["restarts"]
    return found


class Load:
    """Eight clients that search and ask without end, and what became of each request."""

    def __init__(self, served: Served) -> None:
        self.outcomes: list[tuple[float, str, object]] = []
        self._served = served
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(8)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request hangs"

    def answered_after(self, moment: float) -> bool:
        later = [found for began, _, found in self.outcomes if began > moment]
        return any(not isinstance(found, TritonragError) for found in later)

    def _run(self, number: int) -> None:
        with Client(self._served.grpc, timeout=30) as client:
            while not self._stopped.wait(0.01):
                began = time.monotonic()
                try:
                    if number % 2:
                        found: object = [each.source for each in client.search(QUESTION, top_k=1)]
                    else:
                        found = client.ask(QUESTION, top_k=1).read().citations[0].source
                except TritonragError as error:
                    found = error
                self.outcomes.append((began, "search" if number % 2 else "rag", found))


@pytest.mark.parametrize("model", STUBS)
def test_a_killed_model_is_back_and_every_request_ends(watched: Served, model: str) -> None:
    before = restarts(watched).get(model, {}).get("died", 0)
    with Load(watched) as load:
        time.sleep(1)
        stub(watched, model).kill()
        killed = time.monotonic()
        eventually(lambda: not healthy(watched), 2)
        eventually(lambda: answered(watched), RESTARTED_S if model == "generate" else RELOADED_S)
        eventually(lambda: load.answered_after(killed), RELOADED_S)
    eventually(lambda: healthy(watched), 2)
    assert restarts(watched)[model]["died"] == before + 1
    failures = [found for _, _, found in load.outcomes if isinstance(found, TritonragError)]
    answers = [found for _, _, found in load.outcomes if not isinstance(found, TritonragError)]
    assert all(found in (["parental-leave.md"], "parental-leave.md") for found in answers)
    assert all(isinstance(each, Unavailable) for each in failures), set(map(repr, failures))


def test_a_killed_server_is_back(watched: Served) -> None:
    pid = now(watched).pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: answered(watched), RESTARTED_S)
    assert now(watched).pid != pid
    assert restarts(watched)["tritonserver"]["died"] == 1
    status = tritonrag("status", "--state-dir", str(watched.server.folder), "--probe")
    assert status.returncode == 0, status.stdout
    assert re.search(r"restarts: .*tritonserver died 1", status.stdout)
    assert re.search(r"memory_mb: tritonserver [\d.]+, .*embed [\d.]+", status.stdout)
    assert re.search(r"waiting: .*retrieve \d", status.stdout)


def test_each_act_is_a_line_of_the_log(watched: Served) -> None:
    log = watched.server.watchdog_log.read_text()
    assert re.search(r"watchdog: retrieve: died; the model is loaded again", log)
    assert re.search(r"watchdog: retrieve is loaded after \d", log)
    assert re.search(r"watchdog: generate: died; the server is started again", log)


def test_the_memory_of_requests_is_for_no_other_user(watched: Served) -> None:
    regions = list(SHARED_MEMORY.glob(f"{now(watched).prefix}*"))
    assert len(regions) >= len(STUBS)
    assert {stat.S_IMODE(region.stat().st_mode) for region in regions} == {0o600}


def test_the_key_is_in_no_command_line_and_no_environment(watched: Served) -> None:
    running = now(watched)
    server = psutil.Process(running.pid)
    for process in (server, *server.children(), psutil.Process(running.watchdog)):
        assert running.key not in " ".join(process.cmdline())
        assert running.key not in str(process.environ())
    headers = {"tritonrag-key": running.key}
    index = httpx.post(f"{watched.http}/v2/repository/index", headers=headers, trust_env=False)
    assert index.status_code == 200, "the key still opens what it is for"


def test_a_server_without_its_watchdog_ends(tmp_path: Path) -> None:
    with supervised(tmp_path) as served:
        running = now(served)
        os.kill(running.watchdog, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(running.pid), 10)
        assert served.server.running() is None


def test_supervise_runs_a_server_of_any_options_and_ends_it(watched: Served) -> None:
    """As in the container: the program and its options after `--`, the key from the environment."""
    ports = free_ports()
    options = [each for each in psutil.Process(now(watched).pid).cmdline()
               if not re.match(r"--(http|grpc|metrics)-port|--(http|grpc)-restr|.*shm-region", each)
               and not each.startswith("--load-model")]  # fmt: skip
    command = [
        sys.executable, "-m", "tritonrag", "supervise", "--watchdog-port", str(ports.watchdog),
        "--", *options, "--load-model=tokenize", f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}",
    ]  # fmt: skip
    environment = psutil.Process(now(watched).pid).environ()
    key = "k" * 20
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment | {"TRITONRAG_ADMIN_KEY": key},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{ports.watchdog}"

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
        return False

    try:
        eventually(ready, 30)
        (child,) = psutil.Process(process.pid).children()
        assert key not in " ".join(child.cmdline())
        child.kill()
        eventually(lambda: not ready(), 5)
        eventually(ready, 20)
        assert "tritonrag_watchdog_restarts_total" in httpx.get(f"{url}/metrics").text
    finally:
        process.terminate()
        assert process.wait(40) == 128 + signal.SIGTERM
    assert not any(child.is_running() for child in (child,))


def test_supervise_refuses_a_key_that_is_easily_guessed() -> None:
    environment = os.environ | {"TRITONRAG_ADMIN_KEY": "guess"}
    command = [sys.executable, "-m", "tritonrag", "supervise", "--", "tritonserver"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "TRITONRAG_ADMIN_KEY has 5 characters, expected 16 or more" in ended.stderr
