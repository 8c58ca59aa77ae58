"""Requests to an engine and the stream of one answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tritonrag.errors import InternalError, InvalidRequest, TritonragError
from tritonrag.generation import Generation, TextStream, Usage


@dataclass
class Recorder:
    """A sink that keeps what it is given."""

    deltas: list[str] = field(default_factory=list)
    ends: list[str | TritonragError] = field(default_factory=list)
    usage: Usage | None = None

    def delta(self, text: str) -> None:
        assert text
        assert not self.ends
        self.deltas.append(text)

    def finish(self, reason: str, usage: Usage) -> None:
        self.ends.append(reason)
        self.usage = replace(usage)

    def fail(self, error: TritonragError) -> None:
        self.ends.append(error)

    def cancelled(self) -> bool:
        return False

    @property
    def text(self) -> str:
        return "".join(self.deltas)


def streamed(pieces: list[str], *stop: str) -> Recorder:
    recorder = Recorder()
    stream = TextStream(recorder, stop)
    for piece in pieces:
        if stream.push(piece):
            break
    stream.finish("stop")
    return recorder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " \n"}, "prompt: is empty"),
        ({"max_tokens": 0}, "max_tokens: is 0, expected 1 or more"),
        ({"temperature": 2.01}, "temperature: is 2.01, expected 0 to 2"),
        ({"temperature": float("inf")}, "temperature: is inf"),
        ({"top_p": 0.0}, "top_p: is 0.0, expected above 0, to 1"),
        ({"top_p": float("nan")}, "top_p: is nan"),
        ({"top_k": -1}, "top_k_sampling: is -1"),
        ({"seed": -1}, "seed: is -1"),
        ({"stop": ("x",) * 9}, "stop: is 9 strings, expected at most 8"),
        ({"stop": ("",)}, "stop: is ''"),
        ({"stop": ("x" * 257,)}, "stop: is 'xxx"),
        ({"grounding": ""}, "grounding: is '', expected free or quote"),
        ({"grounding": "quote"}, "citations: is none"),
        ({"cancel_key": ""}, "cancel_key: is 0 bytes, expected a secret of 16 to 128 bytes"),
        ({"cancel_key": "k" * 15}, "cancel_key: is 15 bytes"),
        ({"cancel_key": "é" * 65}, "cancel_key: is 130 bytes"),
        ({"caller": "é" * 129}, "caller: is 258 bytes, expected at most 256"),
    ],
)
def test_a_value_out_of_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Generation(**({"prompt": "p"} | changes))

    assert str(raised.value).startswith(message)


def test_the_limits_themselves_are_allowed() -> None:
    Generation(
        "p", ((1, "a"),), 1, 2.0, 1.0, 0, 0, ("x" * 256,) * 8, "quote", "é" * 64, "é" * 128
    )  # fmt: skip


def test_without_stop_strings_every_piece_goes_out_at_once() -> None:
    assert streamed(["a ", "", "b", " c"]).deltas == ["a ", "b", " c"]


def test_leading_white_space_is_left_out() -> None:
    assert streamed([" ", "\n", " a", " b"]).deltas == ["a", " b"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("answer\n\nmore", ("\n\n",), "answer"),
        ("answer\nline\n", ("\n\n",), "answer\nline\n"),
        ("aaaab", ("aab",), "aa"),
        ("abcabd", ("abd",), "abc"),
        ("x END y", ("END", "ND"), "x "),
        ("xyz", ("xyz!", "y"), "x"),
        ("one END two", ("END", "EN"), "one "),
        ("ends with EN", ("END",), "ends with EN"),
        ("日本語。終", ("。",), "日本語"),
        ("👩‍👩‍👧 ok", ("ok",), "👩‍👩‍👧 "),
        ("END", ("END",), ""),
    ],
)
def test_a_stop_string_ends_the_answer_however_it_is_cut(
    text: str, stop: tuple[str, ...], expected: str, size: int
) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]

    assert streamed(pieces, *stop).text == expected


def test_no_text_is_lost_or_doubled_for_any_cut_and_stop() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        text = "x" + "".join(rng.choices("ab ", k=rng.randrange(25)))
        stop = tuple(
            "".join(rng.choices("ab ", k=rng.randrange(1, 5))) for _ in range(rng.randrange(4))
        )
        pieces, rest = [], text
        while rest:
            size = rng.randrange(1, 5)
            pieces.append(rest[:size])
            rest = rest[size:]
        sent = streamed(pieces, *stop).text
        cuts = [text[: text.index(each)] for each in stop if each in text]
        assert sent in (cuts or [text])
        assert not any(each in sent for each in stop)


def test_what_may_become_a_stop_string_waits() -> None:
    recorder = Recorder()
    stream = TextStream(recorder, ("STOP",))

    assert not stream.push("text ST")
    assert recorder.deltas == ["text "]
    assert not stream.push("ILL")
    assert recorder.deltas == ["text ", "STILL"]


def test_it_ends_exactly_once() -> None:
    recorder = Recorder()
    stream = TextStream(recorder)
    stream.finish("length")
    stream.finish("stop")
    stream.fail(InternalError("late"))

    assert recorder.ends == ["length"]


def test_an_error_before_text_is_an_error() -> None:
    recorder = Recorder()
    error = InternalError("broke")
    TextStream(recorder).fail(error)

    assert recorder.ends == [error]


def test_an_error_after_text_is_a_flagged_end_with_what_was_held_back() -> None:
    recorder = Recorder()
    stream = TextStream(recorder, ("STOP",))
    stream.push("half ST")
    stream.fail(InternalError("broke"))

    assert recorder.text == "half ST"
    assert recorder.ends == ["error"]
    assert recorder.usage is not None
    assert recorder.usage.as_dict()["error"] == "broke"


def test_usage_measures_the_stream() -> None:
    recorder = streamed(["a"])

    assert recorder.usage is not None
    values = recorder.usage.as_dict()
    assert 0 <= values["time_to_first_token_ms"] <= values["total_ms"]  # type: ignore[operator]
    assert "error" not in values
