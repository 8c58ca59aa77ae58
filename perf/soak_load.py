"""The callers of ``soak.py``: good, bad and vanishing ones, and what became of each request.

Every answer is compared with the one its question got alone (``checked_answers``), or with the
number of the snapshot that it was found in (``swaps``). A request that failed is noted with its
times; whether it was allowed to fail is judged later, when the kills around it are known.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
from checked_answers import BAD_REQUESTS, Cases, asked, named, same_passages, wrong_answer
from handbook_server import Served, say
from swaps import COLLECTION, TOP_K, newest, wrong_snapshot

from tritonrag.client import AsyncClient, marshalling
from tritonrag.client.faults import Deadline, from_http, http_errors
from tritonrag.client.over_grpc import AsyncGrpcTransport
from tritonrag.client.over_http import AsyncHttpTransport
from tritonrag.errors import DeadlineExceeded, TritonragError

TIMEOUT_S, GRACE_S = 60, 15
"""What a request may take, and how much longer the client library may take to say so."""

RETRY_S = 0.5
"""After how long a caller goes on whose request failed, on average."""

GOOD = {"search": 60, "swapped": 20, "rag": 15, "embed": 5}
"""What is asked, by how often; ``swapped`` searches the collection whose snapshots change."""

_INFER = "/v2/models/search/infer"
_BYTES = {"name": "question", "datatype": "BYTES", "shape": [1, 1]}
_NOT_UTF8 = json.dumps({"inputs": [_BYTES | {"parameters": {"binary_data_size": 8}}]}).encode()
_BINARY = {"Inference-Header-Content-Length": str(len(_NOT_UTF8))}


@dataclass(frozen=True)
class Malformed:
    """A body that the client library cannot send, and what its refusal has to say."""

    body: bytes
    names: str
    headers: dict[str, str] = field(default_factory=dict)


MALFORMED = (
    Malformed(b'{"inputs": [', "parse"),
    Malformed(
        json.dumps({"inputs": [_BYTES | {"data": ["x"], "shape": [1, 2]}]}).encode(), "shape"
    ),
    Malformed(
        json.dumps({"inputs": [_BYTES | {"datatype": "INT32", "data": [5]}]}).encode(), "data-type"
    ),
    Malformed(_NOT_UTF8 + b"\x04\0\0\0caf\xe9", "not UTF-8", _BINARY),
)


@dataclass(frozen=True)
class Failure:
    """A request that ended with an error; times are of ``time.monotonic``."""

    kind: str
    began: float
    ended: float
    error: str
    message: str


@dataclass
class Tally:
    """What happened so far."""

    counts: Counter[str] = field(default_factory=Counter)
    """Answers and refusals that were right, by what was asked."""
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    searches: list[float] = field(default_factory=list)
    """When each search that succeeded ended."""

    def violate(self, kind: str, detail: str) -> None:
        """Note that something did not hold, whatever was killed when."""
        self.violations[kind] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{kind}: {detail[:300]}")
            say(f"  violated: {self.examples[-1]}")


@dataclass(frozen=True)
class Mix:
    """How callers behave: shares of their requests, and most requests a second of all of them."""

    bad: float = 0.05
    vanishing: float = 0.10
    rate: float = 0


class Caller:
    """One client: one request after the other."""

    def __init__(self, each: Served, cases: Cases, tally: Tally, number: int) -> None:
        """Call over HTTP every third time; ``number`` seeds the choices."""
        protocol = "http" if number % 3 == 2 else "grpc"
        self._url = each.http if protocol == "http" else each.grpc
        self._client = AsyncClient(self._url, protocol, timeout=TIMEOUT_S)
        self._raw = httpx.AsyncClient(base_url=each.http, timeout=TIMEOUT_S, trust_env=False)
        self._over = AsyncHttpTransport if protocol == "http" else AsyncGrpcTransport
        self._cases, self._tally, self._last = cases, tally, 0
        self._random = random.Random(number)

    async def run(self, mix: Mix, callers: int) -> None:
        """Ask until cancelled."""
        try:
            while True:
                if mix.rate:
                    await asyncio.sleep(self._random.expovariate(mix.rate / callers))
                await self._guarded(*self._chosen(mix))
        finally:
            await self._raw.aclose()
            await self._client.close()

    def _chosen(self, mix: Mix) -> tuple[str, Callable[[], Awaitable[None]]]:
        roll = self._random.random()
        if roll < mix.bad:
            return "bad", self._random.choice((self._bad, self._malformed))
        if roll < mix.bad + mix.vanishing:
            return "vanished", self._vanish
        (kind,) = self._random.choices(list(GOOD), list(GOOD.values()))
        return kind, getattr(self, f"_{kind}")

    async def _guarded(self, kind: str, send: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S + GRACE_S):
                await send()
        except TimeoutError:
            self._tally.violate("hang", f"{kind}: not even an error in {TIMEOUT_S + GRACE_S} s")
        except DeadlineExceeded as error:
            self._tally.violate("hang", f"{kind}: {error}")
        except TritonragError as error:
            failure = (kind, began, time.monotonic(), type(error).__name__, str(error)[:200])
            self._tally.failures.append(Failure(*failure))
            await asyncio.sleep(self._random.uniform(0, 2 * RETRY_S))
        else:
            self._tally.counts[kind] += 1
            if kind in ("search", "swapped"):
                self._tally.searches.append(time.monotonic())

    async def _search(self) -> None:
        case = self._random.choice(self._cases.searches)
        found = await self._client.search(case.question, top_k=case.top_k)
        if not same_passages(found.passages, case.expected.passages, self._cases.tolerance):
            self._tally.violate("crossed search", f"{case.question!r} found {named(found)}")

    async def _swapped(self) -> None:
        found = await self._client.search("What is it?", collection=COLLECTION, top_k=TOP_K)
        if wrong := wrong_snapshot(found.passages, self._last):
            self._tally.violate("wrong snapshot", wrong)
        self._last = newest(found.passages, self._last)

    async def _rag(self) -> None:
        case = self._random.choice(self._cases.asks)
        answer = await asked(self._client, case.question)
        if wrong := wrong_answer(case, answer, self._cases.tolerance):
            self._tally.violate(*wrong.split(": ", 1))

    async def _embed(self) -> None:
        texts = [self._random.choice(self._cases.searches).question for _ in range(2)]
        found = await self._client.embed([*texts, texts[0]], "query")
        if abs(float(found[0] @ found[2]) - 1) > 1e-2:
            self._tally.violate("crossed embedding", f"{texts[0]!r} twice, two embeddings")

    async def _bad(self) -> None:
        bad = self._random.choice(BAD_REQUESTS)
        options = {"question": self._random.choice(self._cases.searches).question, **bad.options}
        try:
            if self._random.random() < 0.5:
                await self._client.ask(**options).read()
            else:
                await self._client.search(**options)
        except bad.error as error:
            if bad.names not in str(error):
                self._tally.violate("wrong refusal", f"{_short(bad.options)} got {error}")
        else:
            self._tally.violate("accepted bad request", _short(bad.options))

    async def _malformed(self) -> None:
        bad = self._random.choice(MALFORMED)
        with http_errors(self._url, Deadline(TIMEOUT_S)):
            answer = await self._raw.post(_INFER, content=bad.body, headers=bad.headers)
        if answer.is_success:
            self._tally.violate("accepted bad request", f"{bad.body!r}")
        elif bad.names not in answer.text:
            raise from_http(answer.status_code, answer.json().get("error", answer.text))

    async def _vanish(self) -> None:
        """Drop the connection after the first piece of an answer, without a word."""
        case = self._random.choice(self._cases.asks)
        call = marshalling.call("rag", question=case.question, max_tokens=64)
        transport = self._over(self._url)
        try:
            async with aclosing(transport.stream(call, TIMEOUT_S)) as responses:
                await anext(responses, None)
        finally:
            await transport.close()


def _short(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:20]!r}" for name, value in options.items())
