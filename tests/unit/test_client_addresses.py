"""Where a server is, and that no proxy stands before this machine."""

from __future__ import annotations

import pytest

from tritonrag.client.addresses import on_this_machine


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("127.0.0.1:8001", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("http://127.0.0.2:8000", True),
        ("triton:8001", False),
        ("https://rag.example.com", False),
        ("127.0.0.1.example.com:80", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_told_from_others(url: str, local: bool) -> None:
    assert on_this_machine(url) is local
