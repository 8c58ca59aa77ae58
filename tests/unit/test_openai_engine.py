"""The engine for OpenAI-compatible endpoints, against a small real HTTP server."""

from __future__ import annotations

import gzip
import json
import re
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from llm_endpoint import (
    Endpoint,
    Handler,
    Reply,
    breaks_off,
    chunk,
    ends_without_a_reason,
    malformed,
    refuses,
    says,
    stalls,
    trickles,
)
from recorder import Recorder

from tritonrag.engines import openai_api
from tritonrag.engines.openai_api import MAX_TOKEN_CHARS, OpenAiEngine
from tritonrag.errors import InternalError, InvalidRequest, TritonragError, Unavailable
from tritonrag.generation import Generation
from tritonrag.settings import RemoteLlmSettings

TIMEOUT_S = 0.25
KEY = "sk-Xq7/93+tz"
LOG_ID = r"; the server's log has more under log id ([0-9a-f]{8})"


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    with Endpoint.serving() as server:
        yield server


@pytest.fixture
def endpoint(server: Endpoint) -> Iterator[Endpoint]:
    """The server with nothing asked yet."""
    server.reset()
    yield server
    server.released.set()


@pytest.fixture(scope="module")
def shared_engine(server: Endpoint) -> Iterator[OpenAiEngine]:
    """One for the module: a client of the library takes 0.1 s to make."""
    settings = RemoteLlmSettings(server.url, KEY, "m", 8192, TIMEOUT_S)
    engine = OpenAiEngine(settings, queue_size=3)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: OpenAiEngine, endpoint: Endpoint) -> OpenAiEngine:
    return shared_engine


def generate(engine: OpenAiEngine, prompt: str = "p", **options: Any) -> Recorder:
    recorder = Recorder()
    engine.submit(Generation(prompt, **options), recorder)
    return recorder


