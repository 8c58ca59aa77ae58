"""A fake server that speaks both protocols, and a log that can be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fake_triton import FakeTriton


@pytest.fixture(autouse=True)
def heard() -> None:
    """Let a test read what the package logs: libraries that others loaded may have silenced it."""
    logging.disable(logging.NOTSET)
    logging.getLogger("tritonrag").setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "tritonrag" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.close()
