"""An OpenAI-compatible chat endpoint on this machine that answers as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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

    @classmethod
    @contextmanager
    def serving(cls) -> Iterator[Endpoint]:
        """Yield one that answers."""
        with cls() as endpoint:
            threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True).start()
            yield endpoint
            endpoint.shutdown()

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
