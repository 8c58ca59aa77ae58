"""The benchmark, short: a real perf_analyzer against a real server, and what it leaves behind."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from servers import ROOT

PERF = ROOT / "perf"


@pytest.fixture
def perf_analyzer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PERF))
    import perf_analyzer as module

    return module


def exported(requests: list[dict[str, object]]) -> dict[str, object]:
    """An export of three windows of one second."""
    boundaries = [0, 10**9, 2 * 10**9, 3 * 10**9]
    return {"experiments": [{"requests": requests, "window_boundaries": boundaries}]}


def streamed(sent_ms: int, response_ms: list[int], tokens: int) -> dict[str, object]:
    """A stream whose first response holds no text and whose last one the usage."""
    texts = ["", *["word"] * (len(response_ms) - 2), ""]
    outputs = [{"text": text, "usage": "", "finish_reason": ""} for text in texts]
    outputs[-1] |= {"usage": json.dumps({"generated_tokens": tokens}), "finish_reason": "stop"}
    return {
        "timestamp": sent_ms * 10**6,
        "response_timestamps": [at * 10**6 for at in response_ms],
        "response_outputs": outputs,
    }


def test_the_first_window_is_dropped_and_tokens_are_those_of_the_usage(
    perf_analyzer: ModuleType,
) -> None:
    load = perf_analyzer.Load("rag", 1, streaming=True)
    requests = [
        streamed(0, [100, 200, 300], 50),
        streamed(900, [1000, 1100, 1300], 30),
        streamed(1300, [1400, 1500, 1900], 10),
    ]
    found = perf_analyzer.measured(load, exported(requests), reported_qps=1.0)
    assert (found.requests, found.seconds, found.qps) == (2, 2.0, 1.0)
    assert found.tokens_per_s == 20
    assert found.first_token.p50 == 200
    assert found.latency.p50 == 500
    assert found.errors == 0


def test_a_run_without_a_completed_request_is_an_error(perf_analyzer: ModuleType) -> None:
    load = perf_analyzer.Load("search", 1)
    with pytest.raises(perf_analyzer.RunFailed, match="no request of search"):
        perf_analyzer.measured(load, exported([]), reported_qps=0.0)


def test_the_questions_are_what_their_program_writes(tmp_path: Path) -> None:
    target = tmp_path / "questions.json"
    program = PERF / "workloads" / "make_questions.py"
    subprocess.run([sys.executable, program, "--target", target], check=True, capture_output=True)
    assert target.read_bytes() == (PERF / "workloads" / "questions.json").read_bytes()
    texts = [each["question"]["content"][0] for each in json.loads(target.read_text())["data"]]
    assert len(set(texts)) == len(texts) >= 200


def test_a_wheel_that_is_not_the_pinned_one_is_refused(
    perf_analyzer: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / perf_analyzer.WHEEL).write_bytes(b"something else")
    with pytest.raises(perf_analyzer.SetupError, match="not the file that is pinned"):
        perf_analyzer.ensure(tmp_path)


def test_without_the_package_index_the_reason_and_the_remedy_are_told(
    perf_analyzer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(perf_analyzer.SetupError, match="put tritonclient-.* into perf/tools"):
        perf_analyzer.ensure(tmp_path)


def test_the_short_benchmark_measures_and_writes_its_result(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, PERF / "bench.py", "--short", "--output", tmp_path],
        capture_output=True, text=True, timeout=240, check=False, env=os.environ,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["errors"] == 0
    assert summary["search_c16_qps"] > 0
    assert summary["limit_b64_qps"] > 0
    assert summary["search_c16_over_limit"] > 0.05
    assert summary["embed_mean_batch"] > 1
    assert summary["bulk_embed_over_bare"] > 0.05
    (record,) = tmp_path.glob("*.json")
    written = json.loads(record.read_text(encoding="utf-8"))
    assert written["summary"] == summary
    assert written["machine"]["cores"] >= 1
    embed = written["rounds"][0]["runs"][0]["models"]["embed"]
    assert embed["executions"] > 0
    batches = {int(size): count for size, count in embed["batches"].items()}
    assert sum(size * count for size, count in batches.items()) == embed["requests"]
    assert record.with_suffix(".md").read_text(encoding="utf-8").startswith("| load |")


def test_the_bulk_measurement_tells_how_much_the_run_keeps_of_the_embedder(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(3):
        (docs / f"{number}.md").write_text(f"# File {number}\n\n" + f"Words {number}. " * 300)
    shutil.make_archive(str(tmp_path / "corpora" / "docs"), "gztar", tmp_path, "docs")
    ended = subprocess.run(
        [sys.executable, PERF / "bulk.py", "--corpora", tmp_path / "corpora",
         "--output", tmp_path / "results"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["bulk_over_bare"] > 0
    assert (summary["files"], summary["failed"]) == (3, 0)
    assert (summary["unchanged_embedded"], summary["changed_files"]) == (0, 1)
    assert 1 <= summary["changed_embedded"] < summary["passages"]
    (record,) = (tmp_path / "results").glob("*-bulk.json")
    assert json.loads(record.read_text(encoding="utf-8"))["summary"] == summary


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PERF))
    import soak as module

    return module


def hour(soak: ModuleType, mode: str = "mixed") -> Any:
    """A run of an hour in which `embed` was killed after a minute and answered in two seconds."""
    run = soak.Run(argparse.Namespace(clients=32), mode, began=time.monotonic() - 3600)
    run.memory = [(10.0 * number, 600.0) for number in range(360)]
    run.kills = [soak.Kill("embed", run.began + 60, noticed_s=0.2, answered_s=2.0)]
    return run


def failed(run: Any, at: float, error: str = "Unavailable") -> None:
    """Let a search of half a second end with an error, so many seconds after the beginning."""
    from soak_load import Failure

    times = run.began + at - 0.5, run.began + at
    run.tally.failures.append(Failure("search", *times, error, "no"))


def test_a_kill_excuses_what_ends_as_unavailable_in_the_seconds_after_it(soak: ModuleType) -> None:
    run = hour(soak)
    failed(run, 60.1)
    failed(run, 65.4)
    assert run.violations() == {}
    assert run.availability(strictly=True) == 1
    failed(run, 59)
    failed(run, 66)
    run.tally.searches = [0.0] * 8
    assert run.violations().keys() == {"unavailable too long after a kill"}
    assert run.availability(strictly=True) == 0.8


def test_a_kill_excuses_no_other_error_and_no_slow_recovery(soak: ModuleType) -> None:
    run = hour(soak)
    failed(run, 61, "InternalError")
    run.kills[0].answered_s = 5.5
    assert run.violations().keys() == {"failed as InternalError", "slow recovery"}
    run.kills[0].restarted = True
    assert run.violations().keys() == {"failed as InternalError"}


def test_memory_that_grows_after_ten_minutes_is_named(soak: ModuleType) -> None:
    run = hour(soak)
    run.memory = [(at, 600.0 + at / 60) for at, _ in run.memory]
    assert run.violations() == {"memory": ["612 to 657 MB"]}


def test_an_overload_allows_refusals_and_no_restart(soak: ModuleType) -> None:
    run = hour(soak, "overload")
    failed(run, 1000)
    assert run.violations() == {}
    run.restarts = 1
    assert run.violations().keys() == {"restarted"}


def test_a_short_soak_kills_swaps_and_writes_what_it_saw(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, PERF / "soak.py", "--quick", "--seed", "9", "--output", tmp_path],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    summary = json.loads(ended.stdout.splitlines()[-1])
    slow = {"slow recovery", "unavailable too long after a kill"}
    assert summary["violations"].keys() <= slow, summary  # the machine may be
    assert ended.returncode == (0 if summary["ok"] else 1)
    assert summary["right"].keys() == {"search", "swapped", "rag", "embed", "bad", "vanished"}
    assert summary["swaps"] >= 1
    (record,) = tmp_path.glob("*-soak-mixed.json")
    written = json.loads(record.read_text(encoding="utf-8"))
    assert written["finished"]
    assert written["summary"] == summary
    assert written["kills"][0]["answered_s"] > 0
    assert written["memory_mb"][0][1] > 100
    assert written.keys() >= {"command", "commit", "versions", "machine"}
