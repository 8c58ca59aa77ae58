"""The engine for OpenAI-compatible endpoints, against a small real HTTP server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tritonrag.engines import openai_api
from tritonrag.engines.openai_api import OpenAiEngine
from tritonrag.errors import InternalError, InvalidRequest, TritonragError, Unavailable
from tritonrag.generation import Generation, Usage
from tritonrag.settings import RemoteLlmSettings

TIMEOUT_S = 0.25
Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the endpoint's next reply, the last one for ever."""

    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.bodies.append(json.loads(self.rfile.read(length)))
        self.server.keys.append(self.headers["Authorization"])
        replies = self.server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        try:
            reply(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()
        self.close_connection = True

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def delta(self, text: str | None, reason: str | None = None) -> None:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        self.event(json.dumps(chunk(choices=[choice])))

    def end(self, reason: str = "stop") -> None:
        self.delta(None, reason)
        usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
        self.event(json.dumps(chunk(choices=[], usage=usage)))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


def chunk(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"} | fields


class Endpoint(ThreadingHTTPServer):
    """The server, and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self) -> None:
        self.replies: list[Reply] = [says("ok")]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.hung_up = threading.Event()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def says(*pieces: str, reason: str = "stop") -> Reply:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        for piece in pieces:
            handler.delta(piece)
        handler.end(reason)

    return reply


def refuses(status: int, message: str) -> Reply:
    def reply(handler: Handler) -> None:
        body = json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Retry-After-Ms", "1")
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def stalls(*pieces: str) -> Reply:
    """Say the pieces, then nothing until the test ends."""

    def reply(handler: Handler) -> None:
        if pieces:
            handler.begin_stream()
        for piece in pieces:
            handler.delta(piece)
        handler.server.released.wait(10)

    return reply


def trickles(handler: Handler) -> None:
    """Say a word every few milliseconds until the other side hangs up."""
    handler.begin_stream()
    for number in range(1000):
        handler.delta(f"w{number} ")
        time.sleep(0.01)


def breaks_off(*pieces: str) -> Reply:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        for piece in pieces:
            handler.delta(piece)

    return reply


def ends_without_a_reason(handler: Handler) -> None:
    handler.begin_stream()
    handler.delta("half")
    handler.event("[DONE]")
    handler.wfile.write(b"0\r\n\r\n")


def malformed(handler: Handler) -> None:
    handler.begin_stream()
    handler.delta("half")
    handler.event('{"choices": [')
    handler.end()


@dataclass
class Recorder:
    """A sink that keeps what it is given."""

    deltas: list[str] = field(default_factory=list)
    ends: list[str | TritonragError] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    ended: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    gone: bool = False

    def delta(self, text: str) -> None:
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

    def wait(self) -> Recorder:
        assert self.ended.wait(10), "the generation did not end"
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


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def endpoint(server: Endpoint) -> Iterator[Endpoint]:
    """The server with nothing asked yet."""
    server.reset()
    yield server
    server.released.set()


@pytest.fixture(scope="module")
def shared_engine(server: Endpoint) -> Iterator[OpenAiEngine]:
    """One for the module: a client of the library takes 0.1 s to make."""
    settings = RemoteLlmSettings(server.url, "secret", "m", 8192, TIMEOUT_S)
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
    assert endpoint.keys == ["Bearer secret"]


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
    assert "'content_filter'" in recorder.usage.error


def test_a_stop_string_cut_by_the_endpoint_ends_the_answer(
    engine: OpenAiEngine, endpoint: Endpoint
) -> None:
    endpoint.replies = [says("one S", "TO", "P two")]
    recorder = generate(engine, stop=("STOP",)).wait()

    assert (recorder.text, recorder.ends) == ("one ", ["stop"])


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, InternalError, "refused the key (401): check LLM_API_KEY"),
        (403, InternalError, "refused the key (403): check LLM_API_KEY"),
        (429, Unavailable, "answered 429"),
        (500, Unavailable, "answered 500"),
        (503, Unavailable, "answered 503"),
        (400, InvalidRequest, "answered 400"),
        (404, InvalidRequest, "answered 404"),
    ],
)
def test_an_error_of_the_endpoint_is_passed_on_clearly(
    engine: OpenAiEngine,
    endpoint: Endpoint,
    status: int,
    kind: type[TritonragError],
    message: str,
) -> None:
    endpoint.replies = [refuses(status, "because of this")]
    error = generate(engine).wait().error

    assert type(error) is kind
    assert message in str(error)
    assert "secret" not in str(error)
    if status not in (401, 403):
        assert "because of this" in str(error)


def test_a_busy_endpoint_is_asked_once_more(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [refuses(429, "busy"), says("ok")]

    assert generate(engine).wait().text == "ok"
    assert len(endpoint.bodies) == 2


def test_an_endpoint_that_never_answers(engine: OpenAiEngine, endpoint: Endpoint) -> None:
    endpoint.replies = [stalls()]
    error = generate(engine).wait().error

    assert isinstance(error, Unavailable)
    assert f"no answer within {TIMEOUT_S:g} s" in str(error)


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
    assert endpoint.url in recorder.usage.error


def test_a_server_that_is_not_there() -> None:
    settings = RemoteLlmSettings("http://127.0.0.1:9/v1", "", "m", 8192, TIMEOUT_S)
    engine = OpenAiEngine(settings, queue_size=1)
    try:
        error = generate(engine).wait().error
    finally:
        engine.close()

    assert isinstance(error, Unavailable)
    assert "cannot be reached; check LLM_API_URL" in str(error)


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
