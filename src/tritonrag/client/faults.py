"""The protocols' statuses to tritonrag's errors, in one place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import httpx

from tritonrag.errors import DeadlineExceeded, TritonragError, Unavailable, from_code

_HTTP_CODES = {
    400: "INVALID_ARG",
    404: "NOT_FOUND",
    499: "CANCELLED",
    501: "UNSUPPORTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_PREFIX = re.compile(r"^(?:in ensemble '[^']*', |\[request id: [^\]]*\] )+")


def from_triton(code: str, message: str) -> TritonragError:
    """Return the error for a status name, without what Triton put before the model's message."""
    return from_code(code, _PREFIX.sub("", message))


def from_http(status: int, message: str) -> TritonragError:
    """Return the error for an HTTP status and the message of its body."""
    return from_triton(_HTTP_CODES.get(status, "INTERNAL"), message)


def deadline(timeout: float | None) -> DeadlineExceeded:
    """Return the error for an answer that did not come in time."""
    return DeadlineExceeded(f"no complete answer within {timeout:g} s" if timeout else "too late")


@contextmanager
def grpc_errors(url: str, timeout: float | None) -> Iterator[None]:
    """Raise what gRPC raises as an error of the tree."""
    try:
        yield
    except grpc.RpcError as error:
        raise _from_rpc(error, url, timeout) from error
    except ValueError as error:
        if "closed channel" not in str(error):
            raise
        raise Unavailable("the client is closed") from error


@contextmanager
def http_errors(url: str, timeout: float | None) -> Iterator[None]:
    """Raise what httpx raises as an error of the tree."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise deadline(timeout) from error
    except httpx.ConnectError as error:
        raise _unreachable(url) from error
    except httpx.TransportError as error:
        raise _lost(url, str(error)) from error
    except RuntimeError as error:
        if "client has been closed" not in str(error):
            raise
        raise Unavailable("the client is closed") from error


def _from_rpc(error: grpc.RpcError, url: str, timeout: float | None) -> TritonragError:
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline(timeout)
    # A status that gRPC makes up itself does not come "from peer".
    if code is grpc.StatusCode.UNAVAILABLE and "from peer" not in error.debug_error_string():
        return _unreachable(url) if "connect" in message else _lost(url, message)
    return from_triton(code.name, message)


def _unreachable(url: str) -> Unavailable:
    return Unavailable(f"no server at {url}; start it with `tritonrag up`")


def _lost(url: str, reason: str) -> Unavailable:
    return Unavailable(f"lost the server at {url} ({reason}); `tritonrag status` says how it is")
