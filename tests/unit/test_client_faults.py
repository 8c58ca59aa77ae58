"""What the protocols report to the error tree."""

from __future__ import annotations

import httpx
import pytest

from tritonrag import errors
from tritonrag.client.faults import Deadline, from_http, from_stream, from_triton, http_errors


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("INVALID_ARG: question: is empty or blank", errors.InvalidRequest),
        ("in ensemble 'rag', INVALID_ARG: top_k: 101 is not in 1 to 100", errors.InvalidRequest),
        ("in ensemble 'rag', NOT_FOUND: collection: no collection is 'x'", errors.NotFound),
        ("UNAVAILABLE: generate: its queue is full (64 generations)", errors.Unavailable),
        ("INTERNAL: internal error; the server's log has the cause", errors.InternalError),
        ("Request for unknown model: 'rag' is not found", errors.NotFound),
        ("Request timeout expired", errors.Unavailable),
        ("[request id: 1] Exceeds maximum queue size", errors.Unavailable),
        ("unexpected inference input 'colour' for model 'rag'", errors.InvalidRequest),
        ("in ensemble 'rag', Stub process 'embed_0_0' is not healthy.", errors.Unavailable),
        ("Request for unknown model: 'rag' has no available versions", errors.Unavailable),
        ("something nobody thought of", errors.InternalError),
    ],
)
def test_a_streamed_error_is_known_by_its_text(message: str, error: type[Exception]) -> None:
    found = from_stream(message)
    assert type(found) is error
    assert not str(found).startswith(found.code)


def test_the_prefixes_of_triton_go() -> None:
    found = from_triton("INVALID_ARGUMENT", "in ensemble 'a', in ensemble 'b', [request id: 7] no")
    assert str(found) == "no"


@pytest.mark.parametrize(
    "message",
    [
        "in ensemble 'search', Stub process 'tokenize_0_0' is not healthy.",
        "Request for unknown model: 'tokenize' has no available versions",
    ],
)
def test_a_model_whose_process_ended_is_named_and_unavailable(message: str) -> None:
    found = from_triton("INTERNAL", message)
    assert type(found) is errors.Unavailable
    assert "tokenize" in str(found)


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
