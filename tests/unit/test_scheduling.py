"""When runs begin, what happens to those that fail, and what is told of them."""

from __future__ import annotations

import json
import time
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tritonrag.errors import InvalidRequest, SetupError, Unavailable
from tritonrag.monitoring import HealthFile, Metrics
from tritonrag.scheduling import Backoff, Counts, Cron, Every, Runner, Watcher, duration, now

QUICK = Backoff(3, 0.01, 0.02)


class Work:
    """Fails as told, then does something; ends everything after so many runs."""

    def __init__(self, *errors: Exception, runs: int = 3) -> None:
        self.errors = list(errors)
        self.left = runs
        self.running = False
        self.begun: list[float] = []

    def __call__(self) -> Counts:
        assert not self.running, "two at a time"
        self.running = True
        try:
            return self._work()
        finally:
            self.running = False

    def _work(self) -> Counts:
        self.begun.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return {"added": 2, "failed": 0}


class Log(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self) -> None:
        self.lines.append("started")

    def succeeded(self, counts: Counts, seconds: float) -> None:
        self.lines.append(f"succeeded {dict(counts)}")

    def failed(self, error: Exception) -> None:
        self.lines.append(f"failed {error}")

    def waiting(self, until: datetime) -> None:
        self.lines.append("waiting")


def test_a_run_that_fails_is_tried_again() -> None:
    log = Log()
    Runner(Work(Unavailable("down"), Unavailable("still")), [log], QUICK).once()
    tries = ["started", "failed down", "waiting", "started", "failed still", "waiting"]
    assert log.lines == [*tries, "started", "succeeded {'added': 2, 'failed': 0}"]


def test_waits_grow_and_end() -> None:
    work = Work(*[Unavailable("down")] * 9)
    with pytest.raises(Unavailable, match="down"):
        Runner(work, [], Backoff(4, 0.05, 0.1)).once()
    waits = [later - earlier for earlier, later in zip(work.begun, work.begun[1:], strict=False)]
    assert len(waits) == 3
    assert waits[0] >= 0.05
    assert waits[1] >= 0.1


def test_a_fault_of_the_request_is_not_tried_again() -> None:
    work = Work(InvalidRequest("empty"))
    with pytest.raises(InvalidRequest):
        Runner(work, [], QUICK).once()
    assert len(work.begun) == 1


def test_a_schedule_outlives_failures_and_bugs() -> None:
    log = Log()
    work = Work(*[Unavailable("down")] * 3, ValueError("a bug"), InvalidRequest("empty"), runs=2)
    with pytest.raises(KeyboardInterrupt):
        Runner(work, [log], QUICK).forever(Every(timedelta(seconds=0.05)), jitter_s=0.01)
    failed = [line for line in log.lines if line.startswith("failed")]
    assert failed == ["failed down"] * 3 + ["failed a bug", "failed empty"]
    assert sum(line.startswith("succeeded") for line in log.lines) == 2


def test_an_interval_leaves_out_the_times_it_missed() -> None:
    begun = datetime(2026, 3, 31, 12, 0, tzinfo=ZoneInfo("UTC"))
    every = Every(timedelta(minutes=15), begun)
    assert every.at_once
    assert every.after(begun) == begun + timedelta(minutes=15)
    assert every.after(begun + timedelta(minutes=50)) == begun + timedelta(minutes=60)


def test_cron_counts_days_from_sunday() -> None:
    tuesday = datetime(2026, 3, 31, 12, 7).astimezone()
    assert not Cron("* * * * *").at_once
    assert Cron("*/15 * * * *").after(tuesday) == datetime(2026, 3, 31, 12, 15).astimezone()
    assert Cron("30 6 * * 0").after(tuesday) == datetime(2026, 4, 5, 6, 30).astimezone()
    assert Cron("30 6 * * MON-FRI").after(tuesday) == datetime(2026, 4, 1, 6, 30).astimezone()


@pytest.mark.parametrize("expression", ["every day", "* * * *", "61 * * * *", "0 0 31 2 *"])
def test_what_is_no_cron_expression(expression: str) -> None:
    with pytest.raises(InvalidRequest, match="is no cron expression"):
        Cron(expression)


def test_durations() -> None:
    assert duration("--every", "1h30m") == timedelta(minutes=90)
    assert duration("--every", "0.5s") == timedelta(milliseconds=500)
    for text in ("", "15", "m", "15 m", "-1s", "1y"):
        with pytest.raises(InvalidRequest, match="--every: .* is no duration"):
            duration("--every", text)


def facts(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text()))


def test_the_health_file(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    health = HealthFile(path)
    assert facts(path)["state"] == "starting"
    health.started()
    health.failed(Unavailable("down"))
    health.failed(Unavailable("down"))
    health.waiting(now())
    after = facts(path)
    assert (after["state"], after["failures_in_a_row"], after["last_error"]) == (
        "waiting", 2, "down",
    )  # fmt: skip
    health.succeeded({"added": 1}, 0.5)
    after = facts(path)
    assert (after["failures_in_a_row"], after["last_counts"]) == (0, {"added": 1})
    assert datetime.fromisoformat(str(after["last_success"])).tzinfo
    assert [each.name for each in tmp_path.iterdir()] == ["health.json"]


def test_a_health_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--health-file: .*No such file"):
        HealthFile(tmp_path / "none" / "health.json")
    folder = tmp_path / "health"
    folder.mkdir()
    health = HealthFile(folder / "health.json")
    (folder / "health.json").unlink()
    folder.rmdir()
    health.started()


def test_metrics() -> None:
    metrics = Metrics("hr")
    metrics.succeeded({"added": 2, "removed": 1}, 0.5)
    metrics.failed(Unavailable("down"))
    with metrics.served("127.0.0.1", 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        other = Metrics("it").served("127.0.0.1", port)
        with pytest.raises(SetupError, match=f"127.0.0.1:{port} cannot be used"), other:
            pass
    for line in (
        'tritonrag_sync_runs_total{collection="hr",outcome="success"} 1.0',
        'tritonrag_sync_runs_total{collection="hr",outcome="failure"} 1.0',
        'tritonrag_sync_documents_total{collection="hr",outcome="removed"} 1.0',
        'tritonrag_sync_seconds{collection="hr"} 0.5',
        'tritonrag_sync_last_success_timestamp_seconds{collection="hr"}',
    ):
        assert line in text
