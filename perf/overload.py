"""Overload: `search` is offered twice what it can answer, and has to go on answering as much.

A closed loop cannot overload a server: its clients wait. So for an overload wrk holds far more
connections than are ever under way, each of which pauses for a random time before it asks again:
as from many callers who know nothing of each other, requests come whatever becomes of the others
(``workloads/paced.lua``). A server without bounds would queue them all: every answer comes late,
and after a minute none in time. This one refuses with UNAVAILABLE (status 503) what would wait
behind too many, which tells a caller to come back later.

A round finds the peak first, the answers a second to as many clients in a closed loop as fill the
batches. Then comes the overload, and the peak again, since it must leave nothing behind. Reported
are the goodput (answers a second) over the mean of both peaks, the latency of what was answered,
and how fast the rest was refused. Refusing takes cycles of the same cores.

Standard output is, as its last line, one JSON object; with every round it goes to
``perf/results/``. The exit status is 1 if a request failed in any other way than by refusal.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import http_load
import measuring
from bench_full import search_request
from handbook_server import REPOSITORY, Served, say, served
from http_load import HttpMeasured
from measuring import PACKAGES, QUESTIONS, RESULTS
from provenance import provenance, stem
from report import median

from tritonrag.errors import TritonragError
from tritonrag.server.launch import end_on_sigterm

PEAK_CLIENTS, CROWD = 64, 2000
FACTORS = (1.0, 2.0)
Round = dict[str, HttpMeasured]


def rounds(each: Served, options: argparse.Namespace) -> list[Round]:
    """Return the loads of every round by name: ``before``, ``x1``, ``x2``, ``after``."""
    requests = [search_request(question) for question in measuring.question_texts(QUESTIONS)]

    def load(clients: int, pause_s: float = 0) -> HttpMeasured:
        found = http_load.run(each.http, requests, clients, options.seconds, pause_s=pause_s)
        measuring.settle(each.running.pid)
        return found

    load(PEAK_CLIENTS)  # the first requests cost more than all later ones
    found = []
    for number in range(1, options.rounds + 1):
        say(f"round {number} of {options.rounds}")
        loads = {"before": load(PEAK_CLIENTS)}
        for factor in FACTORS:
            # A connection's turn is its pause and what it then waits: up to a second.
            turn_s = CROWD / (factor * loads["before"].qps)
            loads[f"x{factor:g}"] = load(CROWD, max(turn_s - 0.5, 0.1))
        loads["after"] = load(PEAK_CLIENTS)
        found.append(loads)
    return found


def summary(found: list[Round]) -> dict[str, Any]:
    """Return the medians over the rounds."""
    peaks = [(each["before"].qps + each["after"].qps) / 2 for each in found]
    line: dict[str, Any] = {"peak_qps": median(peaks)}
    for name in (f"x{factor:g}" for factor in FACTORS):
        loads = [each[name] for each in found]
        pairs = list(zip(loads, peaks, strict=True))
        line |= {
            f"offered_{name}_over_peak": median([load.qps / peak for load, peak in pairs], 3),
            f"goodput_{name}_over_peak": median([_goodput(load) / peak for load, peak in pairs], 3),
            f"answered_{name}_p95_ms": median([load.latency.p95 for load in loads]),
            f"refused_{name}_p50_ms": median(
                [load.refused_p50_ms for load in loads if load.refused_p50_ms]
            ),
        }
    after = [each["after"].qps / each["before"].qps for each in found]
    errors = sum(load.errors for each in found for load in each.values())
    return line | {"peak_after_over_before": median(after, 3), "rounds": len(found),
                   "errors": errors}  # fmt: skip


def _goodput(load: HttpMeasured) -> float:
    return (load.requests - load.refused) / load.seconds


def main() -> int:
    """Measure; return the exit status."""
    options = _options()
    end_on_sigterm()
    try:
        with served(options.repository, config=options.config) as each:
            found = rounds(each, options)
    except TritonragError as error:
        say(f"overload: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    line = summary(found)
    record = provenance("perf/overload.py", PACKAGES) | {
        "config": options.config,
        "summary": line,
        "rounds": [{name: load.as_dict() for name, load in loads.items()} for loads in found],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{stem(record)}-overload.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(f"written: {path}")
    print(json.dumps(line))
    return 1 if line["errors"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Offer search its peak and twice as much, and see what it still answers.",
        epilog="The last line of standard output is one JSON object.",
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="repeats of everything (default: 3)")
    add("--seconds", type=float, default=8, help="length of a window (default: 8)")
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--config", default="", help="config variant to serve, such as openvino")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
