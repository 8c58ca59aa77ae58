"""Who may stop a generation, and how long one whose caller vanished may keep others waiting."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import tritonclient.grpc as triton
from raw import inputs, stream
from servers import Served, serve, set_parameters
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tritonrag.client import Client
from tritonrag.client.over_http import HttpTransport
from tritonrag.contract import MAX_KEY_BYTES

KEY, OTHER = "a secret that only we know", "a secret that is another's"
QUESTION = "How many days of leave?"
LONG = {"question": QUESTION, "max_tokens": 8000}
CROWD = 64
LEAVING = {"question": QUESTION, "max_tokens": 4000}
"""A minute and more of work for the local engine, if 64 ask for it."""


def cancel_over_grpc(served: Served, key: str) -> list[dict[str, str]]:
    return list(stream(served.grpc, "cancel", cancel_key=key))


def cancel_over_http(served: Served, key: str) -> list[dict[str, str]]:
    with post(served, "cancel", {"cancel_key": key}) as sent, sent.makefile("r") as answer:
        lines = answer.read().splitlines()
    events = (json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:"))
    return [{"finish_reason": event["finish_reason"]} for event in events]


def post(served: Served, model: str, body: dict[str, Any]) -> socket.socket:
    """Send a question over a bare socket and leave the answer in it."""
    raw = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", served.running.ports.http), timeout=10)
    connection.sendall(
        f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        + raw
    )
    return connection


Cancel = Callable[[Served, str], list[dict[str, str]]]
CANCELS = pytest.mark.parametrize("cancel", [cancel_over_grpc, cancel_over_http])


@CANCELS
def test_the_key_stops_an_answer_through_the_ensemble_cancel(
    endless: Served, cancel: Cancel
) -> None:
    responses = stream(endless.grpc, cancel_key=KEY, **LONG)
    next(responses)
    began = time.monotonic()

    assert cancel(endless, KEY) == [{"finish_reason": "cancelled"}]
    assert list(responses)[-1]["finish_reason"] == "cancelled"
    assert time.monotonic() - began < 2


@CANCELS
def test_a_wrong_key_changes_nothing_and_learns_nothing(endless: Served, cancel: Cancel) -> None:
    responses = stream(endless.grpc, cancel_key=KEY, **LONG)
    next(responses)

    assert cancel(endless, OTHER) == [{"finish_reason": "cancelled"}], "as for the right one"
    assert still_streams(responses)
    cancel(endless, KEY)
    assert list(responses)[-1]["finish_reason"] == "cancelled"


def test_a_request_id_stops_nothing(endless: Served) -> None:
    """Ids are seen by proxies and in logs, and are often guessed."""
    request_id = "0123456789abcdef0123"
    responses = stream(endless.grpc, request_id=request_id, cancel_key=KEY, **LONG)
    next(responses)
    for model, field in (("cancel", "cancel_key"), ("generate", "cancel")):
        list(stream(endless.grpc, model, request_id, **{field: OTHER}))
        list(stream(endless.grpc, model, **{field: request_id}))

    assert still_streams(responses)
    list(stream(endless.grpc, "generate", cancel=KEY))
    assert list(responses)[-1]["finish_reason"] == "cancelled"


def test_a_cancel_before_a_strangers_question_changes_nothing(endless: Served) -> None:
    request_id = "the-next-one-to-be-asked"
    for key in (request_id, OTHER):
        list(stream(endless.grpc, "cancel", request_id, cancel_key=key))
    few = {"question": QUESTION, "max_tokens": 5}

    for key in ({}, {"cancel_key": KEY}):
        *_, last = stream(endless.grpc, request_id=request_id, **few, **key)
        assert last["finish_reason"] == "length"


def test_a_cancel_that_overtakes_its_own_question_counts(endless: Served) -> None:
    cancel_over_grpc(endless, KEY)

    (only,) = stream(endless.grpc, cancel_key=KEY, **LONG)

    assert only["finish_reason"] == "cancelled"


def test_keys_are_bounded_in_length_and_cancels_that_wait_in_number(endless: Served) -> None:
    """400 keys and ids of 1 MB, then more short ones than are kept: no memory is."""
    long = [("k" * 10**6, "i" * 10**6)] * 400
    short = [(f"{number:0{MAX_KEY_BYTES}}", "i" * 10**4) for number in range(3000)]
    assert set(cancelled(endless, long[:5])) == {"refused"}
    before = own_memory(endless)

    assert cancelled(endless, long) == ["refused"] * 400
    assert cancelled(endless, short) == ["cancelled"] * 3000
    assert own_memory(endless) - before < 20


def cancelled(served: Served, asked: list[tuple[str, str]]) -> list[str]:
    """Send cancels, each a key and a request id, on one stream and return how each was answered."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def answered(result: Any, error: InferenceServerException | None) -> None:
        if error:
            expected = "cancel: is 1000000 bytes, expected a secret of 16 to 128 bytes"
            answers.put("refused" if expected in error.message() else error.message())
        else:
            answers.put(result.as_numpy("finish_reason").item().decode())

    with triton.InferenceServerClient(served.grpc) as client:
        client.start_stream(answered)
        for key, request_id in asked:
            client.async_stream_infer("cancel", inputs(cancel_key=key), request_id=request_id)
        return [answers.get(timeout=60) for _ in asked]


