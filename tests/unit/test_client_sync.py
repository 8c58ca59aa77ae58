"""The blocking client over both real protocols, against models of a few lines."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_triton import USAGE, FakeTriton, keys

from tritonrag import errors
from tritonrag.client import Client, Usage
from tritonrag.contract import RERANK


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(triton: FakeTriton, protocol: str) -> Iterator[Client]:
    with Client(triton.urls[protocol], protocol, timeout=5) as connected:
        yield connected


def until(holds: Callable[[], object], seconds: float = 2.0) -> bool:
    ends = time.monotonic() + seconds
    while not holds() and time.monotonic() < ends:
        time.sleep(0.005)
    return bool(holds())


def test_search_returns_typed_passages(client: Client, triton: FakeTriton) -> None:
    found = client.search("How much leave?", top_k=3, filter={"source": ["leave.md", "ä.md"]})

    assert len(found) == 3
    assert found[0].text == "Zoë has “25” days of leave."
    assert found[0].score == 0.75
    assert found[0].extra == {"start": 3, "end": 30}
    asked = triton.models.requests[-1]
    assert asked.inputs == {
        "question": ["How much leave?"],
        "top_k": [3],
        "filter": ['{"source": ["leave.md", "ä.md"]}'],
    }
    assert asked.shapes == {"question": [1, 1], "top_k": [1, 1], "filter": [1, 1]}


def test_search_may_find_nothing(client: Client) -> None:
    assert list(client.search("x", top_k=0)) == []


def test_embed_keeps_order_and_batches_by_64(client: Client, triton: FakeTriton) -> None:
    vectors = client.embed(["x" * n for n in range(150)], role="query")

    assert vectors.dtype == np.float32
    assert vectors.shape == (150, 2)
    assert vectors[:, 0].tolist() == list(range(150))
    assert [request.shapes["text"] for request in triton.models.requests] == [
        [64, 1], [64, 1], [22, 1],
    ]  # fmt: skip
    assert triton.models.requests[2].inputs["role"] == ["query"] * 22


def test_embed_of_nothing_asks_nothing(client: Client, triton: FakeTriton) -> None:
    assert client.embed([]).shape == (0, 0)
    assert not triton.models.requests


def test_embed_from_many_threads(client: Client) -> None:
    sizes = range(1, 40)
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(lambda n: client.embed(["x" * n] * n), sizes))

    assert [v.shape[0] for v in vectors] == list(sizes)
    assert [v[0, 0] for v in vectors] == list(sizes)


def test_ask_streams_text_then_says_how_it_ended(client: Client) -> None:
    with client.ask("How much leave?") as answer:
        assert answer.citations == ()
        assert next(answer) == "Zoë "
        assert [c.mark for c in answer.citations] == [1, None]
        assert answer.citations[1].dropped == "context"
        assert answer.usage is None
        assert list(answer) == ["has 25 days [1]."]

    assert answer.finish_reason == "stop"
    assert answer.usage == Usage(**USAGE)
    assert answer.text == "Zoë has 25 days [1]."


def test_read_returns_the_whole_answer(client: Client, triton: FakeTriton) -> None:
    answer = client.ask("How much leave?").read()

    assert answer.text == "Zoë has 25 days [1]."
    assert [c.mark for c in answer.cited] == [1]
    assert answer.finish_reason == "stop"
    assert not triton.models.cancelled


def test_every_option_reaches_the_model(client: Client, triton: FakeTriton) -> None:
    client.ask(
        "x",
        top_k=2,
        collection="hr",
        filter='{"title": "Leave"}',
        groups=("hr", "ä"),
        history=[{"role": "user", "content": "hi"}],
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k_sampling=4,
        seed=2**40,
        stop=["a", "b"],
        grounding="free",
        caller="ada",
    ).read()

    assert triton.models.requests[-1].model == "rag"
    assert triton.models.requests[-1].inputs == {
        "question": ["x"],
        "top_k": [2],
        "collection": ["hr"],
        "filter": ['{"title": "Leave"}'],
        "groups": ['["hr", "ä"]'],
        "history": ['[{"role": "user", "content": "hi"}]'],
        "max_tokens": [9],
        "temperature": [0.5],
        "top_p": [0.25],
        "top_k_sampling": [4],
        "seed": [2**40],
        "stop": ["a", "b"],
        "grounding": ["free"],
        "caller": ["ada"],
        "cancel_key": keys(triton),
    }


def test_retrieve_k_reaches_a_server_with_a_reranker(client: Client, triton: FakeTriton) -> None:
    triton.models.variant = RERANK
    client.search("x", top_k=2, retrieve_k=30)
    client.ask("x", retrieve_k=40).read()

    search, rag = triton.models.requests[-2:]
    assert search.inputs == {"question": ["x"], "top_k": [2], "retrieve_k": [30]}
    assert rag.inputs == {"question": ["x"], "retrieve_k": [40], "cancel_key": keys(triton)}


def test_retrieve_k_without_a_reranker_says_what_to_do(client: Client) -> None:
    for asked in (lambda: client.search("x", retrieve_k=9), client.ask("x", retrieve_k=9).read):
        with pytest.raises(errors.InvalidRequest, match=r"no reranker.*--config rerank"):
            asked()


def test_generate_asks_the_bare_model(client: Client, triton: FakeTriton) -> None:
    assert client.generate("Once", stop="x").read().text == "Zoë has 25 days [1]."
    assert triton.models.requests[-1].model == "generate"
    inputs = {"prompt": ["Once"], "stop": ["x"], "cancel_key": keys(triton)}
    assert triton.models.requests[-1].inputs == inputs


def test_many_answers_at_once_on_one_client(client: Client) -> None:
    streams = [client.ask(f"question {n}") for n in range(8)]
    assert [next(stream) for stream in streams] == ["Zoë "] * 8
    assert [stream.read().text for stream in streams] == ["Zoë has 25 days [1]."] * 8


def test_an_answer_that_says_it_failed_raises(client: Client) -> None:
    stream = client.ask("breaks")
    with pytest.raises(errors.InternalError, match="the engine broke"):
        list(stream)
    assert stream.text == "Zoë "


def test_an_answer_that_stops_short_raises(client: Client) -> None:
    with pytest.raises(errors.InternalError, match="cut off"):
        client.ask("cut off").read()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"question": " "}, errors.InvalidRequest, "question: is blank"),
        ({"question": "x", "collection": "nope"}, errors.NotFound, "collection: no collection is"),
        ({"question": "busy"}, errors.Unavailable, "generate: its queue is full"),
        ({"question": "bug"}, errors.InternalError, "internal error; log id 1"),
    ],
)
def test_errors_keep_their_kind_and_lose_tritons_prefix(
    client: Client, options: dict[str, str], error: type[Exception], message: str
) -> None:
    for ask in (client.search, lambda **given: client.ask(**given).read()):
        with pytest.raises(error) as raised:
            ask(**options)
        assert type(raised.value) is error
        assert str(raised.value).startswith(message)


def test_no_server_says_how_to_start_one(protocol: str) -> None:
    with Client("127.0.0.1:9", protocol) as client:
        for ask in (client.search, lambda text: client.ask(text).read(), client.embed):
            with pytest.raises(
                errors.Unavailable, match="no server at 127.0.0.1:9; .*tritonrag up"
            ):
                ask(["x"] if ask == client.embed else "x")  # type: ignore[arg-type]
        assert not client.ready()
        assert "no server" in client.health().reason


def test_health_tells_of_each_model(triton: FakeTriton) -> None:
    with Client(triton.urls["grpc"]) as client:
        health = client.health()

    assert health.live
    assert not health.ready
    assert health.versions == {"search": [1], "rag": [1], "generate": [1]}


def test_leaving_the_block_cancels(client: Client, triton: FakeTriton) -> None:
    with client.ask("endless") as stream:
        for _ in stream:
            break
    assert triton.models.cancelled == keys(triton)
    assert until(lambda: not triton.models.open)
    assert list(stream) == []


def test_a_generation_is_cancelled_at_the_version_that_was_called(
    client: Client, triton: FakeTriton
) -> None:
    with client.generate("endless") as stream:
        next(stream)
    assert triton.models.cancelled == keys(triton)
    assert [each.model for each in triton.models.requests] == ["generate", "generate"]


def test_dropping_a_stream_cancels(client: Client, triton: FakeTriton) -> None:
    for _ in client.ask("endless"):
        break
    gc.collect()
    assert until(lambda: triton.models.cancelled)


def test_ctrl_c_cancels(
    client: Client, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = client.ask("endless")
    next(stream)

    def pressed(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(stream._progress, "take", pressed)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert triton.models.cancelled == keys(triton)


def test_closing_the_client_cancels_what_runs(triton: FakeTriton, protocol: str) -> None:
    with Client(triton.urls[protocol], protocol) as client:
        stream = client.ask("endless")
        next(stream)
    assert triton.models.cancelled == keys(triton)
    stream.close()


def test_a_stream_that_never_began_cancels_nothing(client: Client, triton: FakeTriton) -> None:
    with client.ask("endless"):
        pass
    assert not triton.models.requests


def test_cancel_from_another_thread_ends_the_answer(client: Client) -> None:
    stream = client.ask("endless")
    next(stream)
    canceller = threading.Timer(0.05, stream.cancel)
    canceller.start()
    answer = stream.read()
    canceller.join()

    assert answer.finish_reason == "cancelled"
    assert answer.text.startswith("Zoë more ")


@pytest.mark.parametrize("question", ["endless", "hang"])
def test_a_deadline_bounds_the_whole_answer_and_cancels(
    client: Client, triton: FakeTriton, question: str
) -> None:
    began = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match=r"0\.2 s"):
        client.ask(question, timeout=0.2).read()

    assert 0.15 < time.monotonic() - began < 0.8
    assert len(triton.models.cancelled) == 1


def test_a_deadline_holds_while_the_caller_dawdles(client: Client) -> None:
    stream = client.ask("endless", timeout=0.2)
    with pytest.raises(errors.DeadlineExceeded):
        assert all(time.sleep(0.05) is None for _ in stream)


def test_a_closed_client_says_so(triton: FakeTriton, protocol: str) -> None:
    client = Client(triton.urls[protocol], protocol)
    client.search("x")
    client.close()
    with pytest.raises(errors.Unavailable, match="the client is closed"):
        client.search("x")


def test_a_server_that_dies_is_unavailable(triton: FakeTriton) -> None:
    with Client(triton.urls["grpc"]) as client:
        stream = client.ask("endless")
        next(stream)
        triton._grpc.stop(0)
        with pytest.raises(errors.TritonragError) as raised:
            list(stream)
    assert isinstance(raised.value, (errors.Unavailable, errors.Cancelled))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "tcp"}, "protocol: is 'tcp', expected grpc or http"),
        ({"url": "http://127.0.0.1:8000"}, "expected host:port for gRPC; or say protocol http"),
    ],
)
def test_a_wrong_address_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=message):
        Client(**arguments)
