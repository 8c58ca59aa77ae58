"""What the operator allows of generations, and who may stop one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from recorder import Recorder

from tritonrag.contract import DEFAULT_MAX_TOKENS
from tritonrag.engines import caps
from tritonrag.engines.caps import CappedEngine, Caps, EarlyCancels
from tritonrag.errors import InternalError, InvalidRequest, SetupError, TritonragError, Unavailable
from tritonrag.generation import Generation, Sink, Usage
from tritonrag.settings import ModelArgs

KEY = "a secret that only we know"


@dataclass
class Engine:
    """Keeps the sinks; the test says what comes."""

    grounding: str = "free"
    sinks: list[Sink] = field(default_factory=list)
    error: TritonragError | None = None
    closed: bool = False

    def submit(self, generation: Generation, sink: Sink) -> None:
        if self.error:
            raise self.error
        self.sinks.append(sink)

    def close(self) -> None:
        self.closed = True


class Clock:
    """The time, which stands until the test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(caps, "time", clock)
    return clock


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def capped(engine: Engine) -> Iterator[CappedEngine]:
    capped = CappedEngine(engine, Caps(max_tokens=400, max_seconds=9, caller_generations=2))
    yield capped
    capped.close()


def submit(capped: CappedEngine, caller: str = "", key: str | None = None) -> Recorder:
    recorder = Recorder()
    capped.submit(Generation("p", caller=caller, cancel_key=key), recorder)
    return recorder


def args(**parameters: str) -> ModelArgs:
    config = {"parameters": {key: {"string_value": text} for key, text in parameters.items()}}
    return ModelArgs.parse(
        {
            "model_name": "generate",
            "model_repository": "/models/generate",
            "model_version": "1",
            "model_config": json.dumps(config),
        }
    )


def test_caps_are_parameters_with_bounds() -> None:
    assert Caps.of(args()) == Caps()
    assert Caps.of(args(max_tokens="7", max_seconds="8", caller_generations="9")) == Caps(7, 8, 9)
    for key in ("max_tokens", "max_seconds"):
        with pytest.raises(SetupError, match=f"model generate: parameter {key} is '0', expected 1"):
            Caps.of(args(**{key: "0"}))


def test_the_default_number_of_tokens_keeps_to_the_cap(engine: Engine) -> None:
    for cap, default in ((10_000, DEFAULT_MAX_TOKENS), (100, 100)):
        capped = CappedEngine(engine, Caps(max_tokens=cap))
        assert capped.max_tokens == default
        capped.close()


def test_more_tokens_than_the_cap_are_refused(capped: CappedEngine) -> None:
    capped.submit(Generation("p", max_tokens=400), Recorder())
    with pytest.raises(InvalidRequest, match="max_tokens: is 401, expected 1 to 400 .*operator's"):
        capped.submit(Generation("p", max_tokens=401), Recorder())


def test_text_and_ends_go_through(capped: CappedEngine, engine: Engine) -> None:
    first, second = submit(capped), submit(capped)
    engine.sinks[0].delta("a")
    engine.sinks[0].finish("stop", Usage())
    engine.sinks[1].fail(InternalError("x"))

    assert (first.text, first.ends) == ("a", ["stop"])
    assert isinstance(second.ends[0], InternalError)


def test_a_caller_has_so_many_at_a_time(capped: CappedEngine, engine: Engine) -> None:
    for _ in range(2):
        submit(capped, "a")
    with pytest.raises(Unavailable, match="its caller has 2 generations waiting or running"):
        submit(capped, "a")
    submit(capped, "b")
    engine.sinks[0].finish("stop", Usage())
    submit(capped, "a")

    engine.error = InvalidRequest("no")
    for _ in range(5):
        with pytest.raises(InvalidRequest, match="no"):
            submit(capped, "b")
    engine.error = None
    submit(capped, "b")
    for sink in engine.sinks:
        sink.finish("stop", Usage())
    assert not capped._callers, "memory does not grow with callers"


def test_a_probe_is_cancelled_beforehand_and_passes_a_full_caller(
    capped: CappedEngine, engine: Engine
) -> None:
    submit(capped)
    submit(capped)
    capped.cancel(KEY)
    submit(capped, key=KEY)

    assert engine.sinks[-1].cancelled()


def test_callers_without_a_name_are_one(capped: CappedEngine) -> None:
    submit(capped)
    submit(capped)
    with pytest.raises(Unavailable):
        submit(capped)


def test_without_a_cap_a_caller_has_as_many_as_the_queue(engine: Engine) -> None:
    capped = CappedEngine(engine, Caps())
    for _ in range(200):
        submit(capped)
    capped.close()


