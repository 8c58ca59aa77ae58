"""What the benchmarks of this folder share: a run with what Triton counted, the passages, results.

A run of perf_analyzer that fails is a result too, and says so.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu
import perf_analyzer
import psutil
from handbook_server import ModelCounts, Served, say
from perf_analyzer import Load, Measured, RunFailed
from provenance import stem

from tritonrag.artifacts import EmbedderManifest, LlmManifest
from tritonrag.chunking import Chunker, ChunkSettings, Passage
from tritonrag.client import Client
from tritonrag.contract import DEFAULT_COLLECTION
from tritonrag.index import Snapshot, layout
from tritonrag.index.adding import GROUP_PASSAGES
from tritonrag.index.embedding import embed_groups
from tritonrag.settings import RemoteLlmSettings
from tritonrag.versions import EMBED, live_version

QUESTIONS = Path(__file__).parent / "workloads" / "questions.json"
RESULTS = Path(__file__).parent / "results"
SETTLE_S, SETTLE_STEP_S, IDLE_SHARE = 30, 0.25, 0.2
"""Idle is less than this share of a core during a step."""
PACKAGES = ("tritonrag", "nvidia-pytriton", "numpy", "onnxruntime", "onnxruntime-genai",
            "faiss-cpu", "tokenizers")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of perf_analyzer and what Triton counted during it, or why it failed."""

    load: Load
    measured: Measured | None
    models: dict[str, ModelCounts]
    error: str = ""
    gpus: list[gpu.Usage] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Requests that failed, as far as anyone has counted them."""
        failed = self.models[self.load.model].failures if self.load.model in self.models else 0
        streams = self.measured.errors if self.measured else 0
        return max(failed + streams, bool(self.error))


def run(program: Path, served: Served, load: Load, questions: Path) -> Run:
    """Put ``load`` on the server; a failure becomes part of what is returned."""
    say(f"  {load.name.replace('`', '')}")
    before = served.counts()
    measured, error = None, ""
    with gpu.watched() as usages:
        try:
            url = served.grpc if load.protocol == "grpc" else served.http.partition("//")[2]
            measured = perf_analyzer.run(program, load, url, questions, served.running.key)
        except RunFailed as failure:
            error = str(failure)
            say(f"  failed: {error}")
    return Run(load, measured, counted(before, served.counts()), error, usages)


def warm_up(program: Path, served: Served, load: Load, questions: Path) -> None:
    """Send the first requests, which cost more than all later ones."""
    requests = 4 if load.streaming else 2 * load.clients
    few = dataclasses.replace(load, clients=min(load.clients, requests), rate=0)
    try:
        key = served.running.key
        perf_analyzer.warm_up(program, few, served.grpc, questions, key, requests)
    except RunFailed as failure:
        say(f"  failed: {failure}")


def settle(pid: int) -> None:
    """Wait until a process and its children are idle, at most ``SETTLE_S``.

    A server goes on with requests whose client has left, and would disturb what is measured next.
    """
    end = time.monotonic() + SETTLE_S
    used = _cpu_seconds(pid)
    while time.monotonic() < end:
        time.sleep(SETTLE_STEP_S)
        before, used = used, _cpu_seconds(pid)
        if used - before < IDLE_SHARE * SETTLE_STEP_S:
            return


def _cpu_seconds(pid: int) -> float:
    total = 0.0
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:2])
    return total


def counted(
    before: dict[str, ModelCounts], after: dict[str, ModelCounts]
) -> dict[str, ModelCounts]:
    """Return what each model counted between two looks."""
    return {name: after[name].since(before[name]) for name in after}


def bulk_embedding(served: Served, texts: Sequence[str]) -> float:
    """Return how many passages a second ``tritonrag index add`` embeds through the server."""
    dimension = EmbedderManifest.load(served.repository).dimension
    with Client(served.grpc) as client:
        began = time.perf_counter()
        groups = (
            (at, texts[at : at + GROUP_PASSAGES]) for at in range(0, len(texts), GROUP_PASSAGES)
        )
        for _ in embed_groups(client, groups, dimension):
            pass
        return len(texts) / (time.perf_counter() - began)


def passages(served: Served) -> list[dict[str, str]]:
    """Return ``id`` and ``text`` of each passage of the index, with the text that is embedded."""
    folder = served.index_dir / DEFAULT_COLLECTION
    version = live_version(served.repository, EMBED)
    manifest = EmbedderManifest.load(served.repository, version)
    name = layout.current(folder, manifest.sha256)
    snapshot = Snapshot.open(folder / str(name), verify=False)
    chunker = Chunker.of(served.repository, ChunkSettings(), version)
    found = (Passage.from_json(snapshot.passage(number)) for number in range(len(snapshot)))
    return [{"id": each.id, "text": chunker.embedded_text(each)} for each in found]


def question_texts(questions: Path) -> list[str]:
    """Return the questions of perf_analyzer's input data."""
    steps = json.loads(questions.read_text(encoding="utf-8"))["data"]
    return [step["question"]["content"][0] for step in steps]


def limited(questions: Path, max_tokens: int, folder: Path) -> Path:
    """Write the input data again, with a limit on the answer's tokens in each; return its path."""
    data = json.loads(questions.read_text(encoding="utf-8"))
    limit = {"max_tokens": {"content": [max_tokens], "shape": [1]}}
    path = folder / "questions.json"
    path.write_text(json.dumps({"data": [step | limit for step in data["data"]]}), encoding="utf-8")
    return path


def installed_models(repository: Path) -> dict[str, Any]:
    """Return what embeds and what generates, for a result's file."""
    embedder = dataclasses.asdict(EmbedderManifest.load(repository))
    remote = RemoteLlmSettings.from_environment()
    if remote:
        return {"embedder": embedder, "llm": {"model": remote.model, "remote": True}}
    return {"embedder": embedder, "llm": dataclasses.asdict(LlmManifest.load(repository))}


def write(folder: Path, record: dict[str, Any], table: str) -> Path:
    """Write a result as JSON and Markdown; return the path without its ending."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / stem(record)
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    say(f"written: {path}.json and .md")
    return path
