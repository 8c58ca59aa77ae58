"""The long attacks: an hour of mixed load with kills, overload for minutes, kills in quick order.

Each starts a server of its own with its watchdog, as ``tritonrag up`` does, over the sample
handbook, puts the load on it and looks at every answer.

``soak.py``
    32 callers for an hour, over gRPC and HTTP. One request in twenty is bad and has to be refused
    with its own error, one in ten is a stream whose caller vanishes in the middle. Every two
    minutes the process of a model, or now and then the server, is killed with signal 9; every
    minute a collection gets a new snapshot.
``soak.py --overload``
    256 callers in a closed loop for ten minutes, queues full, nothing killed: the watchdog must
    leave the busy server alone, so every process has to be the same at the end.
``soak.py --kills 20``
    Twenty kills of each model at random moments under the load of the first.

What must hold: no answer is another question's or mixes snapshots; every request ends before its
deadline; what fails, fails as unavailable, and only in the seconds after a kill (5, or 10 where
the server itself had to be started again); the watchdog notices within 2 s; memory (all processes,
shared pages counted once) stays within 5 percent after ten minutes, by its medians over five
minutes, while the process that was killed last has had time to grow again.

The result goes to ``perf/results/`` every ten seconds, so that a run that is stopped leaves what it
saw. The last line of standard output is one JSON object; the exit status is 1 if anything did not
hold, and each thing that did not is named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from checked_answers import asked_alone
from handbook_server import REPOSITORY, Served, say, served
from measuring import PACKAGES, RESULTS
from mixed_load import MAX_MEMORY_SPREAD, memory_spread
from provenance import provenance, stem
from soak_kills import MODELS, RELOADED_S, SERVER, Kill, Killer, restarts
from soak_kills import summary as summary_of_kills
from soak_load import TIMEOUT_S, Caller, Failure, Mix, Tally
from swaps import COLLECTION, Publisher, publisher_of

from tritonrag.client import AsyncClient
from tritonrag.errors import TritonragError
from tritonrag.server.launch import end_on_sigterm

SAVE_S, LIVE_S = 10, 30
QUICK_CASES = 8
SNAPSHOT_PASSAGES = 2000
SETTLE_S, MEDIAN_S = 600, 300
MIN_MEMORY_S = 2 * SETTLE_S
"""A shorter run does not judge memory: its level is not reached yet."""
FULL = "its queue is full"
"""What `generate` says where callers who have gone fill its queue: it is there, and refuses."""


@dataclass
class Run:
    """A run under way: what it was told, and what it has seen."""

    options: argparse.Namespace
    mode: str
    began: float = field(default_factory=time.monotonic)
    tally: Tally = field(default_factory=Tally)
    kills: list[Kill] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the beginning, and MB."""
    by_process: dict[str, float] = field(default_factory=dict)
    """The memory of each process when it was looked at last, in MB."""
    swaps: list[float] = field(default_factory=list)
    """How long each new snapshot took to answer, in seconds."""
    restarts: float = 0
    finished: bool = False

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def in_window(self, failure: Failure, strictly: bool = False) -> bool:
        """Return whether a kill excuses a failure; ``strictly``: 5 s whatever was killed."""
        return any(
            kill.covers(failure.began, failure.ended, RELOADED_S if strictly else kill.allowed_s)
            for kill in self.kills
        )

    def availability(self, strictly: bool) -> float:
        """Return the share of searches that were answered, outside the seconds after a kill."""
        failed = sum(
            failure.kind in ("search", "swapped") and not self.in_window(failure, strictly)
            for failure in self.tally.failures
        )
        return 1 - failed / max(len(self.tally.searches) + failed, 1)

    def violations(self) -> dict[str, list[str]]:
        """Return what did not hold, by kind, with up to five examples of each."""
        found: dict[str, list[str]] = {kind: [] for kind in self.tally.violations}
        for example in self.tally.examples:
            found[example.partition(": ")[0]].append(example)
        for failure in self.tally.failures:
            refusal = failure.error in ("Unavailable", "Unreachable")
            told = f"{failure.kind} at {failure.ended - self.began:.1f} s: {failure.message}"
            if not refusal:
                found.setdefault(f"failed as {failure.error}", []).append(told)
            elif self.mode != "overload" and FULL not in told and not self.in_window(failure):
                found.setdefault("unavailable too long after a kill", []).append(told)
        for problem in filter(None, (kill.problem() for kill in self._over())):
            found.setdefault("slow recovery", []).append(problem)
        if problem := self._memory_problem():
            found["memory"] = [problem]
        if self.mode == "overload" and self.restarts:
            found["restarted"] = [f"the watchdog made {self.restarts:g} restarts"]
        return {kind: examples[:5] for kind, examples in found.items()}

    def _over(self) -> Sequence[Kill]:
        """Return the kills that had their time."""
        now = time.monotonic()
        return [kill for kill in self.kills if now - kill.at > kill.allowed_s]

    def _memory_problem(self) -> str:
        if self.seconds < MIN_MEMORY_S or self.mode != "mixed":
            return ""
        low, high = self.memory_range()
        return "" if high <= low * (1 + MAX_MEMORY_SPREAD) else f"{low:.0f} to {high:.0f} MB"

    def memory_range(self) -> tuple[float, float]:
        """Return the lowest and highest median of five minutes after ten, in MB; 0 if none."""
        return memory_spread(self.memory, SETTLE_S, MEDIAN_S)

    def summary(self) -> dict[str, Any]:
        """Return what a reader wants to know first."""
        low, high = self.memory_range()
        violations = self.violations()
        errors = sorted({failure.error for failure in self.tally.failures})
        return {
            "mode": self.mode,
            "clients": self.options.clients,
            "minutes": round(self.seconds / 60, 2),
            "requests": self.tally.counts.total(),
            "right": dict(self.tally.counts),
            "failed": {
                name: sum(failure.error == name for failure in self.tally.failures)
                for name in errors
            },
            "search_availability": round(self.availability(strictly=False), 6),
            "search_availability_outside_5s": round(self.availability(strictly=True), 6),
            "kills": summary_of_kills(self.kills),
            "watchdog_restarts": self.restarts,
            "swaps": len(self.swaps),
            "swap_s_max": round(max(self.swaps, default=0), 2),
            "memory_mb": {
                "first": round(self.memory[0][1]) if self.memory else None,
                "last": round(self.memory[-1][1]) if self.memory else None,
                "low_after_10_min": round(low),
                "high_after_10_min": round(high),
            },
            "violations": violations,
            "ok": not violations,
        }

    def save(self, path: Path, origin: dict[str, Any]) -> None:
        """Write the result so that a reader sees the old one or the new one, and nothing else."""
        record = origin | {
            "finished": self.finished,
            "summary": self.summary(),
            "kills": [kill.as_dict(self.began) for kill in self.kills],
            "memory_mb": [(round(at), round(size, 1)) for at, size in self.memory],
            "memory_mb_by_process": self.by_process,
            "failures": [
                asdict(failure)
                | {
                    "began": round(failure.began - self.began, 2),
                    "ended": round(failure.ended - self.began, 2),
                }
                for failure in self.tally.failures[:200]
            ],
        }
        new = path.with_suffix(".new")
        new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)

    def progress(self) -> str:
        """Return one line for who watches."""
        counts, memory = self.tally.counts, self.memory[-1][1] if self.memory else 0
        return (
            f"  {self.seconds:5.0f} s  {counts.total()} right ({counts['rag']} answers, "
            f"{counts['bad']} refused, {counts['vanished']} vanished), "
            f"{len(self.tally.failures)} unavailable, {len(self.kills)} kills, "
            f"{len(self.swaps)} swaps, {memory:.0f} MB, {len(self.violations())} kinds of violation"
        )


