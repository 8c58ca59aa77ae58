"""The error tree and its mapping to status names."""

from __future__ import annotations

import pytest

from tritonrag import errors
from tritonrag.errors import InternalError, RequestError, ServiceError, TritonragError, from_code

LEAVES = (
    errors.InvalidRequest, errors.NotFound, errors.Cancelled, errors.Unavailable,
    errors.DeadlineExceeded, errors.SetupError, errors.InternalError,
)  # fmt: skip


@pytest.mark.parametrize("kind", LEAVES)
def test_a_code_leads_back_to_its_error(kind: type[TritonragError]) -> None:
    found = from_code(kind.code, "why")

    assert type(found) is kind
    assert str(found) == "why"


def test_the_callers_faults_are_apart_from_ours() -> None:
    ours = [kind for kind in LEAVES if issubclass(kind, ServiceError)]
    theirs = [kind for kind in LEAVES if issubclass(kind, RequestError)]

    assert len(ours) + len(theirs) == len(LEAVES)
    assert not set(ours) & set(theirs)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", errors.InvalidRequest),
        ("UNIMPLEMENTED", errors.SetupError),
        ("ALREADY_EXISTS", InternalError),
        ("nonsense", InternalError),
    ],
)
def test_grpc_names_and_unknown_codes(code: str, kind: type[TritonragError]) -> None:
    assert type(from_code(code, "why")) is kind


def test_the_tree_is_drawn_as_it_is() -> None:
    for kind in LEAVES:
        line = next(
            line for line in str(errors.__doc__).splitlines() if f" {kind.__name__} " in line
        )
        assert f" {kind.code}" in line
