"""A run again and again: at intervals or at the times of a cron expression, with back-off.

One run at a time, in the caller's thread: a run that takes longer than its interval leaves out the
times that it misses. Knows nothing of what is run.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from cronsim import CronSim, CronSimError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from tritonrag.errors import InvalidRequest, ServiceError

Counts = Mapping[str, int]
"""What a run did, by outcome."""

LONGEST_SLEEP_S = 30.0
"""The clock is looked at so often while a run is waited for: it may be set meanwhile."""

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


class Watcher:
    """Is told how runs go; says nothing itself."""

    def started(self) -> None:
        """An attempt begins."""

    def succeeded(self, counts: Counts, seconds: float) -> None:
        """It has succeeded."""

    def failed(self, error: Exception) -> None:
        """It has failed, and changed nothing."""

    def waiting(self, until: datetime) -> None:
        """The next attempt begins then."""


class Schedule(Protocol):
    """When runs begin; ``at_once`` tells whether the first one does so without waiting."""

    at_once: bool

    def after(self, now: datetime) -> datetime:
        """Return the next time later than ``now``, both with their time zone."""
        ...


@dataclass
class Every:
    """At intervals from the first run on."""

    interval: timedelta
    begun: datetime = field(default_factory=lambda: now())
    at_once: bool = True

    def after(self, now: datetime) -> datetime:
        """Return the next multiple of the interval."""
        return self.begun + ((now - self.begun) // self.interval + 1) * self.interval


class Cron:
    """At the times of a cron expression, in the machine's time zone."""

    at_once = False

    def __init__(self, expression: str) -> None:
        """Read five fields, as `*/15 8-18 * * MON-FRI`.

        Raises:
            InvalidRequest: it is no cron expression, or names no time.
        """
        self._expression = expression
        try:
            self.after(now())
        except (CronSimError, StopIteration) as error:
            reason = str(error) or "it names no time"
            raise InvalidRequest(
                f"--cron: {expression!r} is no cron expression: {reason}; expected five fields, "
                'such as "*/15 * * * *"'
            ) from None

    def after(self, now: datetime) -> datetime:
        """Return the next time that fits."""
        local = now.astimezone().replace(tzinfo=None)
        return next(CronSim(self._expression, local)).astimezone()


@dataclass(frozen=True)
class Backoff:
    """How often a run is tried, and the seconds waited after the first failure and at most."""

    attempts: int = 5
    first_s: float = 5.0
    most_s: float = 300.0


class Runner:
    """Runs something once or on a schedule, and tells its watchers."""

    def __init__(
        self,
        run: Callable[[], Counts],
        watchers: Iterable[Watcher] = (),
        backoff: Backoff | None = None,
    ) -> None:
        """``run`` raises ServiceError where another attempt may succeed."""
        self._run = run
        self._watchers = list(watchers)
        self._backoff = backoff or Backoff()

    def once(self) -> None:
        """Run until an attempt succeeds or there have been enough of them.

        Raises:
            TritonragError: the last attempt's error, or the first that another attempt cannot mend.
        """
        backoff = self._backoff
        Retrying(
            stop=stop_after_attempt(backoff.attempts),
            wait=wait_exponential(backoff.first_s, backoff.most_s),
            retry=retry_if_exception_type(ServiceError),
            sleep=self._pause,
            reraise=True,
        )(self._attempt)

    def forever(self, schedule: Schedule, jitter_s: float = 0.0) -> None:
        """Run at the times of ``schedule``, each up to ``jitter_s`` seconds later.

        A run that fails for good is left to the next time. Only an interrupt ends this.
        """
        if schedule.at_once:
            self._guarded()
        while True:
            late = timedelta(seconds=random.uniform(0.0, jitter_s))
            self._wait_until(schedule.after(now()) + late)
            self._guarded()

    def _guarded(self) -> None:
        try:
            self.once()
        except Exception:  # The watchers were told, and the next run may go well.
            return

    def _attempt(self) -> None:
        started = time.monotonic()
        self._tell(lambda watcher: watcher.started())
        try:
            counts = self._run()
        except Exception as error:
            failure = error
            self._tell(lambda watcher: watcher.failed(failure))
            raise
        seconds = time.monotonic() - started
        self._tell(lambda watcher: watcher.succeeded(counts, seconds))

    def _pause(self, seconds: float) -> None:
        self._wait_until(now() + timedelta(seconds=seconds))

    def _wait_until(self, moment: datetime) -> None:
        self._tell(lambda watcher: watcher.waiting(moment))
        while (left := (moment - now()).total_seconds()) > 0:
            time.sleep(min(left, LONGEST_SLEEP_S))

    def _tell(self, what: Callable[[Watcher], None]) -> None:
        for watcher in self._watchers:
            what(watcher)


def now() -> datetime:
    """Return the time, with the machine's time zone."""
    return datetime.now().astimezone()


def duration(option: str, text: str) -> timedelta:
    """Read a duration such as ``15m`` or ``1h30m``.

    Raises:
        InvalidRequest: it is none; the message names the option.
    """
    if not _DURATION.fullmatch(text):
        raise InvalidRequest(f"{option}: {text!r} is no duration; write 90s, 15m, 1h30m or 1d")
    return timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text)))
