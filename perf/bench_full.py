"""``make bench-full``: the same work by this server, by the bare machine and by other servers.

Everything runs on the same machine in the same run, on the same passages and questions, with the
same weights. A round measures, at each number of clients one right after the other: ``search`` over
gRPC by perf_analyzer, between two measurements of the limit (``in_process.py``); over HTTP by wrk;
and every peer (``peers/``) over HTTP by wrk with the same question, number of passages and time.
Then ``rag`` over gRPC and HTTP, its stream by AIPerf, the bare LLM engine, ``transformers`` behind
FastAPI with the very prompts of the engine, ONNX Runtime GenAI by itself with the same ones, and
how fast passages are embedded. ``transformers`` and GenAI decode freely and without a search, where
`rag` quotes, so that answers are compared with theirs and not tokens. Ratios are of one round, and
their spread over the rounds says how quiet the machine was. ``over_fastapi`` and its like compare
HTTP with HTTP at 64 clients; those that end in ``_grpc`` set our gRPC against the peer's HTTP.

A peer is only comparable if it finds the same: ``agreement_…`` is the share of our first passages
that it finds among its own, and below ``report.LEAST_AGREEMENT`` its ratios are void, as they are
when another embedder than MiniLM is served. ``search`` at 200 clients is the crowd; ``rag`` stops
at 64, since its engine refuses more than its queue takes.

Each measured cell is kept below ``results/.partial/`` as it is done. A run that was stopped goes on
where it ended when it is started again, with the same commit, machine and plan.

Standard output is the table and, as its last line, one JSON object. Both go to ``perf/results/``
with every cell, machine, versions, commit and command, and pictures beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import aiperf_load
import http_load
import measuring
import peer_servers
import perf_analyzer
import pictures
import report
from cells import Cells, fingerprint
from handbook_server import REPOSITORY, Served, index, say, served
from http_load import Request
from in_process import BareEngine, DirectGenai, Search
from measuring import PACKAGES, QUESTIONS, RESULTS
from peer_servers import KEYS, SEARCHERS, TRANSFORMERS, Peer, RunningPeer
from perf_analyzer import Load, RunFailed
from provenance import ROOT, provenance

from tritonrag.artifacts import llm_dir
from tritonrag.chunking import ChunkSettings
from tritonrag.client import Client
from tritonrag.contract import DEFAULT_COLLECTION, DEFAULT_TOP_K
from tritonrag.errors import TritonragError
from tritonrag.index.manifest import FORMAT_VERSION
from tritonrag.server.launch import end_on_sigterm
from tritonrag.versions import GENERATE, live_version

sys.path.append(str(Path(__file__).parent / "workloads"))
import make_passages

PARTIAL = RESULTS / ".partial"
LIMIT_CLIENTS = LIMIT_BATCH = 64
ENGINE_PROMPTS = 64
LLM_TOKENS = 64
"""At most, of an answer by a peer: about what the graph's answers have."""
AGREEMENT_QUESTIONS = 100
Measure = Callable[[], Any]


@dataclass(frozen=True)
class Plan:
    """What a run consists of; times in seconds."""

    passages: int
    rounds: int
    window_s: float
    """Of perf_analyzer, which takes three; twice as long for `rag`."""
    load_s: float
    """Of wrk."""
    piece_s: float
    """Of what is measured in this process."""
    search_clients: tuple[int, ...]
    peer_clients: tuple[int, ...]
    rag_clients: tuple[int, ...]
    generation_clients: tuple[int, ...]
    bulk_passages: int


FULL = Plan(10_000, 3, 1.2, 4, 2, (64, 1, 4, 16, 200), (64, 1, 16), (8, 1, 4, 16, 64), (8, 1), 384)
QUICK = Plan(1_000, 1, 0.7, 2, 1, (64, 1, 8), (64, 1, 8), (8, 1), (8, 1), 64)


