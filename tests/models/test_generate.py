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
from tritonrag.errors import InternalError, Unavailable
from tritonrag.generation import Generation, Sink, TextStream
from tritonrag.prompting import NOTHING_FOUND

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
    cancelled: list[str] = field(default_factory=list)
    full: bool = False
    closed: bool = False

    def submit(self, generation: Generation, sink: Sink) -> None:
        if self.full:
            raise Unavailable("generate: its queue is full (0 generations); try again later")
        self.generations.append(generation)
        self.streams[generation.id] = TextStream(sink, generation.stop)

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)
        if id in self.streams:
            self.streams[id].finish("cancelled")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine()
    monkeypatch.setattr(tritonrag.engines, "load_engine", lambda args, models: engine)
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
    request = model.request("r", prompt=["p"], citations=[CITATIONS])
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
    request = model.request("r", prompt=["p"], citations=[CITATIONS])
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
    request = model.request(
        "r", prompt=["p"], citations=[CITATIONS], stop=["END"], grounding=["free"]
    )
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
    request = model.request("r", prompt=["p"], citations=[CITATIONS])
    model.stream(request)
    engine.streams["r"].finish("length")

    ((text, citations, reason, _),) = rows(model, request)

    assert (text, json.loads(citations), reason) == ("", located([], [], []), "length")


def test_defaults_come_from_the_contract_and_the_engine(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    model.stream(model.request("r", prompt=["p"], citations=[CITATIONS]))
    model.stream(model.request("s", prompt=["p"]))

    with_passages, without = engine.generations
    assert with_passages == Generation(
        "r", "p", passages=((1, "25 days."), (2, "Ask Anna.")), max_tokens=256, grounding="quote"
    )
    assert without.grounding == "free", "there is nothing to quote"


def test_every_option_reaches_the_engine(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    request = model.request(
        "r", prompt=["p"], citations=[CITATIONS], max_tokens=[7], temperature=[0.5], top_p=[0.25],
        top_k_sampling=[9], seed=[2**40], stop=[["\n\n", "é"]], grounding=["free"],
    )  # fmt: skip
    model.stream(request)

    (generation,) = engine.generations
    assert generation == Generation(
        "r", "p", ((1, "25 days."), (2, "Ask Anna.")), 7, 0.5, 0.25, 9, 2**40, ("\n\n", "é"), "free"
    )


def test_an_empty_index_is_answered_without_the_engine(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request("r", prompt=[""], citations=["[]"])
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
        ({"citations": ['[{"mark": 1, "text": "a", "score": NaN}]']}, "citations: expected a JSON"),
        (
            {"citations": [json.dumps([{"mark": 1, "text": ""}] * 101)]},
            "citations: 101, at most",
        ),
        ({"citations": ["[" + " " * 7_000_000 + "]"]}, "citations: 7000002 bytes, at most 6291456"),
        ({"cancel": [True]}, "cancel: needs the request id"),
    ],
)
def test_a_bad_request_fails_alone(
    model: pb_fake.Served, engine: ScriptedEngine, inputs: dict[str, Any], message: str
) -> None:
    good = model.request("good", prompt=["p"])
    bad = model.request("", **({"prompt": ["p"]} | inputs))
    model.stream(bad, good)
    engine.streams["good"].finish("stop")

    (error,) = answers(model, bad)
    assert error.code == "INVALID_ARG"
    assert error.message.startswith(message)
    assert bad.get_response_sender().closed
    assert rows(model, good)[-1][2] == "stop"


def test_a_full_queue_is_unavailable_at_once(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    engine.full = True
    request = model.request("r", prompt=["p"])
    model.stream(request)

    (error,) = answers(model, request)
    assert error.code == "UNAVAILABLE"


def test_an_unexpected_failure_tells_the_client_a_log_id_only(
    model: pb_fake.Served, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("/secret/path")

    monkeypatch.setattr(engine, "submit", fail)
    request = model.request("r", prompt=["p"])
    model.stream(request)

    (error,) = answers(model, request)
    assert error.code == "INTERNAL"
    assert "secret" not in error.message
    assert error.message.rsplit(" ", 1)[1] in pb_fake.errors_logged()[0]


def test_cancel_stops_the_generation_of_that_id(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    running, other = model.request("a", prompt=["p"]), model.request("b", prompt=["p"])
    model.stream(running, other)
    engine.streams["a"].push("some")
    cancel = model.request("a", prompt=[""], cancel=[True])
    model.stream(cancel)

    assert engine.cancelled == ["a"]
    assert [row[2] for row in rows(model, running)] == ["", "cancelled"]
    assert [row[2] for row in rows(model, cancel)] == ["cancelled"]
    assert not answers(model, other)


def test_cancel_false_is_an_ordinary_request(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    model.stream(model.request("a", prompt=["p"], cancel=[False]))

    assert [each.id for each in engine.generations] == ["a"]


def test_an_engine_error_before_any_text_is_an_error(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request("a", prompt=["p"])
    model.stream(request)
    engine.streams["a"].fail(InternalError("generate: the engine failed"))

    (error,) = answers(model, request)
    assert (error.code, error.message) == ("INTERNAL", "generate: the engine failed")


def test_an_engine_error_after_text_ends_the_stream_as_error(
    model: pb_fake.Served, engine: ScriptedEngine
) -> None:
    request = model.request("a", prompt=["p"])
    model.stream(request)
    engine.streams["a"].push("half")
    engine.streams["a"].fail(InternalError("generate: the engine failed"))

    *_, last = rows(model, request)
    assert last[2] == "error"
    assert json.loads(last[3])["error"] == "generate: the engine failed"


def test_a_client_that_went_away_is_seen(model: pb_fake.Served, engine: ScriptedEngine) -> None:
    request = model.request("a", prompt=["p"])
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
        request = model.request("a", prompt=["p"])
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
    request = model.request("a", prompt=["p"])
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
