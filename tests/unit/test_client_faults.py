"""What the protocols report to the error tree."""

from __future__ import annotations

import httpx
import pytest

from tritonrag import errors
from tritonrag.client.faults import Deadline, from_http, from_stream, from_triton, http_errors


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("question: is empty or blank", errors.InvalidRequest),
        ("in ensemble 'rag', top_k: 101 is not in 1 to 100", errors.InvalidRequest),
        ("in ensemble 'rag', collection: no collection is called 'x'", errors.NotFound),
        ("Request for unknown model: 'rag' is not found", errors.NotFound),
        ("collection: is '', expected a name", errors.InvalidRequest),
        ("generate: its queue is full (64 generations); try again later", errors.Unavailable),
        ("Request timeout expired", errors.Unavailable),
        ("[request id: 1] Exceeds maximum queue size", errors.Unavailable),
        ("LLM endpoint http://h/v1: cannot be reached; check", errors.Unavailable),
        ("LLM endpoint http://h/v1 answered 503: busy", errors.Unavailable),
        ("LLM endpoint http://h/v1 answered 400: no such model", errors.InvalidRequest),
        ("internal error; the server's log has the cause", errors.InternalError),
        ("generate: the engine failed: out of memory", errors.InternalError),
        ("something nobody thought of", errors.InternalError),
    ],
)
def test_a_streamed_error_is_known_by_its_text(message: str, error: type[Exception]) -> None:
    assert type(from_stream(message)) is error


def test_the_prefixes_of_triton_go() -> None:
    found = from_triton("INVALID_ARGUMENT", "in ensemble 'a', in ensemble 'b', [request id: 7] no")
    assert str(found) == "no"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, errors.InvalidRequest),
        (404, errors.NotFound),
        (500, errors.InternalError),
        (503, errors.Unavailable),
        (504, errors.DeadlineExceeded),
        (418, errors.InternalError),
    ],
)
def test_http_statuses(status: int, error: type[Exception]) -> None:
    assert type(from_http(status, "m")) is error


def test_a_lost_connection_is_unavailable_or_late() -> None:
    with pytest.raises(errors.Unavailable, match="lost the server at h:1"), \
            http_errors("h:1", Deadline(5)):  # fmt: skip
        raise httpx.RemoteProtocolError("peer closed")
    with pytest.raises(errors.DeadlineExceeded, match="within 0 s"), \
            http_errors("h:1", Deadline(0)):  # fmt: skip
        raise httpx.RemoteProtocolError("peer closed")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), http_errors("h:1", Deadline(None)):
        raise KeyError
