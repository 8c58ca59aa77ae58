"""Which generations may enter an engine, and which of those that wait is next."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from tritonrag.contract import STALLED
from tritonrag.errors import Unavailable

CANCEL_POLL_S = 0.05
"""How often an engine asks whether its generations are to stop; the answer is ready, so that asking
costs nothing."""

Item = TypeVar("Item")


class Admission:
    """Counts the generations waiting or running in an engine, and sees it stand still. Thread-safe.

    An engine that says when it moves (:meth:`moved`) and then does not for ``stall_s`` seconds,
    though generations are inside, is stuck: nothing more may enter.
    """

    def __init__(self, limit: int, stall_s: float = float("inf")) -> None:
        """Admit at most ``limit`` generations at a time."""
        self._limit = limit
        self._stall_s = stall_s
        self._inside = 0
        self._moved = self._due = 0.0
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Count one in.

        Raises:
            Unavailable: the engine is stuck, or as many as the limit are inside.
        """
        with self._lock:
            if not self._inside:  # it had nothing to do until now
                self.moved()
            self._check_moves()
            if self._inside >= self._limit:
                raise Unavailable(
                    f"generate: its queue is full ({self._limit} generations); try again later"
                )
            self._inside += 1

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self._inside -= 1

    def moved(self, busy_s: float = 0.0) -> None:
        """Take note that the engine moves; its next step may take ``busy_s`` seconds longer."""
        self._moved = time.monotonic()
        self._due = self._moved + self._stall_s + busy_s

    def _check_moves(self) -> None:
        if time.monotonic() > self._due:
            raise Unavailable(
                f"generate: {STALLED} for {time.monotonic() - self._moved:.0f} s "
                "(stall_seconds); try again later, and restart the server if that does not help"
            )


class FairQueue(Generic[Item]):
    """What waits, taken from each caller in turn, each caller's own in their order."""

    def __init__(self) -> None:
        """Begin empty."""
        self._of: dict[str, deque[Item]] = {}

    def put(self, caller: str, item: Item) -> None:
        """Add an item behind those of the same caller."""
        self._of.setdefault(caller, deque()).append(item)

    def take(self) -> Item | None:
        """Return the next item, or None; its caller's other items go behind everyone's."""
        if not self._of:
            return None
        caller = next(iter(self._of))
        items = self._of.pop(caller)
        item = items.popleft()
        if items:
            self._of[caller] = items
        return item

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out and return the items that are ``unwanted``."""
        removed: list[Item] = []
        for caller, items in list(self._of.items()):
            kept: deque[Item] = deque()
            for item in items:
                (removed if unwanted(item) else kept).append(item)
            self._of[caller] = kept
        self._of = {caller: items for caller, items in self._of.items() if items}
        return removed
