"""Starts, watches and stops one server for a state folder, and cleans up after a crash.

The state folder (``.tritonrag``) holds ``server.json`` (process, ports, shared-memory prefix),
``server.log`` and the backend directory. Everything that a server leaves behind when it is killed
(stub processes, files in /dev/shm) carries that prefix, so that only its own is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from tritonrag import rollout
from tritonrag.artifacts import RerankerManifest
from tritonrag.contract import MODELS, RERANK
from tritonrag.errors import SetupError, Unavailable
from tritonrag.server import installation
from tritonrag.server.control import Control
from tritonrag.server.launch import Launch, Triton, admin_key, clean_up, start_ticks
from tritonrag.server.ports import HOST, Ports
from tritonrag.server.watchdog import Watchdog
from tritonrag.settings import describe_llm

EXIT_TIMEOUT_S = 2
"""What Triton may take to end its models; then it is killed."""

PROGRESS = Callable[[str], None]


@dataclass(frozen=True)
class Running:
    """A server that was started: its process, where it listens and what it serves.

    ``key`` opens its closed APIs. ``watchdog`` is the process that watches it, 0 where none does,
    and ``watching`` when that was started. ``llm`` is what generates in place of the LLM in the
    repository (:func:`tritonrag.settings.describe_llm`), empty where nothing does. Times are those
    of :func:`tritonrag.server.launch.start_ticks`; with seconds in their place, as an older release
    wrote them, no process is taken for the server, and what it left is cleaned up.
    """

    pid: int
    started: int
    prefix: str
    ports: Ports
    repository: str
    index_dir: str
    config: str = ""
    key: str = field(default="", repr=False)
    watchdog: int = 0
    watching: int = 0
    llm: str = ""

    @property
    def alive(self) -> bool:
        """Whether the server still runs, or is watched and so will run again."""
        return _runs(self.pid, self.started) or self.watched

    @property
    def watched(self) -> bool:
        """Whether its watchdog runs."""
        return self.watchdog > 0 and _runs(self.watchdog, self.watching)

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
        self.folder = state_dir.resolve()
        self._state = self.folder / "server.json"
        self.log = self.folder / "server.log"
        self.watchdog_log = self.folder / "watchdog.log"
        self._triton: Triton | None = None
        self.background: subprocess.Popen[bytes] | None = None
        """The process that was started to watch the server, where it was from here."""

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
        """Start the server and return when every model is ready; nothing watches it yet.

        ``config`` names a config variant (``<model>/configs/<name>.pbtxt``) for every model that
        has it. ``bound_to_parent``: the server ends when this process does, however it ends.

        Raises:
            SetupError: one runs already, a port is taken, something is missing, or a model fails
                to load; the message has the cause.
            Unavailable: not ready within ``timeout_s``.
        """
        self.make_folder()
        with self._only_one_start():
            self._check(repository, index_dir, ports, config)
            self._triton, started = self._launch(
                repository, index_dir, ports, config, bound_to_parent
            )
            try:
                self._await_ready(self._triton, started, timeout_s, progress)
            except BaseException:
                self.stop()
                raise
            return started

    def _launch(
        self, repository: Path, index_dir: Path, ports: Ports, config: str, bound: bool
    ) -> tuple[Triton, Running]:
        """Start the process and write down what it is."""
        llm = describe_llm()
        found = installation.find()
        backends = self.folder / "backends"
        installation.lay_out_backends(found, backends)
        self.log.unlink(missing_ok=True)
        how = Launch(
            _command(found, backends, repository, ports, config),
            installation.environment(found, index_dir),
            admin_key(),
            self.log,
            bound,
        )
        triton = Triton(how)
        triton.start()
        started = Running(
            pid=triton.pid,
            started=triton.started,
            prefix=triton.prefix,
            ports=ports,
            repository=str(repository.resolve()),
            index_dir=str(index_dir.resolve()),
            config=config,
            key=how.key,
            llm=llm,
        )
        return triton, self._save(started)

    def make_folder(self) -> None:
        """Make the state folder.

        Raises:
            SetupError: it cannot be made.
        """
        _make_folder(self.folder, "state-dir")

    def watch(self) -> Watchdog:
        """Return a watchdog over the server that was started here, to be run in this process."""
        running, triton = self._known(), self._triton
        if running is None or triton is None:
            raise SetupError(f"{self.folder}: no server was started here that could be watched")
        started = start_ticks(os.getpid())
        watched = self._save(replace(running, watchdog=os.getpid(), watching=started))
        return Watchdog(
            triton,
            Control(running.ports, running.key),
            restarted=lambda: self._save(_now(watched, triton)),
        )

    def stop(self, timeout_s: float = EXIT_TIMEOUT_S + 1) -> bool:
        """Stop the server and remove what it left; return whether one ran."""
        running = self.running()
        if running:
            if running.watched and running.watchdog != os.getpid():
                _end(running.watchdog, 2 * timeout_s)  # it ends its server, and starts no other
            if _runs(running.pid, running.started):
                _end(running.pid, timeout_s)
        if self.background:
            self.background.wait()
            self.background = None
        self.clean_up()
        return running is not None

    def clean_up(self) -> None:
        """End the processes of the last server and remove its shared memory and state file."""
        known = self._known()
        if known is None:
            return
        clean_up(known.prefix)
        if self._triton:
            self._triton.end()
            self._triton = None
        self._state.unlink(missing_ok=True)

    def _check(self, repository: Path, index_dir: Path, ports: Ports, config: str) -> None:
        if running := self.running():
            raise SetupError(
                f"a server runs already (pid {running.pid}, gRPC port {running.ports.grpc}); "
                "stop it with `tritonrag down`"
            )
        self.clean_up()
        _check_repository(repository)
        _check_config(repository, config)
        rollout.refresh(repository)
        ports.check_free()
        _make_folder(index_dir, "index-dir")

    @contextlib.contextmanager
    def _only_one_start(self) -> Iterator[None]:
        lock = FileLock(self.folder / "start.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise SetupError(f"{self.folder}: another start is under way; wait for it") from None
        try:
            yield
        finally:
            lock.release()

    def _save(self, running: Running) -> Running:
        new = self._state.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)  # it holds the key
        new.write_text(json.dumps(asdict(running), indent=2), encoding="utf-8")
        new.replace(self._state)
        return running

    def _known(self) -> Running | None:
        try:
            values = json.loads(self._state.read_text(encoding="utf-8"))
            return Running(**(values | {"ports": Ports(**values["ports"])}))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError):
            self._state.unlink()
            return None

    def _await_ready(
        self, triton: Triton, started: Running, timeout_s: float, progress: PROGRESS
    ) -> None:
        begun = time.monotonic()
        while not started.ready:
            seconds = time.monotonic() - begun
            if not triton.alive:
                raise triton.failure()
            if seconds > timeout_s:
                raise Unavailable(f"not ready after {timeout_s:.0f} s; see {self.log}")
            progress(f"waiting for the models … {seconds:.0f} s")
            time.sleep(0.1)
        triton.loaded()
        triton.close_regions()


def _now(running: Running, triton: Triton) -> Running:
    """Return ``running`` with the process that was started last."""
    return replace(running, pid=triton.pid, started=triton.started, prefix=triton.prefix)


def _runs(pid: int, started: int) -> bool:
    """Return whether the very process that was started at a time still runs."""
    try:
        return start_ticks(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.NoSuchProcess):
        return False


def _end(pid: int, timeout_s: float) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(timeout_s)


def _command(
    found: installation.Installation, backends: Path, repository: Path, ports: Ports, config: str
) -> list[str]:
    return [
        str(found.binary),
        f"--model-repository={repository.resolve()}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in _models(repository, config)),
        f"--model-config-name={rollout.config_name(config)}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        *(f"--{kind}-address={HOST}" for kind in ("http", "grpc", "metrics")),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
    ]


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
