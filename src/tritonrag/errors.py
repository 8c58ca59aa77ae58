"""The error tree of tritonrag, and its one mapping to and from Triton's status codes.

    TritonragError                 code
    ├── RequestError               (the caller's fault: change the request)
    │   ├── InvalidRequest         INVALID_ARG
    │   ├── NotFound               NOT_FOUND
    │   └── Cancelled              CANCELLED
    └── ServiceError               (ours: the same request may work later)
        ├── Unavailable            UNAVAILABLE
        │   └── Unreachable        UNAVAILABLE (seen by the client; never sent by a model)
        ├── DeadlineExceeded       DEADLINE_EXCEEDED (the client's own clock; never sent by a model)
        ├── SetupError             UNSUPPORTED (this machine or installation lacks something)
        └── InternalError          INTERNAL

This module knows neither ``pb_utils`` nor ``tritonclient``: the code is a name, which
``tritonrag.backend`` turns into a ``TritonError`` and ``tritonrag.client`` reads back. Triton drops
the code of an error in a stream, so that every message starts with it (:func:`tagged`).
"""

from __future__ import annotations

from typing import ClassVar


class TritonragError(Exception):
    """Base of every error that tritonrag raises on purpose; ``code`` names Triton's status."""

    code: ClassVar[str] = "INTERNAL"


class RequestError(TritonragError):
    """The request is at fault and would fail again as it is."""

    code = "INVALID_ARG"


class InvalidRequest(RequestError):
    """A field is missing, malformed or out of range."""

    code = "INVALID_ARG"


class NotFound(RequestError):
    """The request names a collection, model or snapshot that does not exist."""

    code = "NOT_FOUND"


class Cancelled(RequestError):
    """The caller cancelled the request."""

    code = "CANCELLED"


class ServiceError(TritonragError):
    """The service is at fault; the request may be sent again."""

    code = "INTERNAL"


class Unavailable(ServiceError):
    """The server cannot be reached, is starting, or a queue is full."""

    code = "UNAVAILABLE"


class Unreachable(Unavailable):
    """No server answers at the address."""


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before the answer was complete."""

    code = "DEADLINE_EXCEEDED"


class SetupError(ServiceError):
    """This machine or installation lacks something; the message says what to do about it."""

    code = "UNSUPPORTED"


class InternalError(ServiceError):
    """Something failed that should not; the server's log holds the cause."""

    code = "INTERNAL"


_BY_CODE: dict[str, type[TritonragError]] = {
    error.code: error
    for error in (
        InvalidRequest, NotFound, Cancelled, Unavailable, DeadlineExceeded, SetupError,
        InternalError,
    )
}  # fmt: skip


def tagged(error: TritonragError) -> str:
    """Return the message as the server sends it: the code, a colon and the text."""
    return f"{error.code}: {error}"


def from_tagged(message: str) -> TritonragError | None:
    """Return the error that :func:`tagged` wrote, or None where the message is not of that form."""
    code, _, text = message.partition(": ")
    return from_code(code, text) if code in _BY_CODE and text else None


def from_code(code: str, message: str) -> TritonragError:
    """Return the error for a Triton or gRPC status name such as ``INVALID_ARG``.

    gRPC spells some codes differently (``INVALID_ARGUMENT``, ``UNIMPLEMENTED``); unknown codes
    become :class:`InternalError`.
    """
    spelled = {"INVALID_ARGUMENT": "INVALID_ARG", "UNIMPLEMENTED": "UNSUPPORTED"}.get(code, code)
    return _BY_CODE.get(spelled, InternalError)(message)
