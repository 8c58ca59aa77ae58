"""Keeps one ``tritonserver`` answering: replaces what dies and what no longer moves.

Triton starts a process for each Python model and never replaces one that died: its requests fail
while ``/v2/health/ready`` still says 200. The watchdog looks a few times a second and acts on four
findings, and on nothing else:

- the server has ended: it is started again;
- the process of a model has died: the model is unloaded and loaded again. A decoupled model cannot
  be helped so, because Triton never ends the streams that it was writing: then the server is
  started again, which ends them;
- requests wait for a model that for :data:`STALL_S` has run no batch and used no processor time:
  its process is killed and the model loaded again. Where the LLM's engine says twice that it makes
  no step, the server is started again, as the LLM's model is decoupled;
- the memory that a model shares with the server has grown past :data:`REGION_BYTES`, which only a
  request of that size does and Triton never takes back: the model is loaded again once it is idle.
  A decoupled model is left alone: its streams count in no queue, and would end with the server.

A slow answer is no finding: a busy server runs batches, and so it is left alone however long its
queues are. Each act is one line of the log and counts in ``tritonrag_watchdog_restarts_total``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath

import psutil

from tritonrag.errors import SetupError, TritonragError
from tritonrag.server.control import Control
from tritonrag.server.launch import SHARED_MEMORY, Triton

LOG = logging.getLogger(__name__)

SERVER = "tritonserver"
"""What the server itself is called where models are named."""

POLL_S, CONFIRM_S = 0.25, 0.1
"""How often the processes are looked at, and how soon again at one that seems dead."""

WORK_POLL_S = 2.0
"""How often the models' batches and the requests that wait for them are counted."""

PROBE_S, PROBE_AGAIN_S = 10.0, 2.0
"""How often the LLM's engine is asked whether it makes steps, and how soon again if it says no."""

STALL_S = 30.0
"""How long requests may wait for a model that runs no batch and uses no processor time. A batch of
the reranker alone may take longer, and no search in a vector database may
(:data:`tritonrag.settings.MAX_VECTOR_DB_TIMEOUT_S`)."""

BUSY_S = 0.5
"""Processor time between two looks at the batches by which a model is at work."""

START_S = 600.0
"""How long a server may take to load its models before it is started again, unless the caller
says."""

MAX_FAILED_STARTS = 5
"""After so many starts in a row that led nowhere the watchdog ends: its supervisor's turn."""


REGION_BYTES = 100 << 20
"""Memory that a model may share with the server. Batches of 64 full requests take a quarter."""


