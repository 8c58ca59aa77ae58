"""Endurance: minutes of mixed load, every answer checked against the one its question got alone.

A server under load may fail in ways that no figure of a benchmark shows: a batch taken apart in the
wrong order gives a caller somebody else's answer, a padded row changes another's result, one
malformed request takes its batch down with it, a model's process dies and is replaced in silence, a
response is never sent, memory grows by a page per request. So before the load each question is
asked once, alone; the answers kept are all different, so that a crossed one cannot pass. Then many
clients ask at once, some of them streams of `rag`, and of their requests one in twenty is bad in
one of seven ways and has to be refused, with its own error, while its neighbours are answered.

What makes an answer one's own is told in ``checked_answers``; answers that are worded otherwise
than alone, but rightly, are counted as reworded.

Memory is that of the server and all its models with shared pages counted once (PSS); after a
settling time, in which buffers reach the size of the largest batch, its medians over ten seconds
may differ by 5 percent. The last line of standard output is one JSON object; the exit status is 1
if anything was violated.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from checked_answers import (
    BAD_REQUESTS,
    Cases,
    asked,
    asked_alone,
    named,
    same_passages,
    wrong_answer,
)
from handbook_server import REPOSITORY, Served, say, served

from tritonrag.client import AsyncClient
from tritonrag.errors import TritonragError
from tritonrag.server.launch import end_on_sigterm

TIMEOUT_S = 60
BAD_SHARE = 0.05
SETTLE_S, SAMPLE_S, MEDIAN_S = 60, 1, 10
MAX_MEMORY_SPREAD = 0.05


@dataclass
class Tally:
    """What happened so far."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the load began, and MB."""

    def violate(self, kind: str, detail: str) -> None:
        """Note that something did not hold."""
        self.violations[kind] += 1
        if len(self.examples) < 10:
            self.examples.append(f"{kind}: {detail[:600]}")
            say(f"  violated: {self.examples[-1]}")