class Servers:
    """Everything that is measured, started when it is first needed and ended together."""

    def __init__(
        self,
        options: argparse.Namespace,
        folder: Path,
        plan: Plan,
        stack: ExitStack,
        peers: Sequence[Peer],
    ) -> None:
        """Keep indexes below ``folder``; ``stack`` ends what was started."""
        self.peers = peers
        self.questions = measuring.question_texts(QUESTIONS)
        self._options, self._folder, self._plan, self._stack = options, folder, plan, stack
        self._running: dict[str, RunningPeer] = {}

    @cached_property
    def ours(self) -> Served:
        """Our server, over its index of the passages."""
        home = self._folder / "index"
        running = served(self._options.repository, index_dir=home, config=self._options.config)
        each = self._stack.enter_context(running)
        if not (home / DEFAULT_COLLECTION / "CURRENT").is_file():
            documents = self._folder / "documents"
            shutil.rmtree(documents, ignore_errors=True)
            make_passages.write(documents, self._plan.passages)
            index(each, documents)
        return each

    @cached_property
    def search(self) -> Search:
        """``search`` in this process."""
        found = Search(self.ours, self.questions)
        self._stack.callback(found.close)
        return found

    @cached_property
    def engine(self) -> BareEngine:
        """The LLM's engine in this process."""
        found = BareEngine(self.ours, self.search, self.questions[:ENGINE_PROMPTS])
        self._stack.callback(found.close)
        return found

    @cached_property
    def genai(self) -> DirectGenai:
        """The LLM in this process, without our engine."""
        return DirectGenai(self.ours, self.engine.prompts, LLM_TOKENS)

    @cached_property
    def passages(self) -> list[dict[str, str]]:
        """The passages of our index, which every peer is given."""
        return measuring.passages(self.ours)

    def peer(self, peer: Peer) -> RunningPeer:
        """Return a peer that runs, over its index of the passages."""
        if peer.name not in self._running:
            peer_servers.install(peer)
            store = self._folder / peer.name
            built = store / ".built"
            if peer.build and not built.is_file():
                seconds = peer_servers.build(peer, store, self._passages_file)
                built.write_text(f"{seconds:.1f} s\n", encoding="utf-8")
            running = peer_servers.serving(peer, store, self.questions[0])
            self._running[peer.name] = self._stack.enter_context(running)
        return self._running[peer.name]

    @cached_property
    def _passages_file(self) -> Path:
        path = self._folder / "passages.jsonl"
        lines = (json.dumps(each) + "\n" for each in self.passages)
        path.write_text("".join(lines), encoding="utf-8")
        return path


