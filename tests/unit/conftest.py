"""A fake server that speaks both protocols."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_triton import FakeTriton


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.close()
