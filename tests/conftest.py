"""Marks every test with the name of its folder under ``tests/``."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FOLDERS = ("unit", "models", "contract", "server", "browser")


def pytest_configure() -> None:
    """Let programs that tests start hear Ctrl-C also where this run ignores it, as under nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(f"{item.path}: tests lie in one of {', '.join(FOLDERS)}")
        item.add_marker(folder)