class Bench:
    """Names the cells of a run and measures them."""

    def __init__(self, servers: Servers, plan: Plan) -> None:
        """Measure with these servers."""
        self._servers, self._plan = servers, plan
        self._program = perf_analyzer.ensure()

    def before(self) -> Iterator[tuple[str, Measure]]:
        """Yield what is measured once, before the rounds."""
        yield "passages", lambda: len(self._servers.passages)
        for peer in self._servers.peers:
            yield f"agreement/{KEYS[peer.name]}", partial(self._agreement, peer)

    def round(self) -> Iterator[tuple[str, Measure]]:
        """Yield the cells of one round, those to be compared next to each other."""
        for clients in self._plan.search_clients:
            yield from self._searches(clients)
        yield "in_process/latency", lambda: self._servers.search.latency_ms(self._plan.piece_s)
        for clients in self._plan.rag_clients:
            yield from self._rags(clients)
        yield "engine/1", partial(self._engine, 1)
        yield "engine/8", partial(self._engine, 8)
        yield "engine/first_token", self._first_token
        yield "genai/8", lambda: self._servers.genai.answers_per_s(8, self._plan.piece_s)
        yield "bulk/server", lambda: measuring.bulk_embedding(self._servers.ours, self._bulk)
        yield "bulk/bare", lambda: self._servers.search.embedded_per_s(self._bulk)
        yield "memory/server", lambda: round(self._servers.ours.memory_mb(), 1)
        for peer in self._servers.peers:
            yield f"memory/{KEYS[peer.name]}", partial(self._memory, peer)

    def warm_up(self) -> None:
        """Send every server its first requests, which cost more than all later ones."""
        say("warming up")
        for load in (Load("search", LIMIT_CLIENTS), Load("rag", 4, streaming=True)):
            measuring.warm_up(self._program, self._servers.ours, load, QUESTIONS)
        for peer in self._servers.peers:
            for question in self._servers.questions[:8]:
                self._servers.peer(peer).answer(question, DEFAULT_TOP_K)

    def _searches(self, clients: int) -> Iterator[tuple[str, Measure]]:
        limited = clients == LIMIT_CLIENTS
        if limited:
            yield "limit/before", self._limit
        load = Load("search", clients, self._plan.window_s)
        yield f"search/grpc/{clients}", partial(self._grpc, load)
        if limited:
            yield "limit/after", self._limit
        yield f"search/http/{clients}", partial(self._http, "search", clients)
        if clients in self._plan.peer_clients:
            for peer in self._servers.peers:
                yield f"search/{KEYS[peer.name]}/{clients}", partial(self._peer, peer, clients)

    def _rags(self, clients: int) -> Iterator[tuple[str, Measure]]:
        longer = 2 if clients <= 16 else 4
        load = Load("rag", clients, longer * self._plan.window_s, streaming=True)
        yield f"rag/grpc/{clients}", partial(self._grpc, load)
        yield f"rag/http/{clients}", partial(self._http, "rag", clients, longer / 2)
        if clients in self._plan.generation_clients:
            yield f"rag/aiperf/{clients}", partial(self._aiperf, clients)
            yield f"rag/transformers/{clients}", partial(self._generation, clients)

    def _grpc(self, load: Load) -> dict[str, Any]:
        run = measuring.run(self._program, self._servers.ours, load, QUESTIONS)
        return dataclasses.asdict(run) | {"errors": run.errors}

    def _http(self, model: str, clients: int, longer: float = 1) -> dict[str, Any]:
        form = search_request if model == "search" else _rag_request
        requests = [form(question) for question in self._servers.questions]
        seconds = longer * self._plan.load_s
        ours = self._servers.ours
        return _loaded(ours.http, ours.running.pid, requests, clients, seconds, model == "rag")

    def _peer(self, peer: Peer, clients: int) -> dict[str, Any]:
        requests = [peer.request(each, DEFAULT_TOP_K) for each in self._servers.questions]
        running = self._servers.peer(peer)
        return _loaded(running.url, running.pid, requests, clients, self._plan.load_s)

    def _generation(self, clients: int) -> dict[str, Any]:
        requests = [TRANSFORMERS.request(each, LLM_TOKENS) for each in self._servers.engine.prompts]
        running = self._servers.peer(TRANSFORMERS)
        # Answers at once share the cores, and the first ones end late.
        seconds = self._plan.load_s * (1 if clients == 1 else 4)
        return _loaded(running.url, running.pid, requests, clients, seconds, tokens=True)

    def _aiperf(self, clients: int) -> dict[str, Any]:
        ours, questions = self._servers.ours, self._servers.questions
        tokenizer = ours.repository / llm_dir(live_version(ours.repository, GENERATE))
        return _failing(lambda: aiperf_load.run(ours.http, questions, tokenizer.resolve(), clients))

    def _agreement(self, peer: Peer) -> float:
        running = self._servers.peer(peer)
        shares = []
        with Client(self._servers.ours.grpc) as client:
            for question in self._servers.questions[:AGREEMENT_QUESTIONS]:
                ours = {each.id for each in client.search(question, top_k=DEFAULT_TOP_K)}
                theirs = set(peer.ids(running.answer(question, DEFAULT_TOP_K)))
                shares.append(len(ours & theirs) / DEFAULT_TOP_K)
        return round(fmean(shares), 3)

    def _limit(self) -> float:
        say(f"  in process, {LIMIT_BATCH} questions at a time")
        return self._servers.search.throughput(LIMIT_BATCH, self._plan.piece_s)

    def _engine(self, batch: int) -> float:
        return self._servers.engine.tokens_per_s(batch, self._plan.piece_s)

    def _first_token(self) -> float:
        return self._servers.engine.first_token_ms(self._plan.piece_s)

    def _memory(self, peer: Peer) -> float:
        return round(self._servers.peer(peer).memory_mb(), 1)

    @cached_property
    def _bulk(self) -> list[str]:
        texts = itertools.cycle(each["text"] for each in self._servers.passages)
        return list(itertools.islice(texts, self._plan.bulk_passages))


def search_request(question: str) -> Request:
    """Return a request to `search` over HTTP."""
    tensor = {"name": "question", "shape": [1, 1], "datatype": "BYTES", "data": [question]}
    return Request("POST", "/v2/models/search/infer", {"inputs": [tensor]})


