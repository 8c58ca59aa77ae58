"""Questions go before passages that are embedded for an index."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import Served

from tritonrag.client import Client

CALLS = 10
PASSAGES = ["carried over days expire at the end of March unless a manager agrees " * 5] * 48
"""Two such calls are more than one batch."""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_question_goes_before_passages_that_wait(served: Served, protocol: str) -> None:
    url = served.grpc if protocol == "grpc" else served.http
    with Client(url, protocol) as client, ThreadPoolExecutor(CALLS) as threads:
        client.search("ready?")
        calls = [threads.submit(client.embed, PASSAGES, "passage") for _ in range(CALLS)]
        while not any(call.done() for call in calls):  # all others wait by now
            time.sleep(0.01)

        assert client.search("When do carried-over days expire?", top_k=1)

        assert sum(call.done() for call in calls) <= CALLS // 2
        assert all(call.result().shape == (48, 384) for call in calls)
