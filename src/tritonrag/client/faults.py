"""The protocols' statuses to tritonrag's errors, in one place."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import grpc
import httpx

from tritonrag.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    TritonragError,
    Unavailable,
    Unreachable,
    from_code,
    from_tagged,
)

T = TypeVar("T")

_HTTP_CODES = {
    400: "INVALID_ARG",
    404: "NOT_FOUND",
    499: "CANCELLED",
    501: "UNSUPPORTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_STREAMED = {
    "UNAVAILABLE": re.compile(r"timeout expired|maximum queue size", re.I),
    "NOT_FOUND": re.compile(r"unknown model", re.I),
    "INVALID_ARG": re.compile(r"inference input|number of inputs", re.I),
}
"""What Triton's own errors in a stream say, by the code that it leaves out there."""

_BEING_REPLACED = re.compile(
    r"stub process \S+ is not healthy|has no available versions|is not at ready state", re.I
)
"""What Triton says of a model whose process has died, until the watchdog has replaced it."""

_NO_RETRIEVE_K = "unexpected inference input 'retrieve_k'"
"""How Triton refuses an input that its model does not have."""

_PREFIX = re.compile(r"^(?:in ensemble '[^']*', |\[request id: [^\]]*\] )+")

# gRPC reports its own troubles under the codes that a server uses; only the text tells them apart.
_UNREACHABLE = re.compile("failed to connect|DNS resolution failed|.*name resolution", re.I)
_LOST = re.compile(
    "socket closed|connection reset|recvmsg|stream removed|goaway|.*disconnect", re.I
)


def from_triton(code: str, message: str) -> TritonragError:
    """Return the error for a status name, without what Triton put before the model's message."""
    text = _PREFIX.sub("", message)
    if _NO_RETRIEVE_K in text:
        return no_reranker()
    if _BEING_REPLACED.search(text):
        return Unavailable(f"a model is being replaced ({text}); try again in a few seconds")
    return from_tagged(text) or from_code(code, text)


def no_reranker() -> InvalidRequest:
    """Return the error for ``retrieve_k`` sent to a server that cannot use it."""
    return InvalidRequest(
        "retrieve_k: this server has no reranker; leave it out, or start the server with "
        "`tritonrag up --config rerank`"
    )


def from_http(status: int, message: str) -> TritonragError:
    """Return the error for an HTTP status and the message of its body."""
    return from_triton(_HTTP_CODES.get(status, "INTERNAL"), message)


def from_stream(message: str) -> TritonragError:
    """Return the error for one that came in a stream, where Triton sends its text alone.

    Over HTTP each such error has status 400, whatever happened. Over gRPC the header
    ``triton_grpc_error`` asks for a status, but release 24.10 then crashes (signal 11) on some of
    the failing streams. The models put the code into the text; Triton itself does not.
    """
    codes = (code for code, texts in _STREAMED.items() if texts.search(message))
    return from_triton(next(codes, "INTERNAL"), message)


class Deadline:
    """The end of the time that a call may take, in all; ``None`` seconds is for ever."""

    def __init__(self, seconds: float | None) -> None:
        """Start the clock."""
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Return the seconds left, not below 0."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise ``TimeoutError`` once no time is left."""
        if self.remaining() == 0:
            raise TimeoutError

    def error(self) -> DeadlineExceeded:
        """Return the error for an answer that did not come in time."""
        return _late(self.seconds)


@contextmanager
def grpc_errors(url: str, timeout: float | None) -> Iterator[None]:
    """Raise what gRPC raises as an error of the tree."""
    try:
        yield
    except grpc.RpcError as error:
        raise _from_rpc(error, url, timeout) from error
    except (ValueError, grpc.aio.UsageError) as error:
        if "closed" not in str(error):
            raise
        raise Unavailable("the client is closed") from error


@contextmanager
def http_errors(url: str, deadline: Deadline) -> Iterator[None]:
    """Raise what httpx raises as an error of the tree."""
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        raise deadline.error() from error
    except httpx.ConnectError as error:
        raise _unreachable(url) from error
    except httpx.TransportError as error:
        late = deadline.remaining() == 0
        raise (deadline.error() if late else _lost(url, str(error))) from error
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"url: {url!r} is none ({error})") from error
    except RuntimeError as error:
        if "client has been closed" not in str(error):
            raise
        raise Unavailable("the client is closed") from error


def understood(read: Callable[..., T]) -> Callable[..., T]:
    """Turn whatever goes wrong in reading a response into an error that says where to look."""

    @wraps(read)
    def reading(*args: Any) -> T:
        try:
            return read(*args)
        except (LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
            raise InternalError(
                f"the server answered what this client does not understand ({error!r}); "
                "are both of the same version?"
            ) from error

    return reading


def _from_rpc(error: grpc.RpcError, url: str, timeout: float | None) -> TritonragError:
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _late(timeout)
    if code is grpc.StatusCode.UNAVAILABLE and _UNREACHABLE.match(message):
        return _unreachable(url)
    if code is grpc.StatusCode.UNAVAILABLE and _LOST.match(message):
        return _lost(url, message)
    return from_triton(code.name, message)


def _late(seconds: float | None) -> DeadlineExceeded:
    return DeadlineExceeded(f"no complete answer within {seconds or 0:g} s")


def _unreachable(url: str) -> Unreachable:
    return Unreachable(f"no server at {url}; start it with `tritonrag up`")


def _lost(url: str, reason: str) -> Unavailable:
    return Unavailable(f"lost the server at {url} ({reason}); `tritonrag status` says how it is")
