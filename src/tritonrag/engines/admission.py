"""Which generations may enter an engine: the bound of its queue, and cancels that came early."""

from __future__ import annotations

import threading
import time

from tritonrag.errors import Unavailable

EARLY_CANCEL_S = 30.0
"""How long a cancel waits for a generation that has not arrived yet: behind an ensemble it can
overtake the question, which is still being embedded and searched."""

CANCEL_POLL_S = 0.05
"""How often an engine looks whether the callers of its running generations have gone away; what it
reads was asked for elsewhere (``tritonrag.backend.streaming``), so that looking costs nothing."""


class Admission:
    """Counts the generations waiting or running in an engine. Thread-safe."""

    def __init__(self, limit: int) -> None:
        """Admit at most ``limit`` generations at a time."""
        self._limit = limit
        self._inside = 0
        self._cancelled: dict[str, float] = {}
        self._lock = threading.Lock()

    def enter(self) -> None:
        """Count one in.

        Raises:
            Unavailable: as many as the limit are inside.
        """
        with self._lock:
            if self._inside >= self._limit:
                raise Unavailable(
                    f"generate: its queue is full ({self._limit} generations); try again later"
                )
            self._inside += 1

    def leave(self) -> None:
        """Count one out."""
        with self._lock:
            self._inside -= 1

    def cancel_early(self, request_id: str) -> None:
        """Remember a cancel whose generation is not here yet."""
        now = time.monotonic()
        with self._lock:
            self._cancelled = {id: end for id, end in self._cancelled.items() if end > now}
            self._cancelled[request_id] = now + EARLY_CANCEL_S

    def was_cancelled(self, request_id: str) -> bool:
        """Return, once, whether a cancel came before this generation."""
        with self._lock:
            return self._cancelled.pop(request_id, 0.0) > time.monotonic()
