"""Live swaps: new snapshots go live while clients search, and nobody notices.

Each snapshot's passages carry its number, so an answer that mixes two shows it, and so does one
that goes back to a snapshot after a newer one has answered the same client. All snapshots have the
same vectors: what is measured is the swap, not the embedding. The clients send one search after the
other for the whole time; any error counts.

Memory is the resident set of the process of ``retrieve``. It is noted after every swap, when the
new snapshot has answered and the old one has had a second to go. The first three swaps bring it to
its level (buffers of the largest batch); after ten more, and at the end, it may be above that level
by half a snapshot. If each swap kept something, it would be above by ten.

The last line of standard output is one JSON object, the file in ``perf/results`` has it too; the
exit status is 1 if anything was violated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from handbook_server import REPOSITORY, Served, say, served
from provenance import ROOT, provenance, stem

from tritonrag.artifacts import EmbedderManifest
from tritonrag.client import AsyncClient, Passage
from tritonrag.errors import NotFound, TritonragError
from tritonrag.index import EmbedderId, store
from tritonrag.index.manifest import DocumentRecord
from tritonrag.server.launch import end_on_sigterm

RESULTS = ROOT / "perf" / "results"
COLLECTION = "swapped"
TOP_K, PER_DOCUMENT = 20, 100
SETTLED, LATER = 3, 13
"""Swaps after which memory has its level, and after which it is compared."""
TIMEOUT_S, GONE_S = 30, 1.5
PACKAGES = ("tritonrag", "faiss-cpu", "numpy", "tritonclient", "nvidia-pytriton")


@dataclass
class Tally:
    """What happened so far; latencies in milliseconds, memory in MB after each swap."""

    latencies: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class Publisher:
    """Makes snapshots of one size in one collection."""

    each: Served
    vectors: npt.NDArray[np.float32]
    embedder: EmbedderManifest

    def publish(self, number: int) -> None:
        """Make a snapshot live whose passages say its number."""
        documents = len(self.vectors) // PER_DOCUMENT
        line = {"id": "", "text": str(number), "source": "", "title": "", "location": ""}
        contents = store.Contents(
            embedder=EmbedderId.of(self.embedder),
            dimension=self.embedder.dimension,
            recipe="swaps",
            documents=[
                DocumentRecord(f"{place}.md", "", "0" * 64, "swaps", PER_DOCUMENT)
                for place in range(documents)
            ],
            passages=(json.dumps(line).encode() for _ in range(documents * PER_DOCUMENT)),
            vectors=[self.vectors],
        )
        with store.writing(self.each.index_dir, COLLECTION) as folder:
            store.publish(folder, contents)


async def load(each: Served, options: argparse.Namespace) -> Tally:
    """Search and swap; return what happened."""
    tally = Tally()
    publisher = publisher_of(each, options.passages)
    publisher.publish(0)
    process = each.by_role()["retrieve"]
    clients = [AsyncClient(each.grpc, timeout=TIMEOUT_S) for _ in range(options.clients)]
    try:
        await _answered(clients[0], 0)
        callers = [asyncio.create_task(_search(client, tally)) for client in clients]
        say(f"{options.clients} clients, {options.swaps} swaps in {options.seconds} s")
        began = time.monotonic()
        for number in range(1, options.swaps + 1):
            await _swap(publisher, clients[0], number, tally)
            due = began + number * options.seconds / options.swaps
            await asyncio.sleep(max(GONE_S, due - time.monotonic()))
            tally.memory.append(process.memory_info().rss / 1e6)
        tally.stopped = True
        await asyncio.gather(*callers)
    finally:
        for client in clients:
            await client.close()
    if not process.is_running():
        tally.violations.append("the process of retrieve was replaced")
    return tally


async def _swap(publisher: Publisher, client: AsyncClient, number: int, tally: Tally) -> None:
    await asyncio.to_thread(publisher.publish, number)
    began = time.monotonic()
    await _answered(client, number)
    tally.taken.append(time.monotonic() - began)


async def _answered(client: AsyncClient, number: int) -> None:
    """Wait until the snapshot of a number answers."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        with suppress(NotFound):  # the first one makes the collection
            found = await client.search("ready?", collection=COLLECTION)
            if {passage.text for passage in found} == {str(number)}:
                return
        await asyncio.sleep(0.02)
    raise SystemExit(f"swaps: snapshot {number} did not go live within {TIMEOUT_S} s")