@dataclass(frozen=True)
class Stub:
    """The process of one instance of a Python model, and its region of shared memory."""

    process: psutil.Process
    model: str
    region: str

    @property
    def gone(self) -> bool:
        """Whether nothing is left of it: Triton has ended it, and reaped it."""
        return not self.process.is_running()

    @property
    def dead(self) -> bool:
        """Whether it has ended. One that died by itself stays a zombie, whom nobody reaps."""
        try:
            return bool(self.process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    @property
    def cpu_s(self) -> float:
        """The processor time that it has used; 0 where that is not to be had."""
        try:
            used = self.process.cpu_times()
        except psutil.Error:
            return 0.0
        return float(used.user + used.system)

    @property
    def region_bytes(self) -> int:
        """The size of its region; 0 where there is none."""
        try:
            return (SHARED_MEMORY / self.region).stat().st_size
        except OSError:
            return 0


class Watchdog:
    """Watches a server that was started; see the module."""

    def __init__(
        self,
        triton: Triton,
        control: Control,
        restarted: Callable[[], object] = lambda: None,
        start_s: float = START_S,
    ) -> None:
        """Take the server and what reaches it.

        ``restarted`` is called after each new start of the server, whose process is then another.
        ``start_s`` is how long a start may take, in seconds.
        """
        self.restarts: Counter[tuple[str, str]] = Counter()
        """Acts so far, by model and reason."""
        self._triton = triton
        self._control = control
        self._restarted = restarted
        self._start_s = start_s
        self._stopped = threading.Event()
        self._stubs: list[Stub] = []
        self._suspects: set[int] = set()
        self._progress = Progress()
        self._next_work = self._next_probe = 0.0
        self._doubted = ""
        self._complaint = ""
        self._failed_starts = 0
        self._ready = False
        self._begun = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self._triton.alive

    @property
    def healthy(self) -> bool:
        """Whether the server is ready and no process of a model is dead."""
        whole = self.alive and not any(stub.dead for stub in self._stubs)
        return whole and self._control.ready()

    def memory(self) -> dict[str, int]:
        """Return the bytes of memory of the server and of each model's processes.

        Pages that several processes share count in each by its share (PSS).
        """
        found: Counter[str] = Counter()
        server = [(SERVER, self._triton.process())] if self.alive else []
        for name, process in (*server, *((stub.model, stub.process) for stub in self._stubs)):
            with suppress(psutil.Error):
                found[name] += process.memory_full_info().pss
        return dict(found)

    def waiting(self) -> dict[str, int]:
        """Return the requests that wait in Triton's queues, by model."""
        return {model: waiting for model, (_, waiting) in self._control.work().items()}

    def run(self) -> None:
        """Watch until :meth:`stop`, or until too many starts have failed.

        Raises:
            SetupError: the server does not start any more.
        """
        while not self._stopped.wait(CONFIRM_S if self._suspects else POLL_S):
            try:
                self._look()
                self._triton.close_regions()
            except (OSError, psutil.Error) as error:
                self._complain(str(error))

    def stop(self) -> None:
        """Let :meth:`run` return; callable from any thread or signal handler."""
        self._stopped.set()

    def _complain(self, complaint: str) -> None:
        """Log why a look failed, once where the next ones fail alike."""
        if complaint != self._complaint:
            LOG.warning("watchdog: cannot look at the server, and tries again: %s", complaint)
        self._complaint = complaint

    def _look(self) -> None:
        if not self._triton.alive:
            self._start_again(SERVER, "died")
        elif not self._ready:
            self._await_ready()
        elif dead := self._died():
            self._replace(dead, "died")
        else:
            self._look_at_work()

    def _await_ready(self) -> None:
        if self._control.ready():
            self._take_up()
        elif self._seconds() > self._start_s:
            self._start_again(SERVER, "never ready")

    def _take_up(self) -> None:
        """Begin to watch the models, unless one has died after it was loaded."""
        stubs = list(self._running())
        ended = {each.pid for each in self._triton.children() if not _command(each)}
        if ended & self._suspects:
            self._start_again(SERVER, "died")
            return
        self._suspects = ended
        if not ended:
            if self.restarts:  # else whoever started it has told so, or Triton's own log
                LOG.warning("watchdog: the server is ready after %.1f s", self._seconds())
            self._ready, self._failed_starts = True, 0
            self._stubs, self._progress = stubs, Progress()
            self._triton.loaded()

    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    def _died(self) -> str:
        """Return a model of which a process has been found dead twice in a row, or ""."""
        running = list(self._running())
        replaced = {stub.model for stub in running}
        dead = [stub for stub in self._stubs if stub.dead]
        sure = [stub for stub in dead if stub.process.pid in self._suspects]
        self._suspects = {stub.process.pid for stub in dead}
        # One that Triton ended and replaced, or was told to unload, is no loss.
        missed = [stub for stub in sure if not (stub.gone and stub.model in replaced)]
        lost = [stub for stub in missed if self._control.serves(stub.model)]
        self._stubs = self._known(running, [stub for stub in sure if stub not in lost])
        return lost[0].model if lost else ""

    def _known(self, running: Sequence[Stub], settled: Sequence[Stub]) -> list[Stub]:
        """Return the stubs to watch: those that run, and all others that are not settled.

        A process that is being killed has no command line any more and is no zombie yet: for a
        moment neither running nor dead, it must not be forgotten.
        """
        pids = {stub.process.pid for stub in (*running, *settled)}
        return [*running, *(stub for stub in self._stubs if stub.process.pid not in pids)]

    def _running(self) -> Iterator[Stub]:
        """Yield the models' processes that live."""
        for process in self._triton.children():
            command = _command(process)
            with suppress(IndexError):  # it has just ended, or is no model's process
                yield Stub(process, PurePath(command[1]).parts[-3], command[2])

    def _look_at_work(self) -> None:
        """Replace a model that runs nothing while requests wait for it, or that has swollen."""
        now = time.monotonic()
        if now >= self._next_work:
            self._next_work = now + WORK_POLL_S
            models = {stub.model for stub in self._stubs}
            work = {name: each for name, each in self._control.work().items() if name in models}
            if stalled := self._progress.take(work, now, self._cpu_s()):
                self._replace(stalled, "stalled")
            elif swollen := self._swollen(work):
                self._replace(swollen, "memory")
        elif now >= self._next_probe:
            self._look_at_engine(now)

    def _look_at_engine(self, now: float) -> None:
        """Replace a model whose engine says twice in a row that it makes no step."""
        before, self._doubted = self._doubted, self._control.stalled_engine()
        self._next_probe = now + (PROBE_AGAIN_S if self._doubted else PROBE_S)
        if self._doubted and self._doubted == before:
            self._replace(self._doubted, "stalled")

    def _cpu_s(self) -> dict[str, float]:
        """Return the processor time that each model's processes have used, in seconds."""
        used: dict[str, float] = {}
        for stub in self._stubs:
            used[stub.model] = used.get(stub.model, 0.0) + stub.cpu_s
        return used

    def _swollen(self, work: Mapping[str, tuple[int, int]]) -> str:
        """Return an idle model that shares too much memory with the server, or ""."""
        large = [stub.model for stub in self._stubs if stub.region_bytes > REGION_BYTES]
        idle = (name for name in large if not work.get(name, (0, 1))[1])
        return next((name for name in idle if not self._control.decoupled(name)), "")

    def _replace(self, model: str, reason: str) -> None:
        """Give a model a new process, by the server if it must be."""
        if self._control.decoupled(model):
            self._start_again(model, reason)
            return
        LOG.warning("watchdog: %s: %s; the model is loaded again", model, reason)
        self.restarts[model, reason] += 1
        began = time.monotonic()
        if reason == "stalled":
            self._kill(model)  # it would not end when it is told to
        self._triton.loading()
        try:
            self._control.reload(model)
        except TritonragError as error:
            LOG.warning("watchdog: %s cannot be loaded again: %s", model, error)
            self._start_again(model, "not loaded again")
            return
        self._triton.loaded()
        LOG.warning("watchdog: %s is loaded after %.1f s", model, time.monotonic() - began)
        replaced = [stub for stub in self._stubs if stub.model == model]
        self._stubs, self._progress = self._known(list(self._running()), replaced), Progress()

    def _kill(self, model: str) -> None:
        for stub in self._stubs:
            if stub.model == model and not stub.dead:
                stub.process.kill()

    def _start_again(self, model: str, reason: str) -> None:
        LOG.warning("watchdog: %s: %s; the server is started again", model, reason)
        self.restarts[model, reason] += 1
        self._failed_starts += not self._ready
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise self._triton.failure()
        if self._stopped.wait(self._failed_starts):
            return
        self._triton.end()
        self._ready, self._begun = False, time.monotonic()
        self._stubs, self._suspects, self._doubted = [], set(), ""
        try:
            self._triton.start()
        except SetupError as error:  # the next look finds no server, and counts this start
            LOG.warning("watchdog: %s", error)
            return
        self._restarted()


def _command(process: psutil.Process) -> list[str]:
    """Return the command line of a process; empty where it has ended or is about to."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


class Progress:
    """Which models are at work while requests wait for them."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._moved: dict[str, tuple[int, float]] = {}
        self._used: Mapping[str, float] = {}
        self._last = 0.0

    def take(
        self, work: Mapping[str, tuple[int, int]], now: float, cpu_s: Mapping[str, float]
    ) -> str:
        """Take ``(batches run, requests that wait)`` of each model; return one that stalls, or "".

        ``now`` is in seconds, as is ``cpu_s``, the processor time used so far by each model. After
        a gap in the looking all begin anew: this machine has slept.
        """
        if now - self._last > 5 * WORK_POLL_S:
            self._moved.clear()
        used, self._used, self._last = self._used, cpu_s, now
        for model, (batches, waiting) in work.items():
            before, since = self._moved.get(model, (-1, now))
            busy = cpu_s.get(model, 0) - used.get(model, 0) > BUSY_S
            if batches != before or not waiting or busy:
                self._moved[model] = (batches, now)
            elif now - since > STALL_S:
                return model
        return ""
