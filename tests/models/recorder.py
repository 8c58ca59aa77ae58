"""A sink for the tests of engines: it keeps what an engine gives it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from tritonrag.errors import TritonragError
from tritonrag.generation import Usage


@dataclass
class Recorder:
    """One generation's text and end."""

    deltas: list[str] = field(default_factory=list)
    ends: list[str | TritonragError] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    gone: bool = False
    """The generation is to stop."""
    at_first: Callable[[], None] = lambda: None
    seconds: float = 10
    """How long :meth:`wait` waits."""

    def delta(self, text: str) -> None:
        if not self.deltas:
            self.at_first()
        self.deltas.append(text)
        self.begun.set()

    def finish(self, reason: str, usage: Usage) -> None:
        self.ends.append(reason)
        self.usage = usage
        self.ended.set()

    def fail(self, error: TritonragError) -> None:
        self.ends.append(error)
        self.ended.set()

    def cancelled(self) -> bool:
        return self.gone

    def go(self) -> None:
        self.gone = True

    def wait(self) -> Self:
        assert self.ended.wait(self.seconds), "the generation did not end"
        assert len(self.ends) == 1
        return self

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    @property
    def error(self) -> TritonragError:
        (end,) = self.ends
        assert isinstance(end, TritonragError)
        return end
