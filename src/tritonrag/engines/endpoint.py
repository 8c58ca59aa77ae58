"""An endpoint of somebody else's: how much of its replies is read, and what its failures become.

A caller is told the kind of failure and a log id. Where the endpoint is, what it said and its
headers are in the server's log under that id, on one line, without the key.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai

from tritonrag.errors import InternalError, InvalidRequest, TritonragError, Unavailable
from tritonrag.redaction import redacted
from tritonrag.settings import RemoteLlmSettings

LOG = logging.getLogger(__name__)

MAX_REPLY_BYTES = 64 << 20
"""Of one streamed answer, some hundreds of bytes a token."""
MAX_EVENT_BYTES = 1 << 20
"""Of one event of a stream, which is held in memory and then parsed."""
MAX_ERROR_BYTES = 64 << 10
"""Of the body of an error; the rest is not read."""
LOGGED_CHARS = 1000

_READ_CHARS = 8 * LOGGED_CHARS
"""What is searched for secrets before it is cut, so that no half of one is left at the cut."""
_LOGGED_HEADERS = ("content-type", "retry-after", "server", "x-request-id")
_EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")

_Kind = type[TritonragError]

_STATUSES: dict[int, tuple[_Kind, str]] = {
    401: (InternalError, "refused the server's key"),
    403: (InternalError, "refused the server's key"),
    404: (InternalError, "does not know the path or the model"),
    408: (Unavailable, "gave up waiting"),
    413: (InvalidRequest, "takes no prompt of this size"),
    429: (Unavailable, "is overloaded"),
}
_CLASSES: dict[int, tuple[_Kind, str]] = {
    3: (InternalError, "answered with a redirect, which is not followed"),
    4: (InvalidRequest, "refused the request"),
    5: (Unavailable, "failed"),
}


class BadReply(Exception):
    """The endpoint answered what no answer is: ``what`` for the caller, ``said`` for the log."""

    def __init__(self, what: str, said: str = "") -> None:
        """Take what the endpoint did, as the verb of a sentence, and what it said."""
        super().__init__(said)
        self.what = what


def openai_client(settings: RemoteLlmSettings) -> openai.AsyncOpenAI:
    """Return a client that follows no redirect and reads only so much of a reply.

    A redirect would take question and passages to where the operator never sent them. Proxies of
    the environment are used.
    """
    timeout = openai.Timeout(settings.timeout_s, connect=min(5.0, settings.timeout_s))
    return openai.AsyncOpenAI(
        base_url=settings.url,
        api_key=settings.key or "none",
        timeout=timeout,
        max_retries=1,
        default_headers={"Accept-Encoding": "identity"},
        http_client=openai.DefaultAsyncHttpxClient(
            follow_redirects=False, event_hooks={"response": [_bound]}
        ),
    )


def failure(error: Exception, settings: RemoteLlmSettings) -> TritonragError:
    """Log what went wrong and return what the caller is told of it."""
    kind, what, said = _understood(error, settings.timeout_s)
    log_id = secrets.token_hex(4)
    safe = redacted(said[:_READ_CHARS], settings.key)[:LOGGED_CHARS]
    LOG.error("log id %s: LLM endpoint %s %s: %s", log_id, settings.url, what, _one_line(safe))
    return kind(f"the LLM endpoint {what}; the server's log has more under log id {log_id}")


def _understood(error: Exception, timeout_s: float) -> tuple[_Kind, str, str]:
    """Return the error for the caller, what the endpoint did, and what it said."""
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return Unavailable, f"gave no answer within {timeout_s:g} s", ""
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        reached = not isinstance(cause, (httpx2.ConnectError, httpx2.ProxyError))
        what = "broke off its answer" if reached else "cannot be reached"
        return Unavailable, what, f"{type(cause).__name__}: {cause}"
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        kind, what = _STATUSES.get(status) or _CLASSES.get(status // 100, (InternalError, "failed"))
        headers = {name: error.response.headers.get(name, "") for name in _LOGGED_HEADERS}
        known = {name: value for name, value in headers.items() if value}
        return kind, f"{what} ({status})", f"{error.message} {json.dumps(known)}"
    if isinstance(error, openai.OpenAIError):
        said = f"{error} {getattr(error, 'body', '')}"
        return InternalError, "reported an error within its answer", said
    if isinstance(error, BadReply):
        return InternalError, error.what, str(error)
    return InternalError, "sent a bad reply", f"{type(error).__name__}: {error}"


def _one_line(text: str) -> str:
    """Return text in quotes with control characters as escapes: a log has one line a failure."""
    return repr(text.encode(errors="backslashreplace").decode())


async def _bound(response: httpx2.Response) -> None:
    """Let no more of a reply be read than is sensible; it was asked for without compression."""
    response.headers.pop("content-encoding", None)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream, error=not response.is_success)


class _Bounded(httpx2.AsyncByteStream):
    """A reply's bytes: those of an error up to a limit, of an answer with one for each event."""

    def __init__(self, stream: httpx2.AsyncByteStream, *, error: bool) -> None:
        self._stream = stream
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = event = 0
        before = b""
        async for part in self._stream:
            read += len(part)
            if self._error:
                yield part
                if read >= MAX_ERROR_BYTES:
                    return
                continue
            event, before = _grown(event, before, part)
            if read > MAX_REPLY_BYTES or event > MAX_EVENT_BYTES:
                raise BadReply("sent more than an answer can be", f"{read} bytes, {event} in one")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _grown(event: int, before: bytes, part: bytes) -> tuple[int, bytes]:
    """Return how many bytes the event at the end has after ``part``, and what to keep as before."""
    window = before + part
    end = max(window.rfind(each) for each in _EVENT_ENDS)
    return (event + len(part) if end < 0 else len(window) - end), window[-3:]


def count(value: Any) -> int | None:
    """Return a number of tokens as an endpoint reported it; None where it is no such number."""
    return value if type(value) is int and 0 <= value < 2**53 else None
