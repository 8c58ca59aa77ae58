"""Kills of the server's processes for ``soak.py``, and how long each is felt.

A kill is followed from the moment it is sent: when the watchdog says so, when the model answers
again, and for how long each of three health endpoints says "ready" meanwhile. A probe is sent every
tenth of a second whatever became of those before it, since a request to a dead model may hang.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import psutil
from handbook_server import Served, say

from tritonrag.client import AsyncClient
from tritonrag.errors import TritonragError

MODELS = ("tokenize", "embed", "retrieve", "prompt", "generate")
SERVER = "tritonserver"
RETRIEVAL = ("tokenize", "embed", "retrieve")
"""A search shows that these answer; the others an answer."""

POLL_S, PROBE_S = 0.05, 0.1
NOTICED_S = 2.0
"""In this time the watchdog has to notice."""

RELOADED_S, RESTARTED_S = 5.0, 10.0
"""In these a model answers again: where it was loaded anew, and where the server was."""

GIVEN_UP_S = 60.0
ENDPOINTS = ("/v2/health/ready", "/v2/models/rag/ready", "watchdog")


@dataclass
class Kill:
    """One kill; seconds are since it, ``at`` is of ``time.monotonic``."""

    role: str
    at: float
    noticed_s: float | None = None
    """When the watchdog first said that not all is well, or counted a restart."""
    sent_s: float | None = None
    """When the first request was sent that was answered, and when it was."""
    answered_s: float | None = None
    restarted: bool = False
    """Whether the server itself is another process now."""
    said_ready_s: dict[str, float] = field(default_factory=dict)
    """For how long an endpoint said "ready" though a request that was sent then failed."""

    @property
    def allowed_s(self) -> float:
        """In how many seconds it has to be over."""
        return RESTARTED_S if self.restarted else RELOADED_S

    def covers(self, began: float, ended: float, seconds: float) -> bool:
        """Return whether a request ran in the first ``seconds`` after the kill."""
        return began <= self.at + seconds and ended >= self.at

    def problem(self) -> str:
        """Return what took too long, or ""."""
        # An answer of the LLM may wait behind those of callers who have gone: its request counts
        # by when it was sent.
        back_s = self.answered_s if self.role in RETRIEVAL else self.sent_s
        if back_s is None or back_s > self.allowed_s:
            return f"{self.role}: answered after {back_s} s, allowed {self.allowed_s:g}"
        if self.noticed_s is None or self.noticed_s > NOTICED_S:
            return f"{self.role}: noticed after {self.noticed_s} s, allowed {NOTICED_S:g}"
        return ""

    def as_dict(self, began: float) -> dict[str, Any]:
        """Return the kill for the result, its time since ``began``."""
        rounded = {name: round(each, 2) for name, each in self.said_ready_s.items()}
        return asdict(self) | {"at": round(self.at - began, 1), "said_ready_s": rounded}


class Killer:
    """Kills one process after the other and waits until each is forgotten."""

    def __init__(self, each: Served, question: str, seed: int) -> None:
        """``question`` is what is asked to see whether a model answers."""
        self.kills: list[Kill] = []
        self._each, self._question = each, question
        self._random = random.Random(seed)

    async def every(self, seconds: float, end: float) -> None:
        """Kill a process every so many seconds, one in eleven times the server.

        The last kill has its time before ``end``, of ``time.monotonic``; then wait for it.
        """
        while time.monotonic() + seconds < end - RESTARTED_S:
            await asyncio.sleep(seconds)
            (role,) = self._random.choices([*MODELS, SERVER], [2, 2, 2, 2, 2, 1])
            await self.kill(role)
        await asyncio.sleep(end - time.monotonic())

    async def times(self, count: int) -> None:
        """Kill each model ``count`` times, in a random order at random moments."""
        roles = [role for role in MODELS for _ in range(count)]
        self._random.shuffle(roles)
        for role in roles:
            await asyncio.sleep(self._random.uniform(1, 3))
            await self.kill(role)

    async def kill(self, role: str) -> None:
        """Kill a process and return when all is well again, or when that is given up."""
        processes = await asyncio.to_thread(self._each.by_role)
        if role not in processes:
            say(f"  {role} cannot be killed: there are only {', '.join(processes) or 'none'}")
            return
        async with httpx.AsyncClient(timeout=1, trust_env=False) as http:
            before = await self._restarts(http)
            processes[role].kill()
            kill = Kill(role, time.monotonic())
            self.kills.append(kill)
            await self._follow(kill, before, http)
        kill.restarted = not _same(processes.get(SERVER), self._each.by_role().get(SERVER))
        say(f"  killed {role}: noticed {kill.noticed_s} s, answered {kill.answered_s} s")

    async def _follow(self, kill: Kill, before: float, http: httpx.AsyncClient) -> None:
        answered = asyncio.create_task(self._answered(kill))
        end = kill.at + GIVEN_UP_S
        looks = [(kill.at, [False] * len(ENDPOINTS))]
        try:
            while time.monotonic() < end:
                ready = [await self._ready(http, endpoint) for endpoint in ENDPOINTS]
                noticed = not ready[-1] or await self._restarts(http) > before
                looks.append((time.monotonic(), ready))
                if noticed and kill.noticed_s is None:
                    kill.noticed_s = round(looks[-1][0] - kill.at, 2)
                if kill.answered_s is not None and all(ready):
                    break
                await asyncio.sleep(POLL_S)
            kill.said_ready_s = _said_ready(looks, kill.at + (kill.sent_s or GIVEN_UP_S))
        finally:
            answered.cancel()
            with suppress(asyncio.CancelledError):
                await answered

    async def _answered(self, kill: Kill) -> None:
        """Note when the first request that was sent after the kill is answered."""
        probes: set[asyncio.Task[float]] = set()
        try:
            while time.monotonic() < kill.at + GIVEN_UP_S:
                probes.add(asyncio.create_task(self._probe(kill.role)))
                done, probes = await asyncio.wait(probes, timeout=PROBE_S)
                if sent := [probe.result() for probe in done if probe.result()]:
                    kill.sent_s = round(min(sent) - kill.at, 2)
                    kill.answered_s = round(time.monotonic() - kill.at, 2)
                    return
                await asyncio.sleep(PROBE_S if done else 0)
        finally:
            for probe in probes:
                probe.cancel()
            await asyncio.gather(*probes, return_exceptions=True)

    async def _probe(self, role: str) -> float:
        """Return when a request was sent that was answered; 0 where it was not.

        Over a connection of its own: one that was lost waits before it tries again.
        """
        sent = time.monotonic()
        with suppress(TritonragError):
            async with AsyncClient(self._each.grpc, timeout=RESTARTED_S) as client:
                if role in RETRIEVAL:
                    return sent if await client.search(self._question, top_k=1) else 0
                answer = await client.ask(self._question, max_tokens=1).read()
                return sent if answer.citations else 0
        return 0

    async def _ready(self, http: httpx.AsyncClient, endpoint: str) -> bool:
        url = f"{self._each.http}{endpoint}"
        if endpoint == "watchdog":
            url = f"{self._each.watchdog}/health/ready"
        try:
            return (await http.get(url)).is_success
        except httpx.HTTPError:
            return False

    async def _restarts(self, http: httpx.AsyncClient) -> float:
        return await restarts(self._each, http)


async def restarts(each: Served, http: httpx.AsyncClient) -> float:
    """Return how many restarts the watchdog counts."""
    try:
        text = (await http.get(f"{each.watchdog}/metrics")).text
    except httpx.HTTPError:
        return 0.0
    lines = (line for line in text.splitlines() if line.startswith("tritonrag_watchdog_restarts_t"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _said_ready(looks: Sequence[tuple[float, list[bool]]], end: float) -> dict[str, float]:
    """Return for how long before ``end`` each endpoint said "ready", from when it was looked at."""
    found = dict.fromkeys(ENDPOINTS, 0.0)
    for (before, _), (at, ready) in itertools.pairwise(looks):
        for endpoint, said in zip(ENDPOINTS, ready, strict=True):
            found[endpoint] += said * max(0.0, min(at, end) - before)
    return found


def summary(kills: Sequence[Kill]) -> dict[str, Any]:
    """Return the median and the longest times by role."""
    found = {}
    for role in (*MODELS, SERVER):
        of_role = [kill for kill in kills if kill.role == role]
        if of_role:
            found[role] = {
                "kills": len(of_role),
                "noticed_s": _spread([kill.noticed_s for kill in of_role]),
                "answered_s": _spread([kill.answered_s for kill in of_role]),
                "said_ready_s": {
                    endpoint: _spread([kill.said_ready_s.get(endpoint) for kill in of_role])
                    for endpoint in ENDPOINTS
                },
            }
    return found


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return {"median": None, "max": None}
    return {"median": round(known[len(known) // 2], 2), "max": round(known[-1], 2)}


def _same(one: psutil.Process | None, other: psutil.Process | None) -> bool:
    return one is not None and one == other
