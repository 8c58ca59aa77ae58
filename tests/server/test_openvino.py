"""The embedder on OpenVINO in the real server: the variant `openvino` beside the plain graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from servers import REPOSITORY, Served

from tritonrag.client import Client
from tritonrag.server.ports import free_ports
from tritonrag.server.process import EmbeddedServer

pytest.importorskip("openvino")

QUESTIONS = ["How many days of annual leave do I get?", "password length", "parental leave"]


def test_it_embeds_and_finds_as_the_plain_graph_does(served: Served, tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "state")
    running = server.start(
        REPOSITORY, served.index_dir, free_ports(), config="openvino", bound_to_parent=True
    )
    try:
        with Client(served.grpc) as plain, Client(f"127.0.0.1:{running.ports.grpc}") as client:
            cosines = (client.embed(QUESTIONS, "query") * plain.embed(QUESTIONS, "query")).sum(1)
            assert np.all(cosines > 0.999), cosines
            for question in QUESTIONS:
                first, wanted = (each.search(question, top_k=1)[0].id for each in (client, plain))
                assert first == wanted
    finally:
        server.stop()