def own_memory(served: Served) -> float:
    """Return the MB that the process of `generate` has of its own, without shared memory."""
    (process,) = [
        each
        for each in psutil.Process(served.running.pid).children()
        if any(part.endswith("/generate/1/model.py") for part in each.cmdline())
    ]
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / 1e6


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_client_never_calls_generate_to_cancel(
    endless: Served, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway may open `search`, `rag` and `cancel` alone."""
    with Client(getattr(endless, protocol), protocol) as client:
        called = []
        transport = client._transport
        send = transport.stream

        def spied(call: Any, timeout: float | None) -> Any:
            called.append(call.model.name)
            return send(call, timeout)

        monkeypatch.setattr(transport, "stream", spied)
        with client.ask(QUESTION, max_tokens=8000) as answer:
            next(answer)
            answer.cancel()
            assert answer.read().finish_reason == "cancelled"

    assert called == ["rag", "cancel"]
    assert isinstance(transport, HttpTransport) == (protocol == "http")


@pytest.fixture(scope="module")
def capped(endless: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same graph with an operator's tight caps."""
    folder = tmp_path_factory.mktemp("capped")
    models = Path(shutil.copytree(endless.running.repository, folder / "models"))
    caps = {"max_tokens": 4000, "max_seconds": 1, "caller_generations": CROWD // 16}
    set_parameters(models, queue_size=2 * CROWD, **caps)
    shutil.copytree(endless.index_dir, folder / "index")
    yield from serve(folder, models)


def test_more_tokens_than_the_cap_are_refused(capped: Served) -> None:
    expected = "INVALID_ARG: max_tokens: is 4001, expected 1 to 4000 .*the operator's cap"
    with pytest.raises(InferenceServerException, match=expected):
        list(stream(capped.grpc, question=QUESTION, max_tokens=4001))


def vanish_over_http(served: Served, caller: str) -> None:
    post(served, "rag", LEAVING | ({"caller": caller} if caller else {})).close()


def vanish_over_grpc(served: Served, caller: str) -> None:
    """Close the connection without a word; Triton does not tell a step of an ensemble."""
    tensors = inputs(**LEAVING | ({"caller": caller} if caller else {}))
    request = service_pb2.ModelInferRequest(model_name="rag")
    request.inputs.extend(tensor._get_tensor() for tensor in tensors)
    request.raw_input_contents.extend(tensor._get_content() for tensor in tensors)
    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="Deadline Exceeded"):
            list(stub.ModelStreamInfer(iter([request]), timeout=0.05))


@pytest.mark.parametrize("vanish", [vanish_over_http, vanish_over_grpc])
@pytest.mark.parametrize("names", [False, True], ids=["one caller", "many callers"])
def test_callers_who_vanish_do_not_keep_the_next_one_waiting(
    capped: Served, vanish: Callable[[Served, str], None], names: bool
) -> None:
    """64 of them, each with 4000 tokens to come, and none of them cancels."""

    def leave(number: int) -> None:
        vanish(capped, f"caller {number}" if names else "")

    with ThreadPoolExecutor(CROWD) as threads:
        list(threads.map(leave, range(CROWD)))
    began = time.monotonic()

    assert first_text(capped, "the next one")
    assert time.monotonic() - began < 5


def first_text(served: Served, caller: str) -> str:
    """Return the first text of an answer, asking again while the server is too busy."""
    while True:
        try:
            return next(stream(served.grpc, question=QUESTION, caller=caller, max_tokens=5))["text"]
        except InferenceServerException as error:
            if "UNAVAILABLE" not in error.message():
                raise
            time.sleep(0.1)


def test_a_caller_has_so_many_generations_of_so_many_seconds(capped: Served) -> None:
    def ask(_: int) -> str:
        try:
            *_, last = stream(capped.grpc, caller="greedy", **LEAVING)
        except InferenceServerException as error:
            return error.message()
        return last["finish_reason"]

    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(ask, range(8)))

    refused = [end for end in ends if "UNAVAILABLE: generate: its caller has 4" in end]
    assert 1 <= len(refused) <= 4
    assert "length" in ends, "cut by the seconds, not by the tokens"
    assert 1 <= time.monotonic() - began < 5


@pytest.mark.parametrize("over", ["grpc", "http"])
def test_a_reader_of_generate_who_vanishes_is_noticed(endless: Served, over: str) -> None:
    """Behind no ensemble Triton tells: with a static batch the next one would wait for seconds."""
    long = {"prompt": "Once upon a time", "max_tokens": 8000}
    if over == "grpc":
        responses = stream(endless.grpc, "generate", **long)
        next(responses)
        responses.close()
    else:
        with post(endless, "generate", long) as connection:
            assert connection.recv(10)
    began = time.monotonic()
    *_, last = stream(endless.grpc, "generate", prompt="Once", max_tokens=1)

    assert last["finish_reason"] == "length"
    assert time.monotonic() - began < 2


def still_streams(responses: Iterator[dict[str, str]], count: int = 20) -> bool:
    return all(not next(responses)["finish_reason"] for _ in range(count))
