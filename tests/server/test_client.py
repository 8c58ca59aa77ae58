"""The client library on the real server, over both protocols."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from servers import Served, statistics

from tritonrag import errors
from tritonrag.client import AsyncClient, Client

LONG = {"max_tokens": 8000}
"""A generation of several seconds on the server whose LLM never ends of its own."""


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(served: Served, protocol: str) -> Iterator[Client]:
    with Client(getattr(served, protocol), protocol, timeout=60) as connected:
        yield connected


@pytest.fixture
def talking(endless: Served, protocol: str) -> Iterator[Client]:
    with Client(getattr(endless, protocol), protocol, timeout=60) as connected:
        yield connected


def ended(served: Served) -> int:
    """Return how many requests of `rag` have ended, one way or the other; an ensemble's are counted
    at their last response, those of `generate` itself already when it has taken them."""
    stats = statistics(served, "rag")["inference_stats"]
    return int(stats["success"]["count"]) + int(stats["fail"]["count"])


def ends_soon(served: Served, count: int, seconds: float = 0.5) -> bool:
    limit = time.monotonic() + seconds
    while ended(served) < count and time.monotonic() < limit:
        time.sleep(0.02)
    return ended(served) >= count


def test_search(client: Client) -> None:
    found = client.search("How many days of annual leave?", top_k=3)

    assert len(found) == 3
    assert found[0].source == "leave.md"
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert found[0].extra["end"] > found[0].extra["start"] >= 0
    only = client.search("days", top_k=50, filter={"source": ["security.md"]})
    assert {passage.source for passage in only} == {"security.md"}


def test_embed_is_normalised_and_in_order(client: Client) -> None:
    texts = [f"Sentence number {n} of the text." for n in range(70)]
    vectors = client.embed(texts)

    assert vectors.shape == (70, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert np.allclose(vectors[69], client.embed([texts[69]])[0], atol=2e-2)


def test_ask(client: Client) -> None:
    with client.ask("How many days of annual leave do full-time employees receive?") as stream:
        first = next(stream)
        assert [citation.mark for citation in stream.citations] == [1, 2, 3, 4]
        answer = stream.read()

    assert answer.text.startswith(first)
    assert answer.finish_reason == "stop"
    assert answer.usage.generated_tokens > 0
    assert answer.usage.total_ms >= answer.usage.time_to_first_token_ms > 0


def test_the_options_of_an_answer_are_taken(client: Client) -> None:
    answer = client.ask(
        "Who approves remote work?",
        top_k=2,
        collection="default",
        filter={"source": "remote-work.md"},
        history=[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}],
        max_tokens=3,
        temperature=0.7,
        top_p=0.9,
        top_k_sampling=5,
        stop=["\n\n", "###"],
        grounding="free",
    ).read()

    assert answer.usage.generated_tokens <= 3
    assert {citation.source for citation in answer.citations} == {"remote-work.md"}


def test_generate(client: Client) -> None:
    answer = client.generate("Once upon a time", max_tokens=4).read()
    assert answer.citations == ()
    assert answer.usage.generated_tokens <= 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"question": " "}, errors.InvalidRequest, "question: "),
        ({"question": "x" * 9000}, errors.InvalidRequest, "question: .*8192"),
        ({"question": "x", "top_k": 101}, errors.InvalidRequest, "top_k: .*1 to 100"),
        ({"question": "x", "collection": "nope"}, errors.NotFound, "collection: .*default"),
        ({"question": "x", "filter": {"colour": 1}}, errors.InvalidRequest, "filter: "),
    ],
)
def test_bad_requests(
    client: Client, options: dict[str, object], error: type[Exception], message: str
) -> None:
    asks: tuple[Callable[..., object], ...] = (
        client.search,
        lambda **given: client.ask(**given).read(),
    )
    for ask in asks:
        with pytest.raises(error, match=f"^{message}") as raised:
            ask(**options)
        assert type(raised.value) is error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": 10**9}, "max_tokens: "),
        ({"temperature": 3.0}, "temperature: "),
        ({"top_p": 0.0}, "top_p: "),
        ({"stop": [""]}, "stop: "),
        ({"grounding": "loose"}, "grounding: "),
        ({"history": "no JSON"}, "history: "),
    ],
)
def test_bad_options(client: Client, options: dict[str, object], message: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=f"^{message}"):
        client.ask("x", **options).read()  # type: ignore[arg-type]


def test_leaving_a_stream_stops_the_generation_within_half_a_second(
    talking: Client, endless: Served
) -> None:
    before = ended(endless)
    with talking.ask("Tell me everything.", **LONG) as stream:
        next(stream)
        assert ended(endless) == before
    assert ends_soon(endless, before + 1)


def test_a_deadline_stops_the_generation_too(talking: Client, endless: Served) -> None:
    before = ended(endless)
    began = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        talking.ask("Tell me everything.", timeout=0.5, **LONG).read()
    assert time.monotonic() - began < 1.0
    assert ends_soon(endless, before + 1)


def test_cancel_leaves_a_whole_ending(talking: Client) -> None:
    stream = talking.ask("Tell me everything.", **LONG)
    next(stream)
    stream.cancel()
    answer = stream.read()
    assert answer.finish_reason == "cancelled"
    assert 0 < answer.usage.generated_tokens < LONG["max_tokens"]


def test_an_empty_index_says_how_to_fill_it(empty: Served, protocol: str) -> None:
    with Client(getattr(empty, protocol), protocol) as client:
        assert len(client.search("x")) == 0
        answer = client.ask("x").read()
    assert "tritonrag index add" in answer.text
    assert answer.finish_reason == "stop"


@pytest.mark.asyncio
async def test_async_answers_belong_to_their_questions(served: Served, protocol: str) -> None:
    sources = ["leave.md", "security.md", "remote-work.md"]
    async with AsyncClient(getattr(served, protocol), protocol, timeout=120) as client:
        assert await client.ready()
        answers = await asyncio.gather(
            *(
                client.ask("How many days?", filter={"source": s}, top_k=2).read()
                for s in sources * 4
            )
        )
    cited = [{citation.source for citation in answer.citations} for answer in answers]
    assert cited == [{source} for source in sources * 4]


@pytest.mark.asyncio
async def test_leaving_an_async_stream_stops_the_generation(endless: Served, protocol: str) -> None:
    async with AsyncClient(getattr(endless, protocol), protocol, timeout=60) as client:
        before = ended(endless)
        async with client.ask("Tell me everything.", **LONG) as stream:
            await anext(stream)
            assert ended(endless) == before
        assert ends_soon(endless, before + 1)


def test_a_user_who_goes_away_in_a_terminal_stops_the_generation(endless: Served) -> None:
    """Ctrl-C in `tritonrag ask`, seen from the server."""
    before = ended(endless)
    options = ["--max-tokens", str(LONG["max_tokens"])]
    command = [sys.executable, "-m", "tritonrag", "ask", "Tell me everything.", *options]
    environment = os.environ | {"TRITONRAG_URL": endless.grpc}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        process.stdout.read(1)
        process.send_signal(2)
        process.communicate(timeout=10)
    assert process.returncode == 130
    assert ends_soon(endless, before + 1)
