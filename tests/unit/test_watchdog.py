"""When the watchdog acts and when it leaves a server alone, with a server of names and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import psutil
import pytest

from tritonrag.errors import SetupError, Unavailable
from tritonrag.server import watchdog as module
from tritonrag.server.watchdog import SERVER, STALL_S, WORK_POLL_S, Progress, Watchdog
from tritonrag.settings import MAX_VECTOR_DB_TIMEOUT_S

EXITING = psutil.STATUS_RUNNING
"""A killed process whose memory, and command line, went before it became a zombie."""


@dataclass
class Process:
    """What the watchdog asks of a process."""

    pid: int
    model: str
    state: str = psutil.STATUS_SLEEPING
    reaped: bool = False
    cpu_s: float = 0.0

    def status(self) -> str:
        if self.reaped:
            raise psutil.NoSuchProcess(self.pid)
        return self.state

    def is_running(self) -> bool:
        return not self.reaped

    def cmdline(self) -> list[str]:
        if self.reaped or self.state == psutil.STATUS_ZOMBIE:
            raise psutil.ZombieProcess(self.pid)
        if self.state == EXITING:
            return []
        return ["stub", f"/models/{self.model}/1/model.py", f"region_{self.pid}"]

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(user=self.cpu_s, system=0.0)

    def kill(self) -> None:
        self.state = psutil.STATUS_ZOMBIE


@dataclass
class Server:
    """As :class:`Triton`."""

    alive: bool = True
    starts: int = 0
    processes: list[Process] = field(default_factory=list)
    error: Exception | None = None
    is_loading: bool = False

    def children(self) -> list[Process]:
        return [each for each in self.processes if not each.reaped]

    def start(self) -> None:
        self.starts += 1
        if self.error:
            raise self.error
        self.alive = True

    def end(self) -> None:
        self.processes = []
        self.alive = False

    def loading(self) -> None:
        self.is_loading = True

    def loaded(self) -> None:
        self.is_loading = False

    def close_regions(self) -> None:
        pass

    def failure(self) -> SetupError:
        return SetupError("the server did not start: no weights")


@dataclass
class Controls:
    """As :class:`Control`."""

    is_ready: bool = True
    load: dict[str, tuple[int, int]] = field(default_factory=dict)
    stalled: str = ""
    served: set[str] = field(default_factory=lambda: {"retrieve", "generate"})
    reloaded: list[str] = field(default_factory=list)
    fails: bool = False

    def ready(self) -> bool:
        return self.is_ready

    def serves(self, model: str) -> bool:
        return model in self.served

    def decoupled(self, model: str) -> bool:
        return model == "generate"

    def reload(self, model: str) -> None:
        if self.fails:
            raise Unavailable("no answer")
        self.reloaded.append(model)

    def work(self) -> dict[str, tuple[int, int]]:
        return self.load

    def stalled_engine(self) -> str:
        return self.stalled


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still."""
    time = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


@pytest.fixture
def server() -> Server:
    return Server(processes=[Process(1, "retrieve"), Process(2, "generate")])


@pytest.fixture
def control() -> Controls:
    return Controls()


@pytest.fixture
def watchdog(server: Server, control: Controls) -> Watchdog:
    watching = Watchdog(server, control)  # type: ignore[arg-type]
    watching._look()
    return watching


def looks(watchdog: Watchdog, times: int) -> None:
    for _ in range(times):
        watchdog._look()


