"""What the operator allows of generations and who may stop one, whichever engine runs them."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from dataclasses import dataclass

from tritonrag.contract import DEFAULT_MAX_TOKENS
from tritonrag.errors import InvalidRequest, TritonragError, Unavailable
from tritonrag.generation import Engine, Generation, Sink, Usage
from tritonrag.settings import ModelArgs

EARLY_CANCEL_S = 30.0
"""How long a cancel waits for a generation that has not arrived yet: behind an ensemble it can
overtake the question, which is still being embedded and searched."""

EARLY_CANCELS = 1024
"""How many wait; one more, and the oldest is forgotten. A key has at most 128 bytes."""

GRACE_S = 2.0
"""How long an engine has to end a generation that is to stop, before its caller is told all the
same."""

WATCH_S = 0.5
"""How often that is looked after."""


@dataclass(frozen=True)
class Caps:
    """The operator's caps.

    ``max_tokens`` is of one generation, ``max_seconds`` how long one may wait for its first text,
    and then how long it may go on; ``caller_generations`` is how many one caller may have at a
    time, waiting or running, and 0 is no cap.
    """

    max_tokens: int = 2048
    max_seconds: float = 60.0
    caller_generations: int = 0

    @classmethod
    def of(cls, args: ModelArgs) -> Caps:
        """Read them from the config parameters of ``generate``.

        Raises:
            SetupError: one is not an integer or out of bounds.
        """
        return cls(
            max_tokens=args.integer("max_tokens", 2048, 1, 10_000_000),
            max_seconds=args.integer("max_seconds", 60, 1, 86_400),
            caller_generations=args.integer("caller_generations", 0, 0, 100_000),
        )


class EarlyCancels:
    """Keys of cancels that came before their generation; bounded in time and number."""

    def __init__(self) -> None:
        """Begin with none."""
        self._until: dict[str, float] = {}

    def add(self, key: str) -> None:
        """Remember a key."""
        now = time.monotonic()
        self._until.pop(key, None)
        self._until[key] = now + EARLY_CANCEL_S
        oldest = next(iter(self._until))
        while len(self._until) > EARLY_CANCELS or self._until[oldest] <= now:
            del self._until[oldest]
            oldest = next(iter(self._until))

    def take(self, key: str | None) -> bool:
        """Return, once, whether a key is remembered."""
        return key is not None and self._until.pop(key, 0.0) > time.monotonic()


class CappedEngine:
    """An engine under caps, whose generations can be stopped by their keys. Thread-safe."""

    def __init__(self, engine: Engine, caps: Caps) -> None:
        """Take an engine, which is closed with this."""
        self._engine = engine
        self._caps = caps
        self._inside: dict[_Inside, None] = {}
        self._callers: Counter[str] = Counter()
        self._early = EarlyCancels()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="caps", daemon=True).start()

    @property
    def grounding(self) -> str:
        """The grounding used where the caller names none."""
        return self._engine.grounding

    @property
    def max_tokens(self) -> int:
        """The tokens generated where the caller does not say."""
        return min(DEFAULT_MAX_TOKENS, self._caps.max_tokens)

    def submit(self, generation: Generation, sink: Sink) -> None:
        """Start a generation; see :class:`tritonrag.generation.Engine`.

        Raises:
            InvalidRequest: also, it asks for more tokens than the cap.
            Unavailable: also, its caller has as many generations inside as the cap.
        """
        cap = self._caps.max_tokens
        if generation.max_tokens > cap:
            raise InvalidRequest(
                f"max_tokens: is {generation.max_tokens}, expected 1 to {cap} (the operator's cap, "
                "max_tokens of generate); ask for fewer"
            )
        inside = _Inside(self, generation, sink, self._caps.max_seconds)
        self._enter(inside)
        try:
            self._engine.submit(generation, inside)
        except Exception:
            self.leave(inside)
            raise

    def cancel(self, key: str) -> None:
        """Stop the generations with this key, also one that arrives a little later."""
        with self._lock:
            named = [each for each in self._inside if each.key == key]
            for each in named:
                each.stop()
            if not named:
                self._early.add(key)

    def close(self) -> None:
        """Stop everything and free the engine."""
        self._closed.set()
        self._engine.close()

    def leave(self, inside: _Inside) -> bool:
        """Count one out; False where it was already."""
        with self._lock:
            if inside not in self._inside:
                return False
            del self._inside[inside]
            self._callers[inside.caller] -= 1
            if not self._callers[inside.caller]:
                del self._callers[inside.caller]
            return True

    def _enter(self, inside: _Inside) -> None:
        cap = self._caps.caller_generations
        with self._lock:
            stopped = self._early.take(inside.key)
            # One that is to stop already costs nothing: a probe, or a caller who has thought again.
            if cap and not stopped and self._callers[inside.caller] >= cap:
                raise Unavailable(
                    f"generate: its caller has {cap} generations waiting or running, as many as "
                    "one caller may have (caller_generations); try again later"
                )
            self._inside[inside] = None
            self._callers[inside.caller] += 1
            if stopped:
                inside.stop()

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_S):
            with self._lock:
                inside = list(self._inside)
            for each in inside:
                each.end_if_overdue()


class _Inside:
    """A generation that an engine has, as its sink: it says when to stop, and why it did."""

    def __init__(
        self, engine: CappedEngine, generation: Generation, sink: Sink, seconds: float
    ) -> None:
        self.key, self.caller = generation.cancel_key, generation.caller
        self._engine = engine
        self._sink = sink
        self._seconds = seconds
        self._entered = time.monotonic()
        self._until = self._entered + seconds
        self._stopped_at = math.inf
        self._begun = False

    def stop(self) -> None:
        self._stopped_at = min(self._stopped_at, time.monotonic())

    def delta(self, text: str) -> None:
        if not self._begun:
            self._begun = True
            # The wait does not count: whoever waited for a long batch would lose the whole answer.
            self._until = time.monotonic() + self._seconds
        self._sink.delta(text)

    def finish(self, reason: str, usage: Usage) -> None:
        if not self._engine.leave(self):
            return
        if reason == "cancelled" and self._is_spent():
            self._end_spent(usage)
        else:
            self._sink.finish(reason, usage)

    def fail(self, error: TritonragError) -> None:
        if self._engine.leave(self):
            self._sink.fail(error)

    def cancelled(self) -> bool:
        return time.monotonic() >= self._ends_at() or self._sink.cancelled()

    def end_if_overdue(self) -> None:
        """Tell the caller, where the engine does not."""
        now = time.monotonic()
        if now >= self._ends_at() + GRACE_S:
            self.finish("cancelled", Usage(total_ms=(now - self._entered) * 1e3))

    def _ends_at(self) -> float:
        return min(self._until, self._stopped_at)

    def _is_spent(self) -> bool:
        """Whether the cap on its time ended it, and not a cancel nor a caller who left."""
        return self._until <= time.monotonic() < self._stopped_at and not self._sink.cancelled()

    def _end_spent(self, usage: Usage) -> None:
        if self._begun:
            self._sink.finish("length", usage)
        else:
            self._sink.fail(
                Unavailable(
                    f"generate: waited {self._seconds:g} s for the engine, as long as a "
                    "generation may wait (max_seconds); try again later"
                )
            )
