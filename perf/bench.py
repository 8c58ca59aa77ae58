"""``make bench``: ``search`` and ``rag`` under load, beside what the same machine can do at most.

Throughput alone says more about a machine than about a server. So each round measures, one right
after the other on the same questions and the same index, the server under perf_analyzer and the
same work in one process without a server (``in_process.py``, at batch 64 before and after the
server's run, whose mean is the limit). Their ratio is what the server keeps of the machine. Another
program on the same cores or a changed clock moves both; a ratio that still spreads over the rounds
says that the machine was not quiet. The table gives medians, and in brackets the lowest and the
highest round.

What to expect: at 1 client `search` is latency, one question after another through three models,
so that its distance to the in-process latency is the cost of the graph. At 64 clients the batcher
forms batches in which the fixed cost of a run is shared; clients, server and models then share the
cores. `rag` is bound by prefill (time to first token) and decode (tokens/s): its clients wait for
the engine, and beyond what the engine batches, more of them only wait longer. After the rounds
comes the crowd, once: ``search`` at 200 clients and ``rag`` at 64.

Standard output is the Markdown table and, as its last line, one JSON object. Both, with all raw
numbers, Triton's own statistics of each run, machine, versions, commit and command, are written to
``perf/results/``. The exit status is 1 if any request failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measuring
import perf_analyzer
from handbook_server import HANDBOOK, REPOSITORY, Served, say, served
from in_process import BareEngine, Search
from measuring import PACKAGES, QUESTIONS, RESULTS, Run
from perf_analyzer import Load, Measured
from provenance import provenance
from report import median, spread

from tritonrag.errors import TritonragError
from tritonrag.server.launch import end_on_sigterm

LIMIT_BATCH = 64
ENGINE_PROMPTS = 64
BULK_PASSAGES = 192
"""Passages that are embedded once by the server and once in this process."""


@dataclass(frozen=True)
class Plan:
    """What a round consists of; windows and pieces in seconds."""

    search_clients: tuple[int, ...]
    """The first one is compared with the limit, which is measured before and after it."""
    rag_clients: tuple[int, ...]
    crowd: int
    """Clients of one more load of `rag`, measured once after the rounds; 0 is none."""
    search_crowd: int
    """The same of `search`."""
    rate: int
    """Requests/s of one more load of `search`, in an open loop; 0 is none."""
    max_tokens: int
    """The limit on answers; 0 is the default of `rag`."""
    rounds: int
    window_s: float
    piece_s: float

    @property
    def loads(self) -> tuple[Load, ...]:
        """All loads, in the order of the table."""
        searches = [*sorted(self.search_clients), *filter(None, [self.search_crowd])]
        rags = [*self.rag_clients, *filter(None, [self.crowd])]
        return (
            *(Load("search", clients) for clients in searches),
            *([Load("search", 0, rate=self.rate)] if self.rate else []),
            *(Load("rag", clients, streaming=True) for clients in rags),
        )


FULL = Plan(
    (64, 1, 8),
    (1, 8),
    crowd=64,
    search_crowd=200,
    rate=0,
    max_tokens=0,
    rounds=3,
    window_s=0.8,
    piece_s=1.5,
)
SHORT = Plan(
    (16,), (), crowd=0, search_crowd=0, rate=0, max_tokens=0, rounds=1, window_s=0.6, piece_s=1.0
)
RAG_WINDOWS = 2.0
CROWD_WINDOWS = 8.0
"""Factors on the window: answers take longer than searches, and a crowd's first one, which is
dropped, has to be as long as the queue that forms before the engine."""


@dataclass
class Round:
    """The measurements of one round. ``limits`` are questions/s before and after each search."""

    limits: list[float] = field(default_factory=list)
    limit_latency_ms: float | None = None
    engine_tokens_per_s: dict[int, float] = field(default_factory=dict)
    """Prompts at a time to tokens/s, for the clients of ``rag``."""
    engine_first_token_ms: float | None = None
    bulk_per_s: float | None = None
    """Passages embedded in a second through the server, and in this process."""
    bare_bulk_per_s: float | None = None
    runs: list[Run] = field(default_factory=list)
    ratios: dict[int, float] = field(default_factory=dict)
    """Clients to the share of the limit, for the loads of ``search`` with a limit around them."""


class Bench:
    """Measures rounds on one running server."""

    def __init__(self, each: Served, plan: Plan, questions: Path, folder: Path) -> None:
        """Fetch perf_analyzer and load the work to compare with; ``folder`` is for scratch."""
        self._served, self._plan, self._file = each, plan, questions
        self._rag_file = (
            measuring.limited(questions, plan.max_tokens, folder) if plan.max_tokens else questions
        )
        self._program = perf_analyzer.ensure()
        texts = measuring.question_texts(questions)
        kept = itertools.cycle(each["text"] for each in measuring.passages(each))
        self._passages = list(itertools.islice(kept, BULK_PASSAGES))
        self._search = Search(each, texts)
        self._engine = (
            BareEngine(each, self._search, texts[:ENGINE_PROMPTS], plan.max_tokens)
            if plan.rag_clients
            else None
        )

    def warm_up(self) -> None:
        """Send the first requests, which cost more than all later ones."""
        say("warming up")
        for load in (*self._searches(), *self._rags()):
            measuring.warm_up(self._program, self._served, load, self._questions(load))

    def round(self) -> Round:
        """Measure everything once."""
        found = Round(limits=[self._limit()])
        for number, load in enumerate(self._searches()):
            run = self._run(load)
            found.runs.append(run)
            if number == 0:
                found.limits.append(self._limit())
                if run.measured:
                    limit = statistics.fmean(found.limits)
                    found.ratios[load.clients] = run.measured.qps / limit
        say("  in process, one question at a time")
        found.limit_latency_ms = self._search.latency_ms(self._plan.piece_s)
        found.runs += [self._run(load) for load in self._rags()]
        if self._engine:
            for prompts in filter(lambda each: each > 1, self._plan.rag_clients):
                say(f"  in process, the bare engine with {prompts} prompts at a time")
                tokens = self._engine.tokens_per_s(prompts, self._plan.piece_s)
                found.engine_tokens_per_s[prompts] = tokens
            found.engine_first_token_ms = self._engine.first_token_ms(self._plan.piece_s)
        say(f"  {len(self._passages)} passages embedded, by the server and in process")
        found.bulk_per_s = measuring.bulk_embedding(self._served, self._passages)
        found.bare_bulk_per_s = self._search.embedded_per_s(self._passages)
        return found

    def crowd(self) -> Round:
        """Measure with more clients than a batch, or the engine, takes at a time, and by rate."""
        plan, window_s = self._plan, CROWD_WINDOWS * self._plan.window_s
        loads = [Load("search", plan.search_crowd, window_s / 2)] if plan.search_crowd else []
        loads += [Load("rag", plan.crowd, window_s, streaming=True)] if plan.crowd else []
        loads += [Load("search", 0, window_s / 2, rate=plan.rate)] if plan.rate else []
        return Round(runs=[self._run(load) for load in loads])

    def close(self) -> None:
        """Free what was loaded."""
        self._search.close()
        if self._engine:
            self._engine.close()

    def _searches(self) -> Iterator[Load]:
        for clients in self._plan.search_clients:
            yield Load("search", clients, self._plan.window_s)

    def _rags(self) -> Iterator[Load]:
        for clients in self._plan.rag_clients:
            yield Load("rag", clients, RAG_WINDOWS * self._plan.window_s, streaming=True)

    def _limit(self) -> float:
        say(f"  in process, {LIMIT_BATCH} questions at a time")
        return self._search.throughput(LIMIT_BATCH, self._plan.piece_s)

    def _run(self, load: Load) -> Run:
        return measuring.run(self._program, self._served, load, self._questions(load))

    def _questions(self, load: Load) -> Path:
        return self._rag_file if load.streaming else self._file


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    plan = dataclasses.replace(SHORT if options.short else FULL)
    plan = dataclasses.replace(
        plan,
        search_clients=options.search_clients or plan.search_clients,
        rag_clients=options.rag_clients or plan.rag_clients,
        crowd=plan.crowd if options.crowd is None else options.crowd,
        search_crowd=plan.search_crowd if options.search_crowd is None else options.search_crowd,
        rate=options.rate,
        max_tokens=options.max_tokens,
        rounds=options.rounds or plan.rounds,
        window_s=plan.window_s * options.scale,
        piece_s=plan.piece_s * options.scale,
    )
    end_on_sigterm()
    try:
        return _measure(options, plan)
    except TritonragError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _measure(options: argparse.Namespace, plan: Plan) -> int:
    began = time.monotonic()
    with (
        served(options.repository, options.documents, options.index_dir, options.config) as each,
        tempfile.TemporaryDirectory() as scratch,
    ):
        bench = Bench(each, plan, options.questions, Path(scratch))
        try:
            bench.warm_up()
            rounds = _rounds(bench, plan, began + options.budget)
            if plan.crowd or plan.search_crowd or plan.rate:
                rounds.append(bench.crowd())
            memory_mb = each.memory_mb()
        finally:
            bench.close()
    summary = _summary(plan, rounds) | {
        "server_rss_mb": round(memory_mb, 1),
        "seconds": round(time.monotonic() - began, 1),
    }
    table = _table(plan, rounds, summary)
    measuring.write(options.output, _record(options, plan, rounds, summary), table)
    print(table)
    print(json.dumps(summary))
    return 1 if summary["errors"] else 0


def _rounds(bench: Bench, plan: Plan, deadline: float) -> list[Round]:
    """Measure as many rounds as planned, or as fit: a slow machine gets fewer, never none."""
    rounds: list[Round] = []
    took = 0.0
    for number in range(1, plan.rounds + 1):
        began = time.monotonic()
        if rounds and began + took > deadline:
            say(f"{plan.rounds - len(rounds)} rounds left out, time is up")
            break
        say(f"round {number} of {plan.rounds}")
        rounds.append(bench.round())
        took = time.monotonic() - began
    return rounds


def _summary(plan: Plan, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the line that other programs read: medians over the rounds, None where all failed."""
    key_clients = plan.search_clients[0]
    key = f"search_c{key_clients}_over_limit"
    ratios = [ratio for each in rounds if (ratio := each.ratios.get(key_clients)) is not None]
    summary: dict[str, Any] = {
        key: median(ratios, 3),
        f"{key}_min": round(min(ratios), 3) if ratios else None,
        f"{key}_max": round(max(ratios), 3) if ratios else None,
        f"limit_b{LIMIT_BATCH}_qps": median([limit for r in rounds for limit in r.limits]),
        "limit_b1_p50_ms": median(_latencies(rounds), 3),
        "embed_mean_batch": median(
            [run.models["embed"].mean_batch for run in _runs(rounds, f"search_c{key_clients}")], 2
        ),
    }
    for load in plan.loads:
        of = _figures(rounds, load.key)
        if load.streaming:
            summary[f"{load.key}_ttft_ms"] = median(of(_ttft))
            summary[f"{load.key}_ttft_p95_ms"] = median(of(_ttft_p95))
            summary[f"{load.key}_tokens_per_s"] = median(of(lambda found: found.tokens_per_s))
        else:
            summary[f"{load.key}_qps"] = median(of(lambda found: found.qps))
            summary[f"{load.key}_p50_ms"] = median(of(lambda found: found.latency.p50), 3)
            summary[f"{load.key}_p95_ms"] = median(of(lambda found: found.latency.p95), 3)
    summary |= _compared(rounds)
    summary["bulk_embed_over_bare"] = median(_bulk_ratios(rounds), 3)
    summary["rounds"] = len(_latencies(rounds))
    summary["errors"] = sum(run.errors for each in rounds for run in each.runs)
    return summary