def test_a_dead_model_is_loaded_again_at_the_second_look(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    looks(watchdog, 2)
    server.processes[0].kill()
    assert not watchdog.healthy
    looks(watchdog, 1)
    assert control.reloaded == []
    looks(watchdog, 1)
    assert control.reloaded == ["retrieve"]
    assert watchdog.restarts == {("retrieve", "died"): 1}
    assert server.starts == 0


def test_a_model_is_not_forgotten_while_its_process_exits(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    looks(watchdog, 1)
    server.processes[0].state = EXITING
    looks(watchdog, 2)
    server.processes[0].kill()
    assert not watchdog.healthy
    looks(watchdog, 2)
    assert control.reloaded == ["retrieve"]


def test_a_model_that_dies_while_another_is_loaded_again_is_replaced_too(
    watchdog: Watchdog, server: Server, control: Controls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reload(model: str) -> None:
        control.reloaded.append(model)
        server.processes[1].kill()

    monkeypatch.setattr(control, "reload", reload)
    server.processes[1].model = "embed"
    control.served |= {"embed"}
    looks(watchdog, 1)
    server.processes[0].kill()
    looks(watchdog, 4)
    assert control.reloaded == ["retrieve", "embed"]


def test_two_models_that_die_at_once_are_both_replaced(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    server.processes[1].model = "embed"
    control.served |= {"embed"}
    looks(watchdog, 1)
    for process in server.processes:
        process.kill()
    looks(watchdog, 2)
    assert control.reloaded == ["retrieve"]
    assert not watchdog.healthy
    looks(watchdog, 5)
    assert control.reloaded == ["retrieve", "embed"]
    assert watchdog.healthy


@pytest.mark.parametrize("last_state", [psutil.STATUS_ZOMBIE, EXITING])
def test_a_model_that_died_before_the_server_was_ready_takes_it_along(
    server: Server, control: Controls, last_state: str
) -> None:
    server.processes[0].state = last_state
    watchdog = Watchdog(server, control)  # type: ignore[arg-type]
    looks(watchdog, 1)
    assert server.starts == 0
    looks(watchdog, 1)
    assert server.starts == 1
    assert watchdog.restarts == {(SERVER, "died"): 1}


def test_new_regions_are_closed_until_the_models_are_loaded(
    server: Server, control: Controls, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog = Watchdog(server, control)  # type: ignore[arg-type]
    server.loading()
    looks(watchdog, 1)
    assert not server.is_loading
    seen: list[bool] = []
    monkeypatch.setattr(control, "reload", lambda model: seen.append(server.is_loading))
    server.processes[0].kill()
    looks(watchdog, 2)
    assert seen == [True]
    assert not server.is_loading


def test_the_same_zombie_is_found_once(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    looks(watchdog, 1)
    server.processes[0].kill()
    looks(watchdog, 2)
    server.processes.append(Process(3, "retrieve"))
    looks(watchdog, 5)
    assert control.reloaded == ["retrieve"]


def test_a_dead_decoupled_model_takes_the_server_along(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    looks(watchdog, 1)
    server.processes[1].kill()
    looks(watchdog, 2)
    assert (server.starts, control.reloaded) == (1, [])
    assert watchdog.restarts == {("generate", "died"): 1}


def test_a_model_that_cannot_be_loaded_again_takes_the_server_along(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    control.fails = True
    looks(watchdog, 1)
    server.processes[0].kill()
    looks(watchdog, 2)
    assert server.starts == 1


def test_a_model_that_was_unloaded_or_replaced_is_no_loss(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    looks(watchdog, 1)
    server.processes[0].reaped = True
    server.processes.append(Process(3, "retrieve"))  # loaded anew by somebody with the key
    looks(watchdog, 3)
    server.processes[-1].reaped = True
    control.served = {"generate"}  # unloaded
    looks(watchdog, 3)
    assert (server.starts, control.reloaded) == (0, [])


def test_a_model_that_vanished_without_a_successor_is_loaded_again(
    watchdog: Watchdog, server: Server, control: Controls
) -> None:
    looks(watchdog, 1)
    server.processes[0].reaped = True
    looks(watchdog, 2)
    assert control.reloaded == ["retrieve"]


def test_a_dead_server_is_started_again_until_it_is_of_no_use(
    watchdog: Watchdog, server: Server, control: Controls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog._stopped, "wait", lambda seconds: False)
    server.alive = False
    looks(watchdog, 1)
    assert server.starts == 1
    control.is_ready = False
    for _ in range(module.MAX_FAILED_STARTS - 1):
        server.alive = False
        looks(watchdog, 1)
    server.alive = False
    with pytest.raises(SetupError, match="no weights"):
        looks(watchdog, 1)


def test_a_start_that_comes_to_nothing_is_tried_again(
    watchdog: Watchdog, server: Server, control: Controls, clock: list[float]
) -> None:
    server.alive, control.is_ready = False, False
    looks(watchdog, 2)
    clock[0] += module.START_S + 1
    looks(watchdog, 1)
    assert watchdog.restarts[SERVER, "never ready"] == 1


def test_a_start_may_take_as_long_as_the_operator_says(
    server: Server, control: Controls, clock: list[float]
) -> None:
    control.is_ready = False
    watchdog = Watchdog(server, control, start_s=5000)  # type: ignore[arg-type]
    clock[0] += 4999
    looks(watchdog, 1)
    assert watchdog.restarts == {}
    clock[0] += 2
    looks(watchdog, 1)
    assert watchdog.restarts == {(SERVER, "never ready"): 1}


def test_a_start_that_fails_at_once_counts_as_one(
    watchdog: Watchdog, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog._stopped, "wait", lambda seconds: False)
    server.alive, server.error = False, SetupError("tritonserver: cannot be started")
    looks(watchdog, module.MAX_FAILED_STARTS)
    assert server.starts == module.MAX_FAILED_STARTS
    with pytest.raises(SetupError, match="no weights"):
        looks(watchdog, 1)


@pytest.mark.parametrize("error", [OSError("No space left"), psutil.AccessDenied(1)])
def test_what_fails_once_ends_no_watchdog(
    server: Server,
    control: Controls,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """As where the state file cannot be written after a restart."""

    def restarted() -> None:
        raise error

    watchdog = Watchdog(server, control, restarted)  # type: ignore[arg-type]
    server.alive = False
    rounds = iter([False, False, False, True])  # the second is the wait before the start
    monkeypatch.setattr(watchdog._stopped, "wait", lambda seconds: next(rounds))
    watchdog.run()
    assert server.starts == 1
    assert caplog.text.count("cannot look at the server") == 1


def test_a_busy_server_is_left_alone(
    watchdog: Watchdog, server: Server, control: Controls, clock: list[float]
) -> None:
    for batches in range(400):
        control.load = {"retrieve": (batches // 10, 64), "generate": (7, 0)}
        clock[0] += WORK_POLL_S
        looks(watchdog, 1)
    assert watchdog.restarts == {}
    assert server.starts == 0


def test_a_model_that_runs_nothing_while_requests_wait_is_killed_and_loaded_again(
    watchdog: Watchdog, server: Server, control: Controls, clock: list[float]
) -> None:
    control.load = {"retrieve": (5, 3)}
    for _ in range(int(STALL_S / WORK_POLL_S) + 2):
        clock[0] += WORK_POLL_S
        looks(watchdog, 1)
    assert control.reloaded == ["retrieve"]
    assert server.processes[0].state == psutil.STATUS_ZOMBIE
    assert watchdog.restarts == {("retrieve", "stalled"): 1}


def test_a_model_in_a_long_batch_is_left_alone(
    watchdog: Watchdog, server: Server, control: Controls, clock: list[float]
) -> None:
    control.load = {"retrieve": (5, 3)}
    for _ in range(60):
        clock[0] += WORK_POLL_S
        server.processes[0].cpu_s += 1.5
        looks(watchdog, 1)
    assert watchdog.restarts == {}


def test_a_search_in_a_vector_database_is_no_stall() -> None:
    assert MAX_VECTOR_DB_TIMEOUT_S < STALL_S


def test_an_engine_that_makes_no_step_takes_the_server_along(
    watchdog: Watchdog, server: Server, control: Controls, clock: list[float]
) -> None:
    control.stalled = "generate"
    clock[0] += module.PROBE_S + 1
    looks(watchdog, 2)  # the first counts batches, the second asks the engine
    assert watchdog.restarts == {}
    clock[0] += module.PROBE_AGAIN_S
    looks(watchdog, 2)
    assert watchdog.restarts == {("generate", "stalled"): 1}
    assert server.starts == 1


def test_one_doubt_about_an_engine_is_none(
    watchdog: Watchdog, server: Server, control: Controls, clock: list[float]
) -> None:
    for stalled in ("generate", "", "generate", ""):
        control.stalled = stalled
        clock[0] += module.PROBE_S
        looks(watchdog, 2)
    assert server.starts == 0


def test_a_swollen_model_that_streams_is_left_alone(
    watchdog: Watchdog,
    server: Server,
    control: Controls,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        module.Stub, "region_bytes", property(lambda stub: (stub.model == "generate") * (1 << 30))
    )
    control.load = {"generate": (5, 0)}
    clock[0] += WORK_POLL_S
    looks(watchdog, 1)
    assert (server.starts, control.reloaded) == (0, [])


def test_a_swollen_model_is_loaded_again_once_it_is_idle(
    watchdog: Watchdog, control: Controls, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module.Stub, "region_bytes", property(lambda stub: (stub.model == "retrieve") * (1 << 30))
    )
    control.load = {"retrieve": (5, 1)}
    clock[0] += WORK_POLL_S
    looks(watchdog, 1)
    assert control.reloaded == []
    control.load = {"retrieve": (6, 0)}
    clock[0] += WORK_POLL_S
    looks(watchdog, 1)
    assert control.reloaded == ["retrieve"]
    assert watchdog.restarts == {("retrieve", "memory"): 1}


def test_after_a_sleep_of_the_machine_nothing_has_stalled() -> None:
    progress = Progress()
    assert progress.take({"embed": (1, 1)}, 100.0, {}) == ""
    assert progress.take({"embed": (1, 1)}, 100.0 + 10 * STALL_S, {}) == ""
