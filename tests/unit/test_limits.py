"""How many passages are found for a caller."""

from __future__ import annotations

import pytest

from tritonrag.errors import InvalidRequest
from tritonrag.limits import passages_to_find


@pytest.mark.parametrize(
    ("top_k", "retrieve_k", "least", "found"),
    [(4, None, 0, 4), (4, None, 20, 20), (30, None, 20, 30), (4, 7, 20, 7), (100, 100, 20, 100)],
)
def test_passages_to_find(top_k: int, retrieve_k: int | None, least: int, found: int) -> None:
    assert passages_to_find(top_k, retrieve_k, least) == found


@pytest.mark.parametrize(
    ("top_k", "retrieve_k", "message"),
    [
        (0, None, "top_k: 0 is not in 1 to 100"),
        (101, None, "top_k: 101 is not in 1 to 100"),
        (4, 0, "retrieve_k: 0 is not in 1 to 100"),
        (4, 101, "retrieve_k: 101 is not in 1 to 100"),
        (5, 4, "retrieve_k: 4 is under top_k, which is 5"),
    ],
)
def test_what_is_out_of_range_is_named(top_k: int, retrieve_k: int | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        passages_to_find(top_k, retrieve_k, least=20)