async def load(each: Served, run: Run, path: Path, origin: dict[str, Any]) -> None:
    """Put the load on a server until the time is up or the kills are done."""
    options = run.options
    publisher = publisher_of(each, SNAPSHOT_PASSAGES)
    publisher.publish(0)
    async with AsyncClient(each.grpc, timeout=TIMEOUT_S) as client:
        cases = await asked_alone(each, client, *([QUICK_CASES] * 2 if options.quick else []))
        await _live(client, 0)
        before = each.processes()
        run.began = time.monotonic()
        mix = Mix(0, 0, options.rate) if run.mode == "overload" else Mix(rate=options.rate)
        callers = [Caller(each, cases, run.tally, number) for number in range(options.clients)]
        killer = Killer(each, cases.searches[0].question, options.seed)
        run.kills = killer.kills
        say(f"{run.mode}: {options.clients} callers, {options.minutes:g} minutes")
        async with _together(
            *(caller.run(mix, len(callers)) for caller in callers),
            _observe(each, run, path, origin),
            *([] if run.mode == "overload" else [_swap(run, publisher, client)]),
        ) as tasks:
            await _first(_schedule(run, killer), tasks)
        await _look(each, run)
        if run.mode == "overload" and each.processes() != before:
            run.tally.violate("replaced", "the processes are not those of the beginning")
        if not await client.search(cases.searches[0].question):
            run.tally.violate("not ready", "no answer after the load")


async def _schedule(run: Run, killer: Killer) -> None:
    """Kill what is to be killed; return when the run is over."""
    seconds = run.options.minutes * 60
    if run.mode == "kills":
        await killer.times(run.options.kills)
    elif run.mode == "mixed":
        await killer.every(run.options.kill_every, run.began + seconds)
    else:
        await asyncio.sleep(seconds)


