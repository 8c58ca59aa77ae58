"""generate with the fake of pb_utils and an engine that says what the test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pb_fake
import pytest

import tritonrag.engines
from tritonrag.contract import MAX_CALLER_BYTES, MAX_KEY_BYTES, MIN_KEY_BYTES
from tritonrag.engines.caps import CappedEngine, Caps
from tritonrag.errors import InternalError, Unavailable
from tritonrag.generation import Generation, Sink, TextStream
from tritonrag.prompting import NOTHING_FOUND

CAPS = Caps(max_tokens=500, caller_generations=3)
KEY = "a secret that only we know"

CITATIONS = json.dumps(
    [
        {"mark": 1, "text": "25 days.", "source": "leave.md"},
        {"mark": None, "text": "far", "dropped": "context"},
        {"mark": 2, "text": "Ask Anna.", "source": "people.md"},
    ]
)


def located(*spans: list[tuple[int, int, int, int]]) -> list[dict[str, Any]]:
    """Return the citations as the last response has them, with these spans."""
    names = ("start", "end", "mark_start", "mark_end")
    return [
        each | {"spans": [dict(zip(names, span, strict=True)) for span in found]}
        for each, found in zip(json.loads(CITATIONS), spans, strict=True)
    ]


@dataclass
class ScriptedEngine:
    """Keeps generations until the test ends them."""

    grounding: str = "quote"
    generations: list[Generation] = field(default_factory=list)
    streams: dict[str, TextStream] = field(default_factory=dict)
    """By prompt."""
    full: bool = False
    closed: bool = False

    def submit(self, generation: Generation, sink: Sink) -> None:
        if self.full:
            raise Unavailable("generate: its queue is full (0 generations); try again later")
        self.generations.append(generation)
        self.streams[generation.prompt] = TextStream(sink, generation.stop)

    def poll(self) -> None:
        """End what is to stop, as an engine does again and again."""
        for stream in self.streams.values():
            if stream.sink.cancelled():
                stream.finish("cancelled")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine()
    monkeypatch.setattr(
        tritonrag.engines, "load_engine", lambda args, models: CappedEngine(engine, CAPS)
    )
    return engine


@pytest.fixture
def model(engine: ScriptedEngine, tmp_path: Path) -> Iterator[pb_fake.Served]:
    with pb_fake.loaded("generate", tmp_path) as served:
        yield served


class Turn:
    """Takes a turn in the outbox as a stream does, and does something in it."""

    ended = True

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def send_ready(self) -> bool:
        self._act()
        return False

    def ask(self) -> None:
        pass


def settle(model: pb_fake.Served) -> None:
    """Wait until everything that is ready has been sent."""
    sent = threading.Event()
    model.model._streams._outbox.post(Turn(sent.set))
    assert sent.wait(5)


def answers(model: pb_fake.Served, request: pb_fake.InferenceRequest) -> list[pb_fake.Answer]:
    settle(model)
    return model.answers(request)


def rows(model: pb_fake.Served, request: pb_fake.InferenceRequest) -> list[tuple[str, ...]]:
    """Return text, citations, finish_reason and usage of every response."""
    outputs = [each.name for each in model.spec.outputs]
    return [
        tuple(pb_fake.texts(answer[name])[0] for name in outputs)
        for answer in answers(model, request)
    ]


def test_every_response_fills_every_output(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    """Citations come with the first text and the end, finish_reason and usage with the end only."""
    request = model.request(prompt=["r"], citations=[CITATIONS])
    model.stream(request)
    for text in ("25", " days.", " [1] é"):
        engine.streams["r"].push(text)
        settle(model)
    engine.streams["r"].finish("stop")

    *text, last = rows(model, request)

    assert text == [
        ("25", CITATIONS, "", ""), (" days.", "", "", ""), (" [1] é", "", "", ""),
    ]  # fmt: skip
    assert json.loads(last[1]) == located([(0, 8, 9, 12)], [], [])
    assert (last[0], last[2]) == ("", "stop")
    assert set(json.loads(last[3])) == {
        "prompt_tokens", "cached_tokens", "generated_tokens", "time_to_first_token_ms", "total_ms",
    }  # fmt: skip
    assert request.get_response_sender().closed


def test_what_is_ready_together_goes_out_together(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request(prompt=["r"], citations=[CITATIONS])
    model.stream(request)
    busy = threading.Event()
    model.model._streams._outbox.post(Turn(busy.wait))
    for text in ("25", " days.", " [1] é"):
        engine.streams["r"].push(text)
    engine.streams["r"].finish("stop")
    busy.set()

    text, last = rows(model, request)

    assert text == ("25 days. [1] é", CITATIONS, "", "")
    assert json.loads(last[1]) == located([(0, 8, 9, 12)], [], [])
    assert (last[0], last[2]) == ("", "stop")


def test_spans_are_of_the_answer_as_it_was_sent(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    """Without the white space at its start, and without what a stop string cut off."""
    request = model.request(prompt=["r"], citations=[CITATIONS], stop=["END"], grounding=["free"])
    model.stream(request)
    for text in ("  A 🙂. So it is [2", "]. One. Two [1, 2]", " E", "ND [1]"):
        engine.streams["r"].push(text)
    engine.streams["r"].finish("stop")

    *texts, last = rows(model, request)

    answer = "".join(each[0] for each in texts)
    assert answer == "A 🙂. So it is [2]. One. Two [1, 2] "
    assert json.loads(last[1]) == located(
        [(24, 27, 28, 34)], [], [(5, 13, 14, 17), (24, 27, 28, 34)]
    )


def test_an_answer_without_text_still_has_its_citations(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request(prompt=["r"], citations=[CITATIONS])
    model.stream(request)
    engine.streams["r"].finish("length")

    ((text, citations, reason, _),) = rows(model, request)

    assert (text, json.loads(citations), reason) == ("", located([], [], []), "length")


def test_defaults_come_from_the_contract_and_the_engine(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    model.stream(model.request(prompt=["r"], citations=[CITATIONS]))
    model.stream(model.request(prompt=["s"]))

    with_passages, without = engine.generations
    assert with_passages == Generation(
        "r", passages=((1, "25 days."), (2, "Ask Anna.")), max_tokens=256, grounding="quote"
    )
    assert without.grounding == "free", "there is nothing to quote"


def test_every_option_reaches_the_engine(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    request = model.request(
        prompt=["r"], citations=[CITATIONS], max_tokens=[7], temperature=[0.5], top_p=[0.25],
        top_k_sampling=[9], seed=[2**40], stop=[["\n\n", "é"]], grounding=["free"],
        cancel_key=[KEY], caller=["x"],
    )  # fmt: skip
    model.stream(request)

    (generation,) = engine.generations
    assert generation == Generation(
        "r", ((1, "25 days."), (2, "Ask Anna.")), 7, 0.5, 0.25, 9, 2**40, ("\n\n", "é"), "free",
        KEY, "x",
    )  # fmt: skip


def test_an_empty_index_is_answered_without_the_engine(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request(prompt=[""], citations=["[]"])
    model.stream(request)

    first, last = rows(model, request)

    assert first == (NOTHING_FOUND, "[]", "", "")
    assert last[2] == "stop"
    assert not engine.generations
    assert "tritonrag index add" in NOTHING_FOUND


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"prompt": [""]}, "prompt: is empty"),
        ({"prompt": [b"\xff"]}, "prompt: is not UTF-8"),
        ({"prompt": ["a" * (2**20 + 1)]}, "prompt: is 1048577 bytes"),
        ({"max_tokens": [0]}, "max_tokens: is 0"),
        ({"temperature": [-0.1]}, "temperature: is -0.1"),
        ({"temperature": [2.5]}, "temperature: is 2.5"),
        ({"temperature": [float("nan")]}, "temperature: is nan"),
        ({"top_p": [0.0]}, "top_p: is 0.0"),
        ({"top_p": [1.5]}, "top_p: is 1.5"),
        ({"top_k_sampling": [-1]}, "top_k_sampling: is -1"),
        ({"seed": [-1]}, "seed: is -1"),
        ({"stop": [["a"] * 9]}, "stop: is 9 strings"),
        ({"stop": [["é" * 129]]}, "stop: is 'é"),
        ({"stop": [[""]]}, "stop: is ''"),
        ({"grounding": ["strict"]}, "grounding: is 'strict'"),
        ({"grounding": ["quote"]}, "citations: is none"),
        ({"citations": ["{"]}, "citations: expected a JSON list"),
        ({"citations": ["[1]"]}, "citations: expected a JSON list"),
        ({"citations": ['[{"mark": 1e999, "text": "a"}]']}, "citations: expected a JSON list"),
        ({"citations": ['[{"mark": -1, "text": "a"}]']}, "citations: expected a JSON list"),
        ({"citations": ['[{"mark": 1, "text": null}]']}, "citations: expected a JSON list"),
        ({"citations": ["[" * 90000]}, "citations: expected a JSON list"),
        ({"citations": [r'[{"mark": 1, "text": "\ud83d"}]']}, "citations: expected a JSON list"),
        ({"cancel_key": ["k" * (MIN_KEY_BYTES - 1)]}, "cancel_key: is 15 bytes, expected"),
        ({"cancel_key": ["k" * (MAX_KEY_BYTES + 1)]}, "cancel_key: is 129 bytes, expected"),
        ({"cancel": [""]}, "cancel: is 0 bytes, expected a secret of 16 to 128 bytes"),
        ({"cancel": ["k" * 10**6]}, "cancel: is 1000000 bytes, expected"),
        ({"caller": ["c" * (MAX_CALLER_BYTES + 1)]}, "caller: is 257 bytes"),
        ({"max_tokens": [501]}, "max_tokens: is 501, expected 1 to 500 (the operator's cap"),
        ({"citations": ['[{"mark": 1, "text": "a", "score": NaN}]']}, "citations: expected a JSON"),
        (
            {"citations": [json.dumps([{"mark": 1, "text": ""}] * 101)]},
            "citations: 101, at most",
        ),
        ({"citations": ["[" + " " * 7_000_000 + "]"]}, "citations: 7000002 bytes, at most 6291456"),
    ],
)
def test_a_bad_request_fails_alone(
    model: pb_fake.Served, engine: ScriptedEngine, inputs: dict[str, Any], message: str
) -> None:
    good = model.request(prompt=["good"])
    bad = model.request(**({"prompt": ["p"]} | inputs))
    model.stream(bad, good)
    engine.streams["good"].finish("stop")

    (error,) = answers(model, bad)
    assert error.code == "INVALID_ARG"
    assert error.message.startswith(message)
    assert bad.get_response_sender().closed
    assert rows(model, good)[-1][2] == "stop"


def test_a_full_queue_is_unavailable_at_once(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    engine.full = True
    request = model.request(prompt=["r"])
    model.stream(request)

    (error,) = answers(model, request)
    assert error.code == "UNAVAILABLE"


def test_an_unexpected_failure_tells_the_client_a_log_id_only(
    model: pb_fake.Served, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("/secret/path")

    monkeypatch.setattr(engine, "submit", fail)
    request = model.request(prompt=["r"])
    model.stream(request)

    (error,) = answers(model, request)
    assert error.code == "INTERNAL"
    assert "secret" not in error.message
    assert error.message.rsplit(" ", 1)[1] in pb_fake.errors_logged()[0]


def test_the_key_stops_its_generation_and_no_other(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    running = model.request(prompt=["a"], cancel_key=[KEY])
    other, bare = model.request(prompt=["b"], cancel_key=[KEY + "!"]), model.request(prompt=["c"])
    model.stream(running)
    model.stream(other, model.request("r", prompt=["d"], caller=["x"]))
    engine.streams["a"].push("some")
    right, wrong = model.request(cancel=[KEY]), model.request("r", cancel=["a wrong secret key"])
    model.stream(wrong, right, bare)
    engine.poll()

    assert [row[2] for row in rows(model, running)] == ["", "cancelled"]
    assert not answers(model, other)
    assert not answers(model, bare)
    told = [[row[:3] for row in rows(model, each)] for each in (right, wrong)]
    assert told == [[("", "", "cancelled")]] * 2, "the same answer"


def test_a_key_that_comes_first_stops_the_generation_that_follows(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    """It is begun all the same: a probe wants to know whether the engine lives."""
    request = model.request(prompt=["a"], cancel_key=[KEY])
    model.stream(model.request(cancel=[KEY]), request)
    engine.poll()

    assert [row[2] for row in rows(model, request)] == ["cancelled"]


def test_a_caller_has_so_many_at_a_time(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    *running, refused = (model.request(prompt=[name], caller=["x"]) for name in "abcd")
    other = model.request(prompt=["o"])
    model.stream(*running, refused, other)

    (error,) = answers(model, refused)
    assert error.code == "UNAVAILABLE"
    assert error.message.startswith("generate: its caller has 3 generations")
    assert not answers(model, other)
    engine.streams["a"].finish("stop")
    again = model.request(prompt=["e"], caller=["x"])
    model.stream(again)
    assert not answers(model, again)


def test_an_engine_error_before_any_text_is_an_error(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request(prompt=["a"])
    model.stream(request)
    engine.streams["a"].fail(InternalError("generate: the engine failed"))

    (error,) = answers(model, request)
    assert (error.code, error.message) == ("INTERNAL", "generate: the engine failed")


def test_an_engine_error_after_text_ends_the_stream_as_error(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request(prompt=["a"])
    model.stream(request)
    engine.streams["a"].push("half")
    engine.streams["a"].fail(InternalError("generate: the engine failed"))

    *_, last = rows(model, request)
    assert last[2] == "error"
    assert json.loads(last[3])["error"] == "generate: the engine failed"


def test_a_client_that_went_away_is_seen(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    request = model.request(prompt=["a"])
    model.stream(request)
    sink = engine.streams["a"].sink
    assert not sink.cancelled()

    request.get_response_sender().caller_cancelled = True

    end = time.monotonic() + 1  # it is asked four times a second
    while not sink.cancelled():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_after_the_end_the_sender_is_left_alone(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    """The fake fails where the real sender would end the server's process."""
    for end in ("stop", InternalError("x")):
        request = model.request(prompt=["a"])
        model.stream(request)
        stream = engine.streams["a"]
        if isinstance(end, str):
            stream.finish(end)
        else:
            stream.fail(end)
        stream.sink.delta("late")
        settle(model)

        assert stream.sink.cancelled()
        assert len(answers(model, request)) == 1


def test_text_that_cannot_be_sent_ends_that_stream_and_stops_the_engine(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request(prompt=["a"])
    model.stream(request)
    engine.streams["a"].push("half a pair \ud83d")
    settle(model)

    (error,) = answers(model, request)
    assert error.code == "INTERNAL"
    assert "log id" in error.message
    assert engine.streams["a"].sink.cancelled()


def test_unloading_closes_the_engine(engine: ScriptedEngine, tmp_path: Path) -> None:
    with pb_fake.loaded("generate", tmp_path):
        assert not engine.closed

    assert engine.closed
