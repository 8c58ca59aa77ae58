"""What a generation is, whichever engine runs it: the request, the stream and its end.

Engines (``tritonrag.engines``) implement :class:`Engine`; the ``generate`` model gives each request
a :class:`Sink`. This module knows neither Triton nor an engine.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Protocol

from tritonrag.contract import (
    DEFAULT_MAX_TOKENS,
    GROUNDINGS,
    MAX_CALLER_BYTES,
    MAX_KEY_BYTES,
    MAX_PROMPT_BYTES,
    MAX_STOP_BYTES,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MIN_KEY_BYTES,
)
from tritonrag.errors import InvalidRequest, TritonragError


@dataclass(frozen=True)
class Generation:
    """One request to an engine. ``passages`` are ``(mark number, text)`` of the citations.

    ``cancel_key`` is the secret that stops it; with None nothing that a caller sends does.

    Raises:
        InvalidRequest: a value is out of the contract's range; the message names the field.
    """

    prompt: str
    passages: tuple[tuple[int, str], ...] = ()
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grounding: str = "free"
    cancel_key: str | None = field(default=None, repr=False)
    caller: str = ""

    def __post_init__(self) -> None:
        """Check every field against the contract."""
        _check(bool(self.prompt.strip()), "prompt", "empty", "text")
        size = len(self.prompt.encode())
        _check(size <= MAX_PROMPT_BYTES, "prompt", f"{size} bytes", f"at most {MAX_PROMPT_BYTES}")
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more")
        in_range = 0 <= self.temperature <= MAX_TEMPERATURE
        _check(in_range, "temperature", self.temperature, f"0 to {MAX_TEMPERATURE:g}")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, to 1")
        _check(self.top_k >= 0, "top_k_sampling", self.top_k, "0 (all tokens) or more")
        _check(self.seed is None or self.seed >= 0, "seed", self.seed, "0 or more")
        count = len(self.stop)
        _check(count <= MAX_STOP_STRINGS, "stop", f"{count} strings", f"at most {MAX_STOP_STRINGS}")
        for text in self.stop:
            fits = 0 < len(text.encode()) <= MAX_STOP_BYTES
            _check(fits, "stop", repr(text[:40]), f"1 to {MAX_STOP_BYTES} bytes each")
        _check(
            self.grounding in GROUNDINGS, "grounding", repr(self.grounding), " or ".join(GROUNDINGS)
        )
        if self.grounding == "quote":
            _check(bool(self.passages), "citations", "none", "passages to quote (grounding=quote)")
        if self.cancel_key is not None:
            check_key("cancel_key", self.cancel_key)
        size = len(self.caller.encode())
        _check(size <= MAX_CALLER_BYTES, "caller", f"{size} bytes", f"at most {MAX_CALLER_BYTES}")


def check_key(field_name: str, key: str) -> None:
    """Check the length of a secret that stops a generation.

    Raises:
        InvalidRequest: it is too short or too long; the message does not hold it.
    """
    size = len(key.encode())
    expected = f"a secret of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes"
    _check(MIN_KEY_BYTES <= size <= MAX_KEY_BYTES, field_name, f"{size} bytes", expected)


def room_for(generation: Generation, prompt_tokens: int, context: int) -> int:
    """Return how many tokens an LLM's context leaves for the answer.

    Raises:
        InvalidRequest: the prompt fills it, or more tokens are asked for than it holds.
    """
    if generation.max_tokens > context:
        raise InvalidRequest(
            f"max_tokens: is {generation.max_tokens}, expected 1 to {context} (the context)"
        )
    room = context - prompt_tokens
    if room < 1:
        raise InvalidRequest(
            f"prompt: is {prompt_tokens} tokens, over the LLM's context of {context}; shorten it"
        )
    return room


@dataclass
class Usage:
    """Tokens and times of one generation; times in milliseconds since it was submitted.

    A number of tokens is None where the engine is not told of it.
    """

    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    generated_tokens: int | None = 0
    time_to_first_token_ms: float = 0.0
    total_ms: float = 0.0
    error: str = ""

    def count(self, tokens: int) -> None:
        """Add to the tokens that were generated."""
        self.generated_tokens = (self.generated_tokens or 0) + tokens

    def as_dict(self) -> dict[str, object]:
        """Return the fields for the ``usage`` output; ``error`` only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "error" or value}


class Sink(Protocol):
    """Where an engine sends one generation; every method may be called from any one thread."""

    def delta(self, text: str) -> None:
        """Take text that was generated since the last call; never empty."""

    def finish(self, reason: str, usage: Usage) -> None:
        """Take the end: ``stop``, ``length``, ``cancelled`` or ``error``."""

    def fail(self, error: TritonragError) -> None:
        """Take an error that came before any text."""

    def cancelled(self) -> bool:
        """Return whether the generation is to stop; an engine asks again and again."""


class Engine(Protocol):
    """Generates text for many requests at once."""

    @property
    def grounding(self) -> str:
        """The grounding used where the caller names none."""

    def submit(self, generation: Generation, sink: Sink) -> None:
        """Start a generation and return at once; its text goes to ``sink``.

        Raises:
            InvalidRequest: the engine cannot serve it, such as a prompt over its context.
            Unavailable: its queue is full, or it is stuck.
        """

    def close(self) -> None:
        """Stop everything and free the engine."""


@dataclass
class TextStream:
    """Feeds one sink: measures, holds back what may become a stop string, ends exactly once."""

    sink: Sink
    stop: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    started: float = field(default_factory=time.perf_counter)
    ended: bool = False
    _held: str = ""
    _sent: bool = False

    def push(self, text: str) -> bool:
        """Take a piece of the answer and send what is certain; True once a stop string came."""
        if not self.usage.time_to_first_token_ms:
            self.usage.time_to_first_token_ms = self._elapsed_ms()
        self._held += text
        cut = min((at for stop in self.stop if (at := self._held.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self._held = self._held[:cut]
            return True
        keep = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        self._send(len(self._held) - keep)
        return False

    def finish(self, reason: str) -> None:
        """Send what was held back, then the end."""
        if self.ended:
            return
        self._send(len(self._held))
        self.ended = True
        self.usage.total_ms = self._elapsed_ms()
        self.sink.finish(reason, self.usage)

    def fail(self, error: TritonragError) -> None:
        """End with an error: as an error if nothing was sent, else as ``finish_reason`` error."""
        if self.ended:
            return
        if self._sent:
            self.usage.error = str(error)
            self.finish("error")
        else:
            self.ended = True
            self.sink.fail(error)

    def _send(self, count: int) -> None:
        text, self._held = self._held[:count], self._held[count:]
        text = text if self._sent else text.lstrip()
        if text:
            self._sent = True
            self.sink.delta(text)

    def _elapsed_ms(self) -> float:
        return round((time.perf_counter() - self.started) * 1e3, 2)


def _overlap(text: str, stop: str) -> int:
    """Return how long an end of ``text`` is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _check(holds: bool, field_name: str, came: object, expected: str) -> None:
    if not holds:
        raise InvalidRequest(f"{field_name}: is {came}, expected {expected}")
