"""Starts one ``tritonserver`` process the way every deployment needs it, and cleans up after it.

What every start adds, embedded or in the container:

- the APIs that control the server are closed to whoever has no key (:data:`CLOSED`);
- the key is wiped from the process list as soon as the server has read it;
- a stack of a gibibyte: release 24.10 puts a row for each piece of a request's body on a thread's
  stack, so that a body in many small pieces ends the server with signal 11 at the usual 8 MiB;
- a prefix for its shared memory, so that what a killed server leaves behind can be told from
  everybody else's, and modes that let no other user read it, since requests cross there;
- no pool of gRPC messages, each of whose eight would keep the memory of the largest request so far,
  and one arena of the allocator, since each more keeps some too;
- as many open files as are allowed, since connections that do nothing are never closed, and a gRPC
  client that has vanished is noticed after 80 seconds instead of two hours.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from tritonrag.confinement import allow_open_files
from tritonrag.errors import SetupError
from tritonrag.server.log import cause
from tritonrag.settings import ADMIN_HEADER, ADMIN_KEY_VARIABLE

LOG = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")

CLOSED = ("model-repository", "shared-memory", "trace", "logging", "statistics")
"""Triton's APIs that need the key. With the first two a caller could run code in the server, and
read the requests of others out of its shared memory."""

MIN_KEY = 16
"""Fewest characters of a key that somebody chose."""

STACK_BYTES = 1 << 30
"""Address space for the stack of each thread, of which only what is used takes memory."""

PARSED_S = 5.0
"""How long a server may take to read its options; it takes less than a tenth of a second."""

END_S = 2.0
"""How long the processes of a killed server may take to end."""

CLOSE_S = 0.005
"""How often new regions of shared memory are closed while models are loaded."""

_GRPC = (
    "--grpc-infer-allocation-pool-size=0",
    "--grpc-keepalive-time=60000",
    "--grpc-keepalive-timeout=20000",
    "--grpc-keepalive-permit-without-calls=1",
)

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Launch:
    """How to start a server: its program and options, its environment and its log.

    ``key`` opens the closed APIs. ``log`` None lets the server write where this process does.
    ``bound`` makes the server end with the thread that starts it, however that ends.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    key: str = field(repr=False)
    log: Path | None = None
    bound: bool = True


class Triton:
    """A server that can be started, ended and started again."""

    def __init__(self, how: Launch) -> None:
        """Start nothing yet."""
        self._how = how
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded = threading.Event()
        self.prefix = ""
        """Part of the command line of all processes of the last start."""
        self.started = 0
        """When the process of the last start was started (:func:`start_ticks`)."""

    @property
    def pid(self) -> int:
        """The process of the last start; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server; return when it has read its options.

        :meth:`loaded` has to be called once its models are.

        Raises:
            SetupError: its program cannot be run.
        """
        how = self._how
        self.prefix = f"tritonrag_{secrets.token_hex(4)}_"
        command = [
            *how.command,
            f"--backend-config=python,shm-region-prefix-name={self.prefix}",
            *_GRPC,
            *_closed(how.key),
        ]
        try:
            self._process = self._popen(command)
        except (OSError, subprocess.SubprocessError) as error:
            raise SetupError(
                f"{command[0]}: cannot be started ({error}); name a tritonserver that this user "
                "may run, and look for free memory, processes and open files"
            ) from error
        self.started = start_ticks(self._process.pid)  # before anything that might reap it
        _hide(self._process, how.key)
        self.loading()

    def _popen(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        how = self._how
        with contextlib.ExitStack() as opened:
            log = opened.enter_context(how.log.open("ab")) if how.log else None
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                env=_inherited(how.environment),
                start_new_session=True,
                preexec_fn=lambda: _prepare(how.bound),
            )

    def end(self, timeout_s: float = 0) -> None:
        """End the server, which may take ``timeout_s`` for its answers, and what it leaves."""
        self.loaded()
        if self._process is None:
            return
        if timeout_s and self.alive:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        clean_up(self.prefix)
        self._process.kill()
        self._process.wait()

    def loading(self) -> None:
        """Close new shared memory within milliseconds, in a thread, until :meth:`loaded`."""
        self.loaded()
        self._loaded = threading.Event()
        closing = threading.Thread(
            target=self._close_until, args=(self._loaded,), name="regions", daemon=True
        )
        closing.start()

    def loaded(self) -> None:
        """Say that all models are loaded."""
        self._loaded.set()

    def _close_until(self, loaded: threading.Event) -> None:
        while not loaded.wait(CLOSE_S):
            self.close_regions()

    def close_regions(self) -> None:
        """Let nobody else read the shared memory, which Triton opens to all users of the machine.

        To be called again and again: each process of a model makes a region.
        """
        for file in SHARED_MEMORY.glob(f"{self.prefix}*"):
            with contextlib.suppress(OSError):  # it has just gone
                file.chmod(0o600)

    def process(self) -> psutil.Process:
        """Return the process of the last start.

        Raises:
            psutil.NoSuchProcess: it has ended, or none was started.
        """
        if self._process is None:
            raise psutil.NoSuchProcess(0)
        return psutil.Process(self._process.pid)

    def children(self) -> list[psutil.Process]:
        """Return the processes that the server started; none where it has ended."""
        try:
            return list(self.process().children()) if self.alive else []
        except psutil.NoSuchProcess:
            return []

    def failure(self) -> SetupError:
        """Return why the server did not start, as far as its log tells."""
        status = self._process.poll() if self._process else None
        if self._how.log is None:
            return SetupError(f"the server did not start (status {status}); its log says why")
        found = cause(self._how.log.read_text(encoding="utf-8", errors="replace"))
        reason = found or f"it ended with status {status}"
        return SetupError(f"the server did not start: {reason}\n(whole log: {self._how.log})")