def _rag_request(question: str) -> Request:
    return Request("POST", "/v2/models/rag/generate_stream", {"question": question})


def _loaded(
    url: str, pid: int, requests: Sequence[Request], clients: int, seconds: float,
    tokens: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Put a load on the server of a process and return when it has nothing left to do."""
    found = _failing(
        lambda: http_load.run(url, requests, clients, seconds, tokens=tokens).as_dict()
    )
    measuring.settle(pid)
    return found


def _failing(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is measured, or else why not: one failure does not end the run."""
    try:
        return measure()
    except RunFailed as failure:
        say(f"  failed: {failure}")
        return {"errors": 1, "error": str(failure)}


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    end_on_sigterm()
    try:
        return _measure(options, QUICK if options.quick else FULL)
    except TritonragError as error:
        say(f"bench_full: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; start it again to go on")
        return 130


def _measure(options: argparse.Namespace, plan: Plan) -> int:
    began = time.monotonic()
    http_load.ensure()
    found = provenance("perf/bench_full.py", PACKAGES)
    found["versions"]["perf_analyzer"] = perf_analyzer.VERSION
    found |= measuring.installed_models(options.repository) | {"config": options.config}
    belongs_to = _belongs_to(found, plan, options.peers)
    cells = Cells(options.partial / "cells.jsonl", belongs_to)
    index_of = {"passages": plan.passages, "embedder": found["embedder"]["sha256"],
                "format": FORMAT_VERSION, "recipe": ChunkSettings().recipe}  # fmt: skip
    with ExitStack() as stack:
        peers = [peer for peer in SEARCHERS if KEYS[peer.name] in options.peers]
        folder = options.partial / fingerprint(index_of)
        servers = Servers(options, folder, plan, stack, peers)
        _run(Bench(servers, plan), plan, cells)
    result = report.Result(cells.values)
    summary = report.summary(result) | {"seconds": round(time.monotonic() - began, 1)}
    record = found | {"plan": dataclasses.asdict(plan), "summary": summary,
                      "spreads": report.spreads(result), "cells": cells.values}  # fmt: skip
    table = report.table(result)
    path = measuring.write(options.output, record, table)
    pictures.draw(result, path)
    print(table)
    print(json.dumps(summary))
    return 1 if summary["errors"] else 0


def _run(bench: Bench, plan: Plan, cells: Cells) -> None:
    for name, measure in bench.before():
        _cell(cells, name, measure)
    numbers = range(1, plan.rounds + 1)
    named = [(f"{number}/{name}", cell) for number in numbers for name, cell in bench.round()]
    missing = [(name, measure) for name, measure in named if name not in cells.values]
    if missing:
        bench.warm_up()
    for name, measure in missing:
        _cell(cells, name, measure)


def _cell(cells: Cells, name: str, measure: Measure) -> None:
    say(name)
    cells.measured(name, measure)


def _belongs_to(found: dict[str, Any], plan: Plan, peers: Sequence[str]) -> dict[str, Any]:
    """Return all that makes one run's cells differ from another's."""
    changes = subprocess.run(
        ["git", "-C", str(ROOT), "diff", "HEAD"], capture_output=True, text=True, check=False
    )
    machine = {key: value for key, value in found["machine"].items() if key != "load_average"}
    kept = {key: found[key] for key in ("commit", "versions", "embedder", "llm", "config")}
    plain = json.loads(json.dumps(kept | {"machine": machine, "plan": dataclasses.asdict(plan)}))
    return plain | {"changes": changes.stdout, "peers": sorted(peers)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure this server, the bare machine and other servers on the same work.",
        epilog="The last line of standard output is one JSON object.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="1,000 passages, short windows, one round: a check")
    add("--peers", type=_names, default=sorted(KEYS.values()), metavar="A,B",
        help=f"peers to compare with (default: {','.join(sorted(KEYS.values()))})")  # fmt: skip
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--config", default="", help="config variant to serve, such as openvino")
    add("--partial", type=Path, default=PARTIAL, help="folder of what an unfinished run has done")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


def _names(value: str) -> list[str]:
    names = sorted(filter(None, value.split(",")))
    if unknown := set(names) - set(KEYS.values()):
        raise argparse.ArgumentTypeError(f"no such peer: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