class Caller:
    """One client: one request after the other until the time is up."""

    def __init__(self, client: AsyncClient, cases: Cases, tally: Tally, number: int) -> None:
        """Start at a place of its own in the questions; ``number`` seeds its choices."""
        self._client, self._cases, self._tally = client, cases, tally
        self._random = random.Random(number)

    async def run(self, asks: bool, end: float) -> None:
        """Ask until ``end``: answers of ``rag`` if ``asks``, else searches."""
        while time.monotonic() < end:
            if self._random.random() < BAD_SHARE:
                await self._guarded(self._bad, asks)
            else:
                await self._guarded(self._ask if asks else self._search)

    async def _guarded(self, send: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await send(*arguments)
        except TritonragError as error:
            self._tally.violate("failed or lost", f"{type(error).__name__}: {error}")

    async def _search(self) -> None:
        case = self._random.choice(self._cases.searches)
        found = await self._client.search(case.question, top_k=case.top_k)
        self._tally.counts["searches"] += 1
        if not same_passages(found.passages, case.expected.passages, self._cases.tolerance):
            self._tally.violate("crossed search", f"{case.question!r} found {named(found)}")

    async def _ask(self) -> None:
        case = self._random.choice(self._cases.asks)
        answer = await asked(self._client, case.question)
        self._tally.counts["answers"] += 1
        self._tally.counts["tokens"] += answer.usage.generated_tokens or 0
        if wrong := wrong_answer(case, answer, self._cases.tolerance):
            self._tally.violate(*wrong.split(": ", 1))
        elif answer.text != case.expected.text:
            self._tally.counts["reworded"] += 1

    async def _bad(self, asks: bool) -> None:
        bad = self._random.choice(BAD_REQUESTS)
        options = {"question": self._random.choice(self._cases.searches).question, **bad.options}
        try:
            if asks:
                await self._client.ask(**options).read()
            else:
                await self._client.search(**options)
        except bad.error as error:
            self._tally.counts["refused"] += 1
            if bad.names not in str(error):
                self._tally.violate("wrong refusal", f"{_short(bad.options)} got {error}")
        else:
            self._tally.violate("accepted bad request", _short(bad.options))


async def load(each: Served, options: argparse.Namespace) -> Tally:
    """Put the load on a server and return what happened."""
    tally = Tally()
    clients = [AsyncClient(each.grpc, timeout=TIMEOUT_S) for _ in range(options.clients)]
    try:
        cases = await asked_alone(each, clients[0])
        began = time.monotonic()
        end = began + options.seconds
        say(f"{options.clients} clients for {options.seconds} s, {options.streams} of them streams")
        watch = asyncio.create_task(_watch(each, tally, began))
        callers = (Caller(client, cases, tally, n) for n, client in enumerate(clients))
        await asyncio.gather(*(c.run(n < options.streams, end) for n, c in enumerate(callers)))
        watch.cancel()
        if not await clients[0].ready():
            tally.violate("not ready", "the server is not ready after the load")
        return tally
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def _watch(each: Served, tally: Tally, began: float) -> None:
    """Sample memory and notice when a process of the server is gone or replaced."""
    before = each.processes()
    for number in itertools.count(1):
        seconds = time.monotonic() - began
        try:
            tally.memory.append((seconds, await asyncio.to_thread(each.memory_mb)))
            now = each.processes()
        except psutil.NoSuchProcess:
            now = frozenset()
        if now != before:
            tally.violate("restarted", f"processes {_pids(before)} became {_pids(now)}")
            before = now
        if number % 10 == 0:
            say(f"  {seconds:4.0f} s  {_progress(tally)}")
        await asyncio.sleep(SAMPLE_S)


def memory_spread(
    memory: Iterable[tuple[float, float]], settle_s: float, median_s: float
) -> tuple[float, float]:
    """Return the lowest and highest of the medians over ``median_s`` after settling; 0 if none."""
    late = [(at, size) for at, size in memory if at >= settle_s]
    pieces = itertools.groupby(late, key=lambda sample: int((sample[0] - settle_s) // median_s))
    medians = [statistics.median(size for _, size in piece) for _, piece in pieces]
    return (min(medians), max(medians)) if medians else (0.0, 0.0)


def main() -> int:
    """Run the check; return the exit status."""
    options = _options()
    end_on_sigterm()
    try:
        with served(options.repository, index_dir=options.index_dir) as each:
            tally = asyncio.run(load(each, options))
    except TritonragError as error:
        say(f"mixed_load: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return _report(tally, options)


def _report(tally: Tally, options: argparse.Namespace) -> int:
    low, high = memory_spread(tally.memory, min(SETTLE_S, options.seconds / 5), MEDIAN_S)
    if not low or high / low - 1 > MAX_MEMORY_SPREAD:
        tally.violate("memory", f"between {low:.0f} and {high:.0f} MB after settling")
    for kind in ("searches", "answers", "refused"):
        if not tally.counts[kind]:
            tally.violate("nothing done", kind)
    print(f"{options.clients} clients, {options.seconds} s: {_progress(tally)}")
    print(f"memory after settling: {low:.0f} to {high:.0f} MB")
    for example in tally.examples:
        print(example)
    kinds = ("searches", "answers", "reworded", "tokens", "refused")
    summary = {
        "clients": options.clients,
        "seconds": options.seconds,
        **{kind: tally.counts[kind] for kind in kinds},
        "violations": dict(tally.violations),
        "memory_low_mb": round(low, 1),
        "memory_high_mb": round(high, 1),
        "ok": not tally.violations,
    }
    print(json.dumps(summary))
    return 1 if tally.violations else 0


def _short(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:20]!r}" for name, value in options.items())


def _pids(processes: Iterable[psutil.Process]) -> list[int]:
    return sorted(process.pid for process in processes)


def _progress(tally: Tally) -> str:
    counts = tally.counts
    return ", ".join(
        (
            f"{counts['searches']} searches",
            f"{counts['answers']} answers ({counts['reworded']} reworded)",
            f"{counts['refused']} refused as they should be",
            f"{sum(tally.violations.values())} violations",
            f"{tally.memory[-1][1]:.0f} MB" if tally.memory else "memory unknown",
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Mixed load for minutes; every answer is checked to belong to its question.",
        epilog="The last line of standard output is one JSON object; status 1 on any violation.",
    )
    add = parser.add_argument
    add("--seconds", type=int, default=300, help="how long (default: 300)")
    add("--clients", type=int, default=32, help="clients at once (default: 32)")
    add("--streams", type=int, default=8, help="those of them that ask `rag` (default: 8)")
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--index-dir", type=Path, help="index to serve (default: a new one of samples/handbook)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
