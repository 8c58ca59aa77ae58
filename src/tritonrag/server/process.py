"""Starts, watches and stops one server for a state folder, and cleans up after a crash.

The state folder (``.tritonrag``) holds ``server.json`` (process, ports, shared-memory prefix),
``server.log`` and the backend directory. Everything that a server leaves behind when it is killed
(stub processes, files in /dev/shm) carries that prefix, so that only its own is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from tritonrag import rollout
from tritonrag.artifacts import RerankerManifest
from tritonrag.contract import MODELS, RERANK
from tritonrag.errors import SetupError, Unavailable
from tritonrag.server import installation
from tritonrag.server.log import cause
from tritonrag.settings import ADMIN_HEADER, describe_llm

HOST = "127.0.0.1"
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
SHARED_MEMORY = Path("/dev/shm")
EXIT_TIMEOUT_S = 2
"""What Triton may take to end its models; then it is killed."""

PROGRESS = Callable[[str], None]


@dataclass(frozen=True)
class Ports:
    """The server's ports on the loopback address."""

    http: int = HTTP_PORT
    grpc: int = GRPC_PORT
    metrics: int = METRICS_PORT


@dataclass(frozen=True)
class Running:
    """A server that was started: its process, where it listens and what it serves.

    ``key`` is what it wants of whoever loads models; ``llm`` is what generates in place of the LLM
    in the repository (:func:`tritonrag.settings.describe_llm`), empty where nothing does.
    """

    pid: int
    started: float
    prefix: str
    ports: Ports
    repository: str
    index_dir: str
    config: str = ""
    key: str = field(default="", repr=False)
    llm: str = ""

    @property
    def alive(self) -> bool:
        """Whether the very process that was started still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    @property
    def ready(self) -> bool:
        """Whether all models are loaded."""
        try:
            url = f"http://{HOST}:{self.ports.http}/v2/health/ready"
            return httpx.get(url, trust_env=False).is_success  # no proxy leads to this machine
        except httpx.HTTPError:
            return False


class EmbeddedServer:
    """The server of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        """Use ``state_dir``, which is made when a server starts."""
        self._dir = state_dir.resolve()
        self._state = self._dir / "server.json"
        self.log = self._dir / "server.log"
        self._child: subprocess.Popen[bytes] | None = None

    def running(self) -> Running | None:
        """Return the server that runs, or None."""
        known = self._known()
        return known if known and known.alive else None

    def start(
        self,
        repository: Path,
        index_dir: Path,
        ports: Ports,
        *,
        config: str = "",
        bound_to_parent: bool = False,
        timeout_s: float = 120,
        progress: PROGRESS = lambda line: None,
    ) -> Running:
        """Start the server and return when every model is ready.

        ``config`` names a config variant (``<model>/configs/<name>.pbtxt``) for every model that
        has it. ``bound_to_parent``: the server ends when this process does, however it ends.

        Raises:
            SetupError: one runs already, a port is taken, something is missing, or a model fails
                to load; the message has the cause.
            Unavailable: not ready within ``timeout_s``.
        """
        _make_folder(self._dir, "state-dir")
        with self._only_one_start():
            return self._start(
                repository, index_dir, ports, config, bound_to_parent, timeout_s, progress
            )

    def _start(
        self, repository: Path, index_dir: Path, ports: Ports, config: str, bound_to_parent: bool,
        timeout_s: float, progress: PROGRESS,
    ) -> Running:  # fmt: skip
        if running := self.running():
            raise SetupError(
                f"a server runs already (pid {running.pid}, gRPC port {running.ports.grpc}); "
                "stop it with `tritonrag down`"
            )
        self.clean_up()
        _check_repository(repository)
        _check_config(repository, config)
        rollout.refresh(repository)
        _check_ports(ports)
        llm = describe_llm()
        found = installation.find()
        _make_folder(index_dir, "index-dir")
        installation.lay_out_backends(found, self._dir / "backends")
        prefix = f"tritonrag_{secrets.token_hex(4)}_"
        key = secrets.token_hex(16)
        process = self._spawn(
            found, repository, index_dir, ports, config, prefix, key, bound_to_parent
        )
        self._child = process
        started = Running(
            process.pid, psutil.Process(process.pid).create_time(), prefix, ports,
            str(repository.resolve()), str(index_dir.resolve()), config, key,
            llm,
        )  # fmt: skip
        self._save(started)
        try:
            self._await_ready(process, started, timeout_s, progress)
        except BaseException:
            self.stop()
            raise
        return started

    def stop(self, timeout_s: float = EXIT_TIMEOUT_S + 1) -> bool:
        """Stop the server and remove what it left; return whether one ran."""
        running = self.running()
        if running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(running.pid)
                process.terminate()
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(timeout_s)
        self.clean_up()
        return running is not None

    def clean_up(self) -> None:
        """End the processes of the last server and remove its shared memory and state file."""
        known = self._known()
        if known is None:
            return
        remains = list(_processes(known))
        for process in remains:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(remains, timeout=2)
        if self._child:
            self._child.wait()
            self._child = None
        for file in SHARED_MEMORY.glob(f"{known.prefix}*"):
            file.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def wait(self, running: Running) -> int:
        """Wait until the server ends by itself; return its exit status (1 where unknown)."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return int(psutil.Process(running.pid).wait() or 0)
        return 1

    @contextlib.contextmanager
    def _only_one_start(self) -> Iterator[None]:
        lock = FileLock(self._dir / "start.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise SetupError(f"{self._dir}: another start is under way; wait for it") from None
        try:
            yield
        finally:
            lock.release()

    def _save(self, running: Running) -> None:
        self._state.unlink(missing_ok=True)
        self._state.touch(mode=0o600)  # it holds the key
        self._state.write_text(json.dumps(asdict(running), indent=2), encoding="utf-8")

    def _known(self) -> Running | None:
        try:
            values = json.loads(self._state.read_text(encoding="utf-8"))
            return Running(**(values | {"ports": Ports(**values["ports"])}))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError):
            self._state.unlink()
            return None

    def _spawn(
        self, found: installation.Installation, repository: Path, index_dir: Path, ports: Ports,
        config: str, prefix: str, key: str, bound_to_parent: bool,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        command = [
            str(found.binary),
            f"--model-repository={repository.resolve()}",
            f"--backend-directory={self._dir / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={prefix}",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in _models(repository, config)),
            f"--model-config-name={rollout.config_name(config)}",
            f"--http-restricted-api=model-repository:{ADMIN_HEADER}={key}",
            f"--grpc-restricted-protocol=model-repository:{ADMIN_HEADER}={key}",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--http-address={HOST}", f"--http-port={ports.http}",
            f"--grpc-address={HOST}", f"--grpc-port={ports.grpc}",
            f"--metrics-address={HOST}", f"--metrics-port={ports.metrics}",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=installation.environment(found, index_dir),
                start_new_session=True,
                preexec_fn=_end_with_parent if bound_to_parent else None,
            )

    def _await_ready(
        self,
        process: subprocess.Popen[bytes],
        started: Running,
        timeout_s: float,
        progress: PROGRESS,
    ) -> None:
        begun = time.monotonic()
        while not started.ready:
            seconds = time.monotonic() - begun
            if process.poll() is not None:
                raise SetupError(self._why(process.returncode))
            if seconds > timeout_s:
                raise Unavailable(f"not ready after {timeout_s:.0f} s; see {self.log}")
            progress(f"waiting for the models … {seconds:.0f} s")
            time.sleep(0.1)

    def _why(self, status: int) -> str:
        found = cause(self.log.read_text(encoding="utf-8", errors="replace"))
        reason = found or f"it ended with status {status}"
        return f"the server did not start: {reason}\n(whole log: {self.log})"


def _processes(known: Running) -> Iterator[psutil.Process]:
    """Yield the server and the stubs of its models, by the prefix in their command lines."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(known.prefix in argument for argument in process.cmdline()):
                yield process


