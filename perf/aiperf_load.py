"""Runs NVIDIA's AIPerf against ``generate_stream``: tokens as a browser or curl receives them.

AIPerf speaks to any endpoint whose request a template can write and whose events JMESPath can read,
so that Triton's plain HTTP stream of the graph is measured as it is. It counts tokens itself, with
the LLM's tokenizer. It has an environment of its own, pinned in ``aiperf-requirements.txt``. Its
processes take more of a small machine than perf_analyzer does: compare its times with its own.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environments
from perf_analyzer import TOOLS, RunFailed

REQUIREMENTS = Path(__file__).parent / "aiperf-requirements.txt"
ENVIRONMENT = TOOLS / "aiperf"
TEMPLATE = '{"question": {{ text|tojson }}}'
TIMEOUT_S = 240
ONLINE = {"HF_HUB_OFFLINE": ""}
"""Offline, AIPerf takes a folder for the name of a model on the hub and looks for it in a cache."""


def run(url: str, questions: Sequence[str], tokenizer: Path, clients: int) -> dict[str, Any]:
    """Ask ``rag`` at ``url`` and return what was measured, in the words of ``http_load``.

    Raises:
        SetupError: AIPerf cannot be installed.
        RunFailed: it ended with an error, or no answer was complete.
    """
    environments.ensure(ENVIRONMENT, REQUIREMENTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (json.dumps({"text": question}) + "\n" for question in questions)
        (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
        command = [
            "aiperf", "profile", "--model", "rag", "--url", url, "--streaming",
            "--endpoint-type", "template", "--custom-endpoint", "/v2/models/rag/generate_stream",
            "--extra-inputs", f"payload_template:{TEMPLATE}",
            "--extra-inputs", "response_field:text",
            "--input-file", str(folder / "questions.jsonl"), "--custom-dataset-type", "single_turn",
            "--tokenizer", str(tokenizer), "--concurrency", str(clients),
            "--request-count", str(max(20, 10 * clients)),
            "--ui", "none", "--artifact-dir", str(folder),
        ]  # fmt: skip
        _call(command)
        export = folder / "profile_export_aiperf.json"
        if not export.is_file():
            raise RunFailed("aiperf wrote no result")
        return measured(json.loads(export.read_text(encoding="utf-8")), clients)


def measured(export: dict[str, Any], clients: int) -> dict[str, Any]:
    """Return the figures of AIPerf's export.

    Raises:
        RunFailed: no answer was complete.
    """
    if not export.get("time_to_first_token"):
        raise RunFailed("aiperf: no answer was complete")
    failed = export.get("error_request_count") or {"avg": 0}
    return {
        "clients": clients,
        "requests": int(export["request_count"]["avg"]),
        "qps": round(export["request_throughput"]["avg"], 3),
        "latency": _percentiles(export["request_latency"]),
        "first_token": _percentiles(export["time_to_first_token"]),
        "tokens_per_s": round(export["output_token_throughput"]["avg"], 2),
        "errors": int(failed["avg"]),
    }


def _percentiles(metric: dict[str, float]) -> dict[str, float]:
    return {name: round(metric[name], 3) for name in ("p50", "p95", "p99")}


def _call(command: list[str]) -> None:
    try:
        ended = subprocess.run(
            command, env=environments.variables(ENVIRONMENT) | ONLINE, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunFailed(f"aiperf did not end within {TIMEOUT_S} s") from None
    if ended.returncode:
        lines = (ended.stdout + ended.stderr).splitlines()
        errors = (line.partition(" ERROR ")[2].strip() for line in lines if " ERROR " in line)
        raise RunFailed(f"aiperf: {next(errors, ended.returncode)}")