def wrong_snapshot(found: Sequence[Passage], last: int) -> str:
    """Return what is wrong with an answer after one of snapshot ``last``, or ""."""
    numbers = sorted({int(passage.text) for passage in found})
    if len(numbers) != 1 or len(found) != TOP_K:
        return f"mixed: {len(found)} passages of snapshots {numbers}"
    return f"went back from snapshot {last} to {numbers[0]}" if numbers[0] < last else ""


def newest(found: Sequence[Passage], last: int) -> int:
    """Return the number of the newest snapshot that has answered."""
    return max([last, *(int(passage.text) for passage in found)])


async def _search(client: AsyncClient, tally: Tally) -> None:
    last = 0
    while not tally.stopped:
        began = time.perf_counter()
        try:
            found = await client.search("What is it?", collection=COLLECTION, top_k=TOP_K)
        except TritonragError as error:
            tally.violations.append(f"{type(error).__name__}: {error}")
            continue
        tally.latencies.append((time.perf_counter() - began) * 1e3)
        if wrong := wrong_snapshot(found, last):
            tally.violations.append(wrong)
        last = newest(found, last)


def publisher_of(each: Served, passages: int) -> Publisher:
    """Return a publisher of snapshots of about ``passages`` passages."""
    embedder = EmbedderManifest.load(each.repository)
    count = max(passages // PER_DOCUMENT, 1) * PER_DOCUMENT
    vectors = np.random.default_rng(0).normal(size=(count, embedder.dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Publisher(each, vectors.astype(np.float32), embedder)


def summary(tally: Tally, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was found, with the verdict."""
    snapshot_mb = options.passages * _dimension(options.repository) * 4 / 1e6
    level = tally.memory[min(SETTLED, len(tally.memory)) - 1]
    later = [tally.memory[min(LATER, len(tally.memory)) - 1], tally.memory[-1]]
    if max(later) - level > snapshot_mb / 2:
        tally.violations.append(f"memory: {level:.0f} MB, later {later[0]:.0f}, {later[1]:.0f}")
    p50, p99, worst = np.percentile(tally.latencies, [50, 99, 100])
    return {
        "clients": options.clients,
        "seconds": options.seconds,
        "swaps": len(tally.taken),
        "passages": options.passages,
        "searches": len(tally.latencies),
        "search_ms": {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(worst, 1)},
        "noticed_s": {
            "mean": round(float(np.mean(tally.taken)), 2), "max": round(max(tally.taken), 2)
        },
        "snapshot_mb": round(snapshot_mb, 1),
        "memory_mb": [round(each, 1) for each in tally.memory],
        "violations": tally.violations[:10],
        "violated": len(tally.violations),
        "ok": not tally.violations,
    }  # fmt: skip


def _dimension(repository: Path) -> int:
    return EmbedderManifest.load(repository).dimension


def main() -> int:
    """Run the check; return the exit status."""
    options = _options()
    end_on_sigterm()
    try:
        with served(options.repository) as each:
            tally = asyncio.run(load(each, options))
    except TritonragError as error:
        say(f"swaps: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    found = summary(tally, options)
    record = provenance("perf/swaps.py", PACKAGES) | {"result": found}
    if options.save:
        file = RESULTS / f"{stem(record)}-swaps.json"
        file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        say(f"written to {file}")
    print(json.dumps(found))
    return 0 if found["ok"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Fifty swaps of a snapshot under load: nothing fails, nothing mixes.",
        epilog="The last line of standard output is one JSON object; status 1 on any violation.",
    )
    add = parser.add_argument
    add("--seconds", type=int, default=180, help="how long (default: 180)")
    add("--swaps", type=int, default=50, help="how many in that time (default: 50)")
    add("--clients", type=int, default=16, help="clients at once (default: 16)")
    add("--passages", type=int, default=20_000, help="in each snapshot (default: 20000)")
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--save", action="store_true", help="write the result into perf/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