@asynccontextmanager
async def _together(*work: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run work beside the block and end it with the block."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first(wanted: Any, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for ``wanted``; raise what ends one of the others, which should not end."""
    task = asyncio.ensure_future(wanted)
    try:
        done, _ = await asyncio.wait([task, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.result()
    finally:
        task.cancel()


async def _observe(each: Served, run: Run, path: Path, origin: dict[str, Any]) -> None:
    """Look at memory and restarts, and write the result, every ten seconds."""
    while True:
        await _look(each, run)
        await asyncio.to_thread(run.save, path, origin)
        say(run.progress())
        await asyncio.sleep(min(SAVE_S, run.options.minutes * 10))


async def _look(each: Served, run: Run) -> None:
    sizes = await asyncio.to_thread(_sizes, each)
    if {SERVER, *MODELS} <= sizes.keys():  # else one is being replaced
        run.by_process = sizes
        run.memory.append((run.seconds, sum(sizes.values())))
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        run.restarts = max(run.restarts, await restarts(each, http))


def _sizes(each: Served) -> dict[str, float]:
    """Return the memory of each process, shared pages by their share (PSS), in MB."""
    found = {}
    for role, process in each.by_role().items():
        with suppress(psutil.Error):
            found[role] = round(process.memory_full_info().pss / 1e6, 1)
    return found


async def _swap(run: Run, publisher: Publisher, client: AsyncClient) -> None:
    """Make a new snapshot live every so many seconds."""
    number = 0
    while True:
        await asyncio.sleep(run.options.swap_every)
        number += 1
        await asyncio.to_thread(publisher.publish, number)
        began = time.monotonic()
        if await _live(client, number):
            run.swaps.append(time.monotonic() - began)
        else:
            run.tally.violate("swap", f"snapshot {number} did not go live within {LIVE_S} s")


async def _live(client: AsyncClient, number: int) -> bool:
    """Wait until the snapshot of a number answers; return whether it does."""
    end = time.monotonic() + LIVE_S
    while time.monotonic() < end:
        with suppress(TritonragError):
            found = await client.search("ready?", collection=COLLECTION)
            if {passage.text for passage in found} == {str(number)}:
                return True
        await asyncio.sleep(0.1)
    return False


def main() -> int:
    """Run the attack; return the exit status."""
    options = _options()
    end_on_sigterm()
    mode = "overload" if options.overload else "kills" if options.kills else "mixed"
    run = Run(options, mode)
    origin = provenance("perf/soak.py", PACKAGES)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{stem(origin)}-soak-{mode}.json"
    status = 0
    try:
        with served(options.repository, watched=True) as each:
            asyncio.run(load(each, run, path, origin))
        run.finished = True
    except TritonragError as error:
        say(f"soak: {error}")
        status = 1
    except KeyboardInterrupt:
        status = 130
    finally:
        run.save(path, origin)
        say(f"written: {path}")
    return _report(run) or status


def _report(run: Run) -> int:
    found = run.summary()
    for kind, examples in found["violations"].items():
        print(f"did not hold: {kind}", *examples, sep="\n  ")
    print(json.dumps(found))
    return 0 if found["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Long attacks on a server with its watchdog; every answer is checked.",
        epilog="The last line of standard output is one JSON object; status 1 on any violation. "
        "Ctrl-C stops the server and keeps what was seen.",
    )
    add = parser.add_argument
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--overload", action="store_true", help="full queues and no kills (256 callers, 10 minutes)"
    )
    kinds.add_argument(
        "--kills", type=int, default=0, metavar="N", help="kill each model N times, then stop"
    )
    add("--minutes", type=float, help="how long (default: 60; with --overload 10)")
    add("--clients", type=int, help="callers at once (default: 32; with --overload 256)")
    add(
        "--rate",
        type=float,
        default=0,
        help="most requests a second of all callers (default: 0, each asks again as soon as it is "
        "answered)",
    )
    add(
        "--kill-every",
        type=float,
        default=120,
        help="seconds from one kill to the next (default: 120)",
    )
    add(
        "--swap-every",
        type=float,
        default=60,
        help="seconds from one snapshot to the next (default: 60)",
    )
    add("--seed", type=int, default=0, help="of the choice of what is killed (default: 0)")
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    add("--quick", action="store_true", help="seconds instead of minutes: a check of the program")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.clients = options.minutes or 0.25, options.clients or 8
        options.kill_every, options.swap_every = 2, 3
        options.kills = min(options.kills, 1)
    options.minutes = options.minutes or (10 if options.overload else 60)
    options.clients = options.clients or (256 if options.overload else 32)
    return options


if __name__ == "__main__":
    sys.exit(main())