def test_a_key_stops_its_generations_only(capped: CappedEngine, engine: Engine) -> None:
    submit(capped, "a", KEY)
    submit(capped, "b", KEY + "!")
    submit(capped, "c")
    capped.cancel("a secret that nobody has")
    capped.cancel(KEY)

    assert [sink.cancelled() for sink in engine.sinks] == [True, False, False]


def test_a_cancel_that_overtakes_its_request_counts_once(
    capped: CappedEngine, engine: Engine
) -> None:
    capped.cancel(KEY)
    submit(capped, "a", KEY + "!")
    submit(capped, "b", KEY)
    submit(capped, "c", KEY)

    assert [sink.cancelled() for sink in engine.sinks] == [False, True, False]


def test_a_caller_who_left_is_passed_on(capped: CappedEngine, engine: Engine) -> None:
    recorder = submit(capped)
    assert not engine.sinks[0].cancelled()
    recorder.gone = True
    assert engine.sinks[0].cancelled()
    engine.sinks[0].finish("cancelled", Usage())

    assert recorder.ends == ["cancelled"]


def test_the_seconds_end_it_with_what_was_made(
    clock: Clock, capped: CappedEngine, engine: Engine
) -> None:
    some, none, stopped = submit(capped), submit(capped, "a"), submit(capped, "b", KEY)
    clock.now += 8
    engine.sinks[0].delta("so")
    assert not any(sink.cancelled() for sink in engine.sinks)
    capped.cancel(KEY)
    clock.now += 1
    assert [sink.cancelled() for sink in engine.sinks] == [False, True, True]
    engine.sinks[0].delta("me")
    clock.now += 7
    assert not engine.sinks[0].cancelled(), "the wait does not count"
    clock.now += 1
    assert engine.sinks[0].cancelled()
    for sink in engine.sinks:
        sink.finish("cancelled", Usage())

    assert (some.text, some.ends) == ("some", ["length"])
    assert stopped.ends == ["cancelled"]
    (error,) = none.ends
    assert isinstance(error, Unavailable), "an empty answer would look like one"
    assert "waited 9 s for the engine" in str(error)


def test_an_end_of_its_own_stays_what_it_is(
    clock: Clock, capped: CappedEngine, engine: Engine
) -> None:
    recorder = submit(capped)
    clock.now += 10
    engine.sinks[0].finish("stop", Usage())

    assert recorder.ends == ["stop"]


def test_a_stuck_engine_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """Neither the end of the time nor a cancel needs its help, and what it says later is late."""
    monkeypatch.setattr(caps, "WATCH_S", 0.01)
    monkeypatch.setattr(caps, "GRACE_S", 0.1)
    capped = CappedEngine(engine, Caps(max_seconds=0.2))
    begun, waiting = submit(capped), submit(capped)
    engine.sinks[0].delta("some")
    cancelled = submit(capped, key=KEY)
    capped.cancel(KEY)
    assert all(each.ended.wait(5) for each in (begun, waiting, cancelled))
    for sink in engine.sinks:
        sink.finish("stop", Usage())
        sink.fail(InternalError("late"))
    capped.close()

    assert begun.ends == ["length"]
    assert cancelled.ends == ["cancelled"]
    assert [type(end) for end in waiting.ends] == [Unavailable]


def test_a_cancel_that_the_engine_does_not_heed_took_the_time_it_took(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caps, "WATCH_S", 0.01)
    monkeypatch.setattr(caps, "GRACE_S", 0.1)
    capped = CappedEngine(engine, Caps(max_seconds=60))
    cancelled = submit(capped, key=KEY)
    capped.cancel(KEY)
    assert cancelled.ended.wait(5)
    capped.close()

    assert 100 <= cancelled.usage.total_ms < 5000


def test_closing_closes_the_engine(engine: Engine) -> None:
    CappedEngine(engine, Caps()).close()

    assert engine.closed


def test_an_early_cancel_is_forgotten_after_a_while(clock: Clock) -> None:
    early = EarlyCancels()
    early.add("a")
    early.add("b")
    clock.now += caps.EARLY_CANCEL_S + 1
    early.add("c")

    assert not early.take("a")
    assert early.take("c")
    assert not early.take("c")
    assert not early.take(None)
    assert not early._until, "memory does not grow with cancels"


def test_early_cancels_are_bounded_in_number_and_the_oldest_goes(clock: Clock) -> None:
    early = EarlyCancels()
    for number in range(caps.EARLY_CANCELS):
        early.add(str(number))
    early.add("0")  # again, and so the newest
    early.add("one more")

    assert len(early._until) == caps.EARLY_CANCELS
    assert not early.take("1")
    assert all(early.take(key) for key in ("0", "2", "one more"))