def _compared(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the figures that compare one measurement with another of the same round."""
    over_ms, first_over_ms = [], []
    over_engine: dict[int, list[float]] = {}
    for each in rounds:
        by = {run.load.key: run.measured for run in each.runs}
        alone, answer = by.get("search_c1"), by.get("rag_c1")
        if alone and each.limit_latency_ms:
            over_ms.append(alone.latency.p50 - each.limit_latency_ms)
        if alone and answer and answer.first_token and each.engine_first_token_ms:
            parts = alone.latency.p50 + each.engine_first_token_ms
            first_over_ms.append(answer.first_token.p50 - parts)
        for prompts, tokens_per_s in each.engine_tokens_per_s.items():
            rag = by.get(f"rag_c{prompts}")
            if rag and rag.tokens_per_s and tokens_per_s:
                over_engine.setdefault(prompts, []).append(rag.tokens_per_s / tokens_per_s)
    if not any(run.load.streaming for each in rounds for run in each.runs):
        return {}
    return {
        "search_c1_p50_over_ms": median(over_ms, 3),
        "engine_b1_ttft_ms": median(_of(rounds, "engine_first_token_ms")),
        "rag_c1_ttft_over_ms": median(first_over_ms),
        **{
            f"engine_b{prompts}_tokens_per_s": median(found)
            for prompts, found in _engine_rates(rounds).items()
        },
        **{
            f"rag_c{prompts}_tokens_over_engine": median(found, 3)
            for prompts, found in over_engine.items()
        },
    }


def _engine_rates(rounds: Sequence[Round]) -> dict[int, list[float]]:
    """Return the bare engine's tokens/s in every round, by the prompts at a time."""
    rates: dict[int, list[float]] = {}
    for each in rounds:
        for prompts, tokens_per_s in each.engine_tokens_per_s.items():
            rates.setdefault(prompts, []).append(tokens_per_s)
    return rates


def _bulk_ratios(rounds: Sequence[Round]) -> list[float]:
    pairs = ((each.bulk_per_s, each.bare_bulk_per_s) for each in rounds)
    return [served / bare for served, bare in pairs if served and bare]


def _of(rounds: Sequence[Round], field: str) -> list[float]:
    """Return one figure of every round that has it."""
    return [value for each in rounds if (value := getattr(each, field)) is not None]


def _table(plan: Plan, rounds: Sequence[Round], summary: dict[str, Any]) -> str:
    head = ("load", "requests/s", "p50 ms", "p95 ms", "first token p50 ms", "tokens/s",
            "mean batch of embed")  # fmt: skip
    rows = [_row(rounds, load) for load in plan.loads]
    limits = [limit for each in rounds for limit in each.limits]
    rows.append([f"in process, batch {LIMIT_BATCH}", spread(limits), *[""] * 4, str(LIMIT_BATCH)])
    rows.append(["in process, batch 1", "", spread(_latencies(rounds)), *[""] * 3, "1"])
    for prompts, rates in _engine_rates(rounds).items():
        rows.append([f"bare engine, {prompts} prompts", *[""] * 4, spread(rates), ""])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    ratios = [each.ratios[plan.search_clients[0]] for each in rounds if each.ratios]
    return "\n".join(
        [
            *("| " + " | ".join(cells) + " |" for cells in lines),
            "",
            f"`search` at {plan.search_clients[0]} clients over the in-process limit: "
            f"**{spread(ratios, 3) or 'not measured'}**; medians of {summary['rounds']} rounds "
            "(lowest–highest), "
            f"{summary['errors']} errors, server memory {summary['server_rss_mb']} MB.",
        ]
    )


def _row(rounds: Sequence[Round], load: Load) -> list[str]:
    of = _figures(rounds, load.key)
    batches = [run.models["embed"].mean_batch for run in _runs(rounds, load.key)]
    return [
        load.name,
        spread(of(lambda found: found.qps)),
        spread(of(lambda found: found.latency.p50)),
        spread(of(lambda found: found.latency.p95)),
        spread(of(_ttft)),
        spread(of(lambda found: found.tokens_per_s)),
        spread(batches),
    ]


def _figures(
    rounds: Sequence[Round], key: str
) -> Callable[[Callable[[Measured], float | None]], list[float]]:
    """Return a function that takes one figure out of every run of a load."""
    found = [run.measured for run in _runs(rounds, key) if run.measured]
    return lambda figure: [value for each in found if (value := figure(each)) is not None]


def _runs(rounds: Sequence[Round], key: str) -> list[Run]:
    return [run for each in rounds for run in each.runs if run.load.key == key]


def _ttft(found: Measured) -> float | None:
    return found.first_token.p50 if found.first_token else None


def _ttft_p95(found: Measured) -> float | None:
    return found.first_token.p95 if found.first_token else None


def _latencies(rounds: Sequence[Round]) -> list[float]:
    return _of(rounds, "limit_latency_ms")


def _record(
    options: argparse.Namespace, plan: Plan, rounds: Sequence[Round], summary: dict[str, Any]
) -> dict[str, Any]:
    found = provenance("perf/bench.py", PACKAGES)
    found["versions"]["perf_analyzer"] = perf_analyzer.VERSION
    return (
        found
        | measuring.installed_models(options.repository)
        | {
            "config": options.config,
            "plan": dataclasses.asdict(plan),
            "summary": summary,
            "rounds": [dataclasses.asdict(each) for each in rounds],
        }
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure search and rag on a server of its own, beside the in-process limit.",
        epilog="The last line of standard output is one JSON object.",
    )
    add = parser.add_argument
    add("--short", action="store_true", help="search at 16 clients only, once: a check, about 15 s")
    add("--rounds", type=int, help="repeats of everything (default: 3; 1 with --short)")
    add("--scale", type=float, default=1.0, help="factor on all measuring times (default: 1)")
    add("--budget", type=float, default=130, help="seconds after which no round begins that "
        "would end later (default: 130)")  # fmt: skip
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--config", default="", help="config variant to serve, such as openvino")
    add("--index-dir", type=Path, help="index to serve (default: a new one of --documents)")
    add("--documents", type=Path, default=HANDBOOK, help="what to index (default: the handbook)")
    add("--search-clients", type=_numbers, help="loads of search; the first is compared with the "
        "in-process limit (default: 64,1,8)")  # fmt: skip
    add("--rag-clients", type=_numbers, help="loads of rag, each also put to the bare engine "
        "(default: 1,8)")  # fmt: skip
    add("--search-crowd", type=int, help="clients of one more load of search, after the rounds; "
        "0 for none (default: 200)")  # fmt: skip
    add("--crowd", type=int, help="the same of rag (default: 64)")
    add("--rate", type=int, default=0, help="one more load of search at so many requests/s")
    add("--max-tokens", type=int, default=0, help="limit on answers, of the bare engine too")
    add("--questions", type=Path, default=QUESTIONS, help="perf_analyzer's input data")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
