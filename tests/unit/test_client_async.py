"""The asyncio client over both real protocols; what it shares with the other is tested there."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest
from fake_triton import FakeTriton, keys

from tritonrag import errors
from tritonrag.client import AsyncClient
from tritonrag.contract import RERANK

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("protocol", ["grpc", "http"])]


def connect(triton: FakeTriton, protocol: str) -> AsyncClient:
    return AsyncClient(triton.urls[protocol], protocol, timeout=5)


async def cancelled(triton: FakeTriton) -> list[str]:
    ends = time.monotonic() + 2
    while not triton.models.cancelled and time.monotonic() < ends:
        await asyncio.sleep(0.005)
    return triton.models.cancelled


async def test_search_and_embed(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        assert len(await client.search("How much leave?", top_k=3)) == 3
        assert (await client.embed(["a", "bb"])).tolist() == [[1.0, 0.5], [2.0, 0.5]]
        assert (await client.health()).live
        assert not await client.ready()


async def test_ask_streams(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client, client.ask("How much leave?") as answer:
        assert [delta async for delta in answer] == ["Zoë ", "has 25 days [1]."]
    assert [c.mark for c in answer.citations] == [1, None]
    assert answer.finish_reason == "stop"
    assert not triton.models.cancelled


async def test_retrieve_k_needs_a_reranker(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        with pytest.raises(errors.InvalidRequest, match=r"no reranker.*--config rerank"):
            await client.ask("x", retrieve_k=9).read()
        triton.models.variant = RERANK
        await client.ask("x", retrieve_k=9).read()
    assert triton.models.requests[-1].inputs == {
        "question": ["x"],
        "retrieve_k": [9],
        "cancel_key": keys(triton)[-1:],
    }


async def test_many_answers_at_once(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        answers = await asyncio.gather(*(client.ask(f"question {n}").read() for n in range(8)))
        generated = await client.generate("Once").read()
    assert {answer.text for answer in [*answers, generated]} == {"Zoë has 25 days [1]."}


async def test_errors_keep_their_kind(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        with pytest.raises(errors.InvalidRequest, match="^question: is blank"):
            await client.ask(" ").read()
        with pytest.raises(errors.NotFound):
            await client.search("x", collection="nope")
        with pytest.raises(errors.InternalError, match="cut off"):
            await client.ask("cut off").read()
    with pytest.raises(errors.Unavailable, match="the client is closed"):
        await client.search("x")


async def test_no_server_says_how_to_start_one(protocol: str) -> None:
    async with AsyncClient("127.0.0.1:9", protocol) as client:
        with pytest.raises(errors.Unavailable, match="tritonrag up"):
            await client.ask("x").read()
        assert not await client.ready()


async def test_leaving_the_block_cancels(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        async with client.ask("endless") as stream:
            async for _ in stream:
                break
        assert triton.models.cancelled == keys(triton)


async def test_dropping_a_stream_cancels(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        async for _ in client.ask("endless"):
            break
        gc.collect()
        assert await cancelled(triton)


async def test_closing_the_client_cancels_what_runs(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        stream = client.ask("endless")
        await anext(stream)
    assert triton.models.cancelled == keys(triton)
    await stream.close()


async def test_a_cancelled_task_cancels(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        stream = client.ask("endless")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await stream.read()
        assert triton.models.cancelled == keys(triton)


async def test_cancel_ends_the_answer(triton: FakeTriton, protocol: str) -> None:
    async with connect(triton, protocol) as client:
        stream = client.ask("endless")
        await anext(stream)
        await stream.cancel()
        assert (await stream.read()).finish_reason == "cancelled"


@pytest.mark.parametrize("question", ["endless", "hang"])
async def test_a_deadline_bounds_the_whole_answer_and_cancels(
    triton: FakeTriton, protocol: str, question: str
) -> None:
    async with connect(triton, protocol) as client:
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            await client.ask(question, timeout=0.2).read()
        assert 0.15 < time.monotonic() - began < 0.8
        assert len(triton.models.cancelled) == 1