def _check_repository(repository: Path) -> None:
    if not any(repository.glob("*/config.pbtxt")):
        raise SetupError(
            f"{repository}: no model repository (no */config.pbtxt); name one with --repository"
        )


def _check_config(repository: Path, config: str) -> None:
    known = rollout.variants(repository)
    if config and config not in known:
        raise SetupError(
            f"--config {config}: no model has a configs/{config}.pbtxt; "
            f"{'choose of: ' + ', '.join(known) if known else 'there are no variants here'}"
        )
    if config == RERANK:
        RerankerManifest.load(repository)


def _models(repository: Path, config: str) -> list[str]:
    """Return the models to load: all but those that only another config variant serves."""
    names = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    variants = {name: MODELS[name].variant for name in names if name in MODELS}
    return [name for name in names if variants.get(name, "") in ("", config)]


def _make_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"{folder}: cannot be made a folder ({error.strerror}); choose another with --{option}"
        ) from error


def _check_ports(ports: Ports) -> None:
    if len(set(asdict(ports).values())) < len(asdict(ports)):
        raise SetupError(
            f"the ports are {ports.http}, {ports.grpc} and {ports.metrics} (HTTP, gRPC, metrics); "
            "choose three different ones"
        )
    for name, port in asdict(ports).items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise SetupError(
                    f"{name} port {port} is in use ({error.strerror}); choose another with "
                    f"--{name}-port, or stop what uses it"
                ) from error


def _end_with_parent() -> None:
    """Ask the kernel to send SIGTERM to this process when its parent ends (Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def free_ports() -> Ports:
    """Return three ports that are free now."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return Ports(*(each.getsockname()[1] for each in sockets))
    finally:
        for each in sockets:
            each.close()
