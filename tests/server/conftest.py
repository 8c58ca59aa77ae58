"""The servers of these tests: one over the sample handbook, one over an empty index."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import HANDBOOK, Served, serve, tritonrag


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph over the sample handbook."""
    for each in serve(tmp_path_factory.mktemp("served")):
        added = tritonrag(
            "index", "add", str(HANDBOOK), "--url", each.grpc, "--index-dir", str(each.index_dir)
        )
        assert added.returncode == 0, added.stderr
        yield each


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph with nothing indexed."""
    yield from serve(tmp_path_factory.mktemp("empty"))
