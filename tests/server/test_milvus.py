"""The graph over Milvus Lite: the server starts without it, and answers once it is there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from milvus_lite.adapter.grpc.server import start_server_in_thread
from servers import HANDBOOK, add, serve

from tritonrag.client import Client
from tritonrag.errors import Unavailable
from tritonrag.server.ports import free_ports


def test_search_goes_on_when_milvus_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_ports().http
    monkeypatch.setenv("VECTOR_DB_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("VECTOR_DB_TIMEOUT", "2")
    for served in serve(tmp_path):
        with Client(served.grpc) as client:
            with pytest.raises(Unavailable, match=f"Milvus at 127.0.0.1:{port}"):
                client.search("How many days of leave?")
            lite, database, _ = start_server_in_thread(str(tmp_path / "milvus"), port=port)
            try:
                time.sleep(1.5)  # the longest that a server takes to try again
                add(served, HANDBOOK)
                found = client.search("How many days of leave?", top_k=3)
                assert len(found) == 3
                assert "leave" in found[0].source
            finally:
                lite.stop(0).wait()
                database.close()
            with pytest.raises(Unavailable):
                client.search("How many days of leave?")