def test_a_stream_is_relayed_with_its_usage(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [says("Hel", "lo", " wörld 👩‍👩‍👧")]
    recorder = generate(engine).wait()

    assert recorder.deltas == ["Hel", "lo", " wörld 👩‍👩‍👧"]
    assert recorder.ends == ["stop"]
    assert (recorder.usage.prompt_tokens, recorder.usage.generated_tokens) == (11, 3)
    assert 0 < recorder.usage.time_to_first_token_ms <= recorder.usage.total_ms


def test_messages_and_options_are_passed_on(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    generate(
        engine, prompt=json.dumps(messages), max_tokens=7, temperature=0.5, top_p=0.25, top_k=9,
        seed=3,
    ).wait()  # fmt: skip

    (body,) = endpoint.bodies
    assert body == {
        "model": "m", "messages": messages, "max_tokens": 7, "temperature": 0.5, "top_p": 0.25,
        "top_k": 9, "seed": 3, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert endpoint.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("prompt", ["plain", "[1, 2]", '"text"', "[" * 90_000])
def test_any_other_prompt_is_one_user_message(
    engine: OpenAiEngine, endpoint: Endpoint, prompt: str
) -> None:
    generate(engine, prompt=prompt).wait()

    (body,) = endpoint.bodies
    assert body["messages"] == [{"role": "user", "content": prompt}]
    assert not {"top_p", "top_k", "seed"} & set(body), "endpoints refuse what they do not know"


def test_the_token_limit_is_reported(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [says("cut", reason="length")]

    assert generate(engine).wait().ends == ["length"]


def test_a_content_filter_is_a_flagged_end(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [says("some", reason="content_filter")]
    recorder = generate(engine).wait()

    assert recorder.ends == ["error"]
    assert re.fullmatch(f"the LLM endpoint ended its answer early{LOG_ID}", recorder.usage.error)


def test_a_stop_string_cut_by_the_endpoint_ends_the_answer(
    engine: OpenAiEngine, endpoint: Endpoint
) -> None:
    endpoint.replies = [says("one S", "TO", "P two")]
    recorder = generate(engine, stop=("STOP",)).wait()

    assert (recorder.text, recorder.ends) == ("one ", ["stop"])


def logged(caplog: pytest.LogCaptureFixture, message: str) -> str:
    """Return the one line of the log under the log id that a message names."""
    found = re.search(LOG_ID, message)
    assert found, message
    (line,) = [each for each in caplog.messages if found[1] in each]
    assert line.isprintable()
    return line


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (307, InternalError, r"answered with a redirect, which is not followed \(307\)"),
        (400, InvalidRequest, r"refused the request \(400\)"),
        (401, InternalError, r"refused the server's key \(401\)"),
        (403, InternalError, r"refused the server's key \(403\)"),
        (404, InternalError, r"does not know the path or the model \(404\)"),
        (413, InvalidRequest, r"takes no prompt of this size \(413\)"),
        (429, Unavailable, r"is overloaded \(429\)"),
        (500, Unavailable, r"failed \(500\)"),
        (503, Unavailable, r"failed \(503\)"),
    ],
)
def test_of_an_error_the_caller_is_told_the_kind_and_the_log_the_rest(
    engine: OpenAiEngine,
    endpoint: Endpoint,
    caplog: pytest.LogCaptureFixture,
    status: int,
    kind: type[TritonragError],
    message: str,
) -> None:
    endpoint.replies = [refuses(status, "because of this")]
    error = generate(engine).wait().error

    assert type(error) is kind
    assert re.fullmatch(f"the LLM endpoint {message}{LOG_ID}", str(error))
    line = logged(caplog, str(error))
    assert endpoint.url in line
    assert "because of this" in line
    assert '"content-type": "application/json"' in line


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        f"{KEY[:6]}***{KEY[-4:]}",
        quote(KEY, safe=""),
        b64encode(f"user:{KEY}".encode()).decode(),
        f"x\nE1128 12:00:00 1 model.cc:1] forged\r\x1b[2J\u202e {KEY}",
    ],
)
def test_the_key_and_control_characters_stay_out_of_the_log(
    engine: OpenAiEngine, endpoint: Endpoint, caplog: pytest.LogCaptureFixture, echo: str
) -> None:
    endpoint.replies = [refuses(401, f"the key {echo} is wrong")]
    line = logged(caplog, str(generate(engine).wait().error))

    assert "***" in line
    for form in (KEY, quote(KEY, safe=""), b64encode(f"user:{KEY}".encode()).decode()[7:]):
        assert not [form[at : at + 4] for at in range(len(form) - 3) if form[at : at + 4] in line]


def test_a_redirect_takes_the_question_nowhere(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    def elsewhere(handler: Handler) -> None:
        handler.send_response(307)
        handler.send_header("Location", f"http://localhost:{endpoint.server_port}/v1/x")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    endpoint.replies = [elsewhere, says("taken")]
    recorder = generate(engine).wait()

    assert "redirect" in str(recorder.error)
    assert len(endpoint.bodies) == 1


def test_a_proxy_of_the_environment_is_used_and_bounded_alike(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:pw1@127.0.0.1:{endpoint.server_port}")
    settings = RemoteLlmSettings("http://llm.invalid/v1", KEY, "m", 8192, TIMEOUT_S)
    engine = OpenAiEngine(settings, queue_size=1)
    try:
        assert generate(engine).wait().text == "ok"
        endpoint.replies = [streams(one_line_without_end)]
        assert "more than an answer can be" in str(generate(engine).wait().error)
    finally:
        engine.close()


def test_an_error_without_end_is_cut(
    engine: OpenAiEngine, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    def floods(handler: Handler) -> None:
        handler.send_response(400)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    endpoint.replies = [floods]
    line = logged(caplog, str(generate(engine).wait().error))

    assert len(line) < 2000
    assert endpoint.hung_up.wait(5)


def one_line_without_end(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def one_event_without_end(handler: Handler) -> None:
    while True:
        handler.wfile.write(b"10000\r\n" + b"data: a\n" * 8192 + b"\r\n")


def text_without_end(handler: Handler) -> None:
    while True:
        handler.delta("x" * 1000)


def streams(flood: Reply) -> Reply:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        flood(handler)

    return reply


@pytest.mark.parametrize("flood", [one_line_without_end, one_event_without_end, text_without_end])
def test_an_answer_without_end_is_ended(
    engine: OpenAiEngine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, flood: Reply
) -> None:
    monkeypatch.setattr("tritonrag.engines.endpoint.MAX_EVENT_BYTES", 100_000)  # read in time
    endpoint.replies = [streams(flood)]
    recorder = generate(engine, max_tokens=8).wait()

    said = recorder.usage.error or str(recorder.error)
    assert re.search("more than an answer can be|longer answer than it was asked for", said)
    assert len(recorder.text) <= 8 * MAX_TOKEN_CHARS
    assert endpoint.hung_up.wait(5)


def test_a_chunk_may_begin_and_end_anywhere(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    """Small events are told from a large one also where their blank lines come in two chunks."""

    def crumbles(handler: Handler) -> None:
        handler.begin_stream()
        event = json.dumps(chunk(choices=[{"index": 0, "delta": {"content": "w" * 100}}]))
        for byte in f"data: {event}\r\n\r\n" * 3:
            handler.wfile.write(f"1\r\n{byte}\r\n".encode())
        handler.end()

    endpoint.replies = [crumbles]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tritonrag.engines.endpoint.MAX_EVENT_BYTES", 400)
        assert generate(engine).wait().text == "w" * 300


def test_keep_alive_comments_buy_no_time(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    def hums(handler: Handler) -> None:
        handler.begin_stream()
        while True:
            handler.wfile.write(b"4\r\n: \n\n\r\n")
            time.sleep(0.05)

    endpoint.replies = [hums]

    assert "gave no answer within 0.25 s" in str(generate(engine).wait().error)


def test_compression_that_was_not_asked_for_is_not_undone(
    engine: OpenAiEngine, endpoint: Endpoint
) -> None:
    def compressed(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.wfile.write(gzip.compress(b"data: x\n\n"))

    endpoint.replies = [compressed]

    assert isinstance(generate(engine).wait().error, InternalError)


@pytest.mark.parametrize(
    "event",
    [
        '{"error": {"message": "\\u001b[2Jboom", "type": "t"}}',
        '{"choices": [{"index": 0, "delta": {"content": {"a": 1}}, "finish_reason": null}]}',
        '{"choices": [{"index": 0, "delta": null, "finish_reason": null}]}',
        '{"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": ["stop"]}]}',
        '{"choices": 7}',
        "[]7",
        '"text"',
        "[" * 100_000,
        "9" * 100_000,
    ],
)
def test_an_event_that_is_none_ends_the_answer(
    engine: OpenAiEngine, endpoint: Endpoint, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        handler.event(event)
        handler.event("[DONE]")

    endpoint.replies = [reply]
    recorder = generate(engine).wait()
    said = str(recorder.ends[0] if recorder.usage.error == "" else recorder.usage.error)

    assert re.search(f"^the LLM endpoint .*{LOG_ID}$", said)
    logged(caplog, said)


def test_half_of_a_character_becomes_text(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [says("a\ud83d", "b")]

    assert generate(engine).wait().text == "a?b"


@pytest.mark.parametrize(
    ("reported", "known"),
    [
        (None, (None, None, None)),
        ({"prompt_tokens": 7}, (7, None, None)),
        ({"prompt_tokens": "7\x1b[2J", "completion_tokens": -1}, (None, None, None)),
        ("many", (None, None, None)),
        (
            {"prompt_tokens": 7, "completion_tokens": 2,
             "prompt_tokens_details": {"cached_tokens": 5}},
            (7, 2, 5),
        ),
    ],
)  # fmt: skip
def test_what_the_endpoint_does_not_report_is_not_known(
    engine: OpenAiEngine, endpoint: Endpoint, reported: Any, known: tuple[int | None, ...]
) -> None:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        handler.delta("ok", "stop")
        handler.event(json.dumps(chunk(choices=[], usage=reported)))
        handler.event("[DONE]")
        handler.wfile.write(b"0\r\n\r\n")

    endpoint.replies = [reply]
    recorder = generate(engine).wait()
    usage = recorder.usage

    assert recorder.ends == ["stop"]
    assert (usage.prompt_tokens, usage.generated_tokens, usage.cached_tokens) == known


def test_a_busy_endpoint_is_asked_once_more(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [refuses(429, "busy"), says("ok")]

    assert generate(engine).wait().text == "ok"
    assert len(endpoint.bodies) == 2


def test_an_endpoint_that_never_answers(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [stalls()]
    error = generate(engine).wait().error

    assert isinstance(error, Unavailable)
    assert f"gave no answer within {TIMEOUT_S:g} s" in str(error)


def test_a_stream_that_stalls_after_text(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [stalls("half")]
    recorder = generate(engine).wait()

    assert (recorder.text, recorder.ends) == ("half", ["error"])
    assert "no answer within" in recorder.usage.error


def test_a_stream_that_stalls_before_text(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [stalls("")]

    assert isinstance(generate(engine).wait().error, Unavailable)


@pytest.mark.parametrize("reply", [breaks_off("half"), ends_without_a_reason, malformed])
def test_a_stream_that_breaks_is_never_taken_for_whole(
    engine: OpenAiEngine, endpoint: Endpoint, reply: Reply
) -> None:
    endpoint.replies = [reply]
    recorder = generate(engine).wait()

    assert (recorder.text, recorder.ends) == ("half", ["error"])
    assert recorder.usage.error.startswith("the LLM endpoint ")
    assert re.search(LOG_ID, recorder.usage.error)


def test_a_server_that_is_not_there() -> None:
    settings = RemoteLlmSettings("http://127.0.0.1:9/v1", "", "m", 8192, TIMEOUT_S)
    engine = OpenAiEngine(settings, queue_size=1)
    try:
        error = generate(engine).wait().error
    finally:
        engine.close()

    assert isinstance(error, Unavailable)
    assert re.fullmatch(f"the LLM endpoint cannot be reached{LOG_ID}", str(error))


def test_quote_is_refused(engine: OpenAiEngine) -> None:
    with pytest.raises(InvalidRequest, match="grounding: `quote`"):
        generate(engine, grounding="quote", passages=((1, "a"),))


def test_one_that_is_to_stop_hangs_up(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [trickles]
    recorder = generate(engine)
    assert recorder.begun.wait(5)
    recorder.gone = True

    assert recorder.wait().ends == ["cancelled"]
    assert endpoint.hung_up.wait(5)


class GoneAtOnce(Recorder):
    """To stop from the second time that it is asked on."""

    def cancelled(self) -> bool:
        before, self.gone = self.gone, True
        return before


def test_one_that_is_to_stop_right_after_the_request_still_ends(
    engine: OpenAiEngine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task may then be cancelled before its first step."""
    monkeypatch.setattr(openai_api, "CANCEL_POLL_S", 0.0)
    endpoint.replies = [stalls()]
    for _ in range(20):
        recorder = GoneAtOnce()
        engine.submit(Generation("p"), recorder)
        assert recorder.wait().ends == ["cancelled"]


def test_one_that_is_to_stop_before_it_began_is_not_begun(
    engine: OpenAiEngine, endpoint: Endpoint
) -> None:
    recorder = Recorder()
    recorder.gone = True
    engine.submit(Generation("p"), recorder)

    assert recorder.wait().ends == ["cancelled"]
    assert not endpoint.bodies
    assert generate(engine).wait().ends == ["stop"]


def test_the_end_of_one_leaves_other_generations_alone(
    engine: OpenAiEngine, endpoint: Endpoint
) -> None:
    endpoint.replies = [trickles, says("ok")]
    first = generate(engine)
    assert first.begun.wait(5)
    second = generate(engine)
    first.gone = True

    assert second.wait().ends == ["stop"]
    assert first.wait().ends == ["cancelled"]


def test_a_full_queue_is_unavailable_at_once_and_drains(
    engine: OpenAiEngine, endpoint: Endpoint
) -> None:
    endpoint.replies = [trickles]
    running = [generate(engine) for _ in range(3)]
    with pytest.raises(Unavailable, match="queue is full"):
        generate(engine)
    for recorder in running:
        recorder.gone = True
        recorder.wait()
    endpoint.replies = [says("ok")]

    assert generate(engine).wait().text == "ok"


def test_close_ends_what_runs(endpoint: Endpoint) -> None:
    settings = RemoteLlmSettings(endpoint.url, "", "m", 8192, TIMEOUT_S)
    engine = OpenAiEngine(settings, queue_size=3)
    endpoint.replies = [trickles]
    recorder = generate(engine)
    assert recorder.begun.wait(5)
    engine.close()

    assert recorder.wait().ends == ["cancelled"]
    assert not engine._thread.is_alive()