def admin_key() -> str:
    """Return the key of ``TRITONRAG_ADMIN_KEY``, or else a new one.

    Raises:
        SetupError: the key is too short.
    """
    key = os.environ.get(ADMIN_KEY_VARIABLE) or secrets.token_hex(16)
    if len(key) < MIN_KEY:
        raise SetupError(
            f"{ADMIN_KEY_VARIABLE} has {len(key)} characters, expected {MIN_KEY} or more: whoever "
            "has it can run code in the server"
        )
    return key


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the server's environment: its models need no key."""
    kept = {name: each for name, each in environment.items() if name != ADMIN_KEY_VARIABLE}
    return {"MALLOC_ARENA_MAX": "1"} | kept


def end_on_sigterm() -> None:
    """Make SIGTERM end this process as an exception, so that its server is stopped."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def processes(prefix: str) -> Iterator[psutil.Process]:
    """Yield the server and the processes of its models, by the prefix in their command lines."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(prefix in argument for argument in process.cmdline()):
                yield process


def clean_up(prefix: str) -> None:
    """Kill what is left of a server and remove its shared memory."""
    remains = list(processes(prefix))
    for process in remains:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + END_S
    while not all(map(_ended, remains)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def _ended(process: psutil.Process) -> bool:
    """Return whether a process is gone, or waits for whoever inherited it to reap it."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _closed(key: str) -> list[str]:
    apis = ",".join(CLOSED)
    return [
        f"--{option}={apis}:{ADMIN_HEADER}={key}"
        for option in ("http-restricted-api", "grpc-restricted-protocol")
    ]


def _prepare(bound: bool) -> None:
    """Set what the server inherits; runs in the new process, before the program."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    allow_open_files()
    os.umask(0o077)
    if bound:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since the machine was: no clock moves it.

    Raises:
        OSError: there is no such process.
    """
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5)'s ``stat`` from the third on; the second may have blanks."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def _hide(process: subprocess.Popen[bytes], key: str) -> None:
    """Overwrite the key in the command line that everybody on this machine can read.

    Triton takes the key from no other place. It has copied its options once it starts a second
    thread; a parent may then write the memory of its child.
    """
    try:
        hidden = _has_parsed(process) and _overwrite(process.pid, key.encode())
        why = "its options were not read in time, or do not hold it"
    except (psutil.Error, OSError) as error:
        hidden, why = False, str(error)
    if not hidden and process.poll() is None:
        LOG.warning(
            "the admin key stays in the server's command line, where all users of this machine can "
            "read it (%s); let nobody else use this machine",
            why,
        )


def _has_parsed(process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server has read its options; False where it ended or takes too long."""
    deadline = time.monotonic() + PARSED_S
    while psutil.Process(process.pid).num_threads() < 2:
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _overwrite(pid: int, secret: bytes) -> bool:
    """Overwrite a secret in the arguments of a process; return whether it was there."""
    fields = _stat(pid)
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, see proc(5)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        arguments = memory.read(end - start)
        at = first = arguments.find(secret)
        while at >= 0:
            memory.seek(start + at)
            memory.write(b"*" * len(secret))
            at = arguments.find(secret, at + 1)
    return first >= 0
