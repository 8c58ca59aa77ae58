"""What the full benchmark keeps, says and sends, without a server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PERF = Path(__file__).parents[2] / "perf"
PEERS = sorted(path.parent for path in PERF.glob("peers/*/requirements.txt"))


@pytest.fixture(autouse=True)
def _perf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PERF / "workloads"))
    monkeypatch.syspath_prepend(str(PERF))


@pytest.fixture
def report() -> ModuleType:
    import report as module

    return module


def http(qps: float, **more: Any) -> dict[str, Any]:
    latency = {"p50": 10.0, "p95": 20.0, "p99": 30.0}
    return {"clients": 64, "qps": qps, "latency": latency, "errors": 0, **more}


def grpc(qps: float, p50: float = 10.0, **more: Any) -> dict[str, Any]:
    latency = {"p50": p50, "p95": 20.0, "p99": 30.0}
    counted = {"requests": 30, "queue_ms": 30.0, "compute_ms": 60.0, "batches": {"1": 10, "4": 5}}
    return {
        "measured": {"qps": qps, "latency": latency, **more},
        "models": {name: counted for name in STAGES},
        "errors": 0,
    }


STAGES = ("tokenize", "embed", "retrieve", "prompt", "generate")
CELLS = {
    "agreement/fastapi": 1.0,
    "1/limit/before": 90.0,
    "1/search/grpc/64": grpc(95.0),
    "1/limit/after": 110.0,
    "1/search/http/64": http(80.0),
    "1/search/fastapi/64": http(10.0),
    "2/limit/before": 100.0,
    "2/search/grpc/64": grpc(85.0),
    "2/limit/after": 100.0,
    "2/search/http/64": http(60.0),
    "2/search/fastapi/64": http(10.0, errors=2),
    "2/search/grpc/1": grpc(80.0, p50=9.0),
    "2/in_process/latency": 8.0,
    "2/rag/grpc/1": grpc(8.0, first_token={"p50": 60.0, "p95": 70.0, "p99": 80.0}),
    "2/engine/first_token": 45.0,
    "2/rag/grpc/8": grpc(9.0, tokens_per_s=190.0),
    "2/engine/8": 200.0,
    "2/bulk/server": 45.0,
    "2/bulk/bare": 50.0,
    "2/memory/server": 800.0,
    "2/search/txtai/64": {"errors": 1, "error": "wrk: no request was completed in 4 s"},
}


def test_figures_compare_within_a_round_and_are_medians_over_rounds(report: ModuleType) -> None:
    found = report.summary(report.Result(CELLS))
    assert found["search_c64_over_limit"] == 0.9
    assert found["over_fastapi"] == 7
    assert found["over_fastapi_grpc"] == 9
    assert found["search_c1_p50_over_ms"] == 1
    assert found["rag_c1_ttft_over_ms"] == 6
    assert found["rag_c8_tokens_over_engine"] == 0.95
    assert found["bulk_embed_over_bare"] == 0.9
    assert found["server_rss_mb"] == 800
    assert found["agreement_fastapi"] == 1
    assert found["over_txtai"] is None
    assert (found["rounds"], found["errors"]) == (2, 3)


def test_a_peer_that_finds_other_passages_is_not_compared(report: ModuleType) -> None:
    found = report.summary(report.Result(CELLS | {"agreement/fastapi": 0.5}))
    assert (found["over_fastapi"], found["agreement_fastapi"]) == (None, 0.5)


def test_the_table_has_a_row_for_each_load_and_figure(report: ModuleType) -> None:
    table = report.table(report.Result(CELLS))
    assert "| `search`, gRPC, 64 clients | 90.0 (85.0–95.0) |" in table
    assert "| FastAPI + sentence-transformers + FAISS, 64 clients | 10.0 (10.0–10.0) |" in table
    assert "| `over_fastapi` | 7.000 (6.000–8.000) |" in table


def test_readme_shows_what_a_result_has_with_its_spread(report: ModuleType) -> None:
    result = report.Result(CELLS)
    record = {"summary": report.summary(result), "spreads": report.spreads(result)}
    rows = report.readme_table(record).splitlines()
    assert rows[:2] == ["| | |", "|---|---|"]
    assert "| 0.90 (0.85 to 0.95) |" in rows[2]
    assert "| 7.00× (6.00 to 8.00) |" in report.readme_table(record)
    assert not any("txtai" in row for row in rows)


def test_pictures_are_drawn_beside_the_result(tmp_path: Path, report: ModuleType) -> None:
    import pictures

    paths = pictures.draw(report.Result(CELLS), tmp_path / "result")
    assert [path.name for path in paths] == [
        "result-throughput.svg", "result-batches.svg", "result-stages.svg"
    ]  # fmt: skip
    assert "FastAPI" in paths[0].read_text(encoding="utf-8")


def test_cells_of_a_run_that_ended_are_kept_and_those_of_another_are_not(tmp_path: Path) -> None:
    from cells import Cells

    path = tmp_path / "cells.jsonl"
    Cells(path, {"commit": "a"}).measured("1/limit", lambda: 7.0)
    with path.open("a", encoding="utf-8") as lines:
        lines.write('["1/search", {"qp')
    again = Cells(path, {"commit": "a"})
    assert again.measured("1/limit", lambda: pytest.fail("measured twice")) == 7.0
    assert again.measured("1/search", lambda: (1, 2)) == [1, 2]
    assert Cells(path, {"commit": "a"}).values == {"1/limit": 7.0, "1/search": [1, 2]}
    assert Cells(path, {"commit": "b"}).values == {}


def test_the_corpus_is_the_same_each_time_and_as_long_as_asked_for() -> None:
    import make_passages

    texts = list(make_passages.documents(25))
    assert texts == list(make_passages.documents(25))
    sections = [section for text in texts for section in text.split("\n## ")[1:]]
    assert len(set(sections)) == len(sections) == 25
    assert all(len(section.split()) < 80 for section in sections)


@pytest.mark.parametrize("folder", PEERS, ids=lambda folder: folder.name)
def test_a_peer_is_pinned_and_says_where_its_set_up_comes_from(folder: Path) -> None:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert all("==" in line for line in lines)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "documentation" in readme or "README" in readme


def test_every_peer_has_a_folder() -> None:
    import peer_servers

    names = {peer.name for peer in (*peer_servers.SEARCHERS, peer_servers.TRANSFORMERS)}
    assert names == {folder.name for folder in PEERS}


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: set[str] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.add(json.loads(body)["question"])
        answer = b'{"usage": "{\\"generated_tokens\\": 5}"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_every_request_in_turn_and_sums_the_tokens(echo: str) -> None:
    import http_load

    requests = [http_load.Request("POST", "/ask", {"question": f"a\t{at} é"}) for at in range(3)]
    found = http_load.run(echo, requests, clients=2, seconds=1, tokens=True)
    assert found.errors == 0
    assert found.requests > 3
    assert found.tokens_per_s == pytest.approx(5 * found.qps, rel=0.05)
    assert _Echo.seen == {"a\t0 é", "a\t1 é", "a\t2 é"}


def test_without_wrk_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import http_load

    monkeypatch.setenv("PATH", "")
    with pytest.raises(http_load.SetupError, match="apt install wrk"):
        http_load.ensure()


def test_the_figures_of_aiperf_are_read_from_its_export() -> None:
    import aiperf_load

    times = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    export = {
        "request_count": {"avg": 20.0},
        "request_throughput": {"avg": 2.5},
        "request_latency": times,
        "time_to_first_token": times,
        "output_token_throughput": {"avg": 50.0},
    }
    found = aiperf_load.measured(export, clients=8)
    assert (found["qps"], found["tokens_per_s"], found["errors"]) == (2.5, 50.0, 0)
    assert found["first_token"] == times
    with pytest.raises(aiperf_load.RunFailed, match="no answer"):
        aiperf_load.measured({"time_to_first_token": None}, clients=8)
