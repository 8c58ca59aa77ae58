"""The same work without a server: what one process can do on this machine at most.

A server adds to the work itself: the network, the scheduler, copies between processes, batches that
are smaller than the largest, and the client's own cycles. What share of the machine is left for the
work is its throughput over that of one process which has all questions at hand and answers 64 at a
time. That process uses the very classes, files and settings of the served models: ``TextTokenizer``
(64 texts encoded together), the graph as the model's own backend loads it (``onnxruntime`` or
``openvino``, run by length), one FAISS search for the batch and the passages read as JSON from the
snapshot, all by ``Retriever``. The latency of a batch of one
is the floor for that of one client.

For tokens the limit is the bare engine: prompts that are already built, as many at a time as the
clients to compare with, and each new one started when another ends.

Its threads are those of a server which has the machine to itself, so measure it while the server is
idle, close in time to what it is compared with: a machine's clock and its other tenants drift.
"""

from __future__ import annotations

import itertools
import queue
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
from handbook_server import Served

from tritonrag.artifacts import EmbedderManifest, embedder_dir, llm_dir
from tritonrag.contract import DEFAULT_MAX_TOKENS
from tritonrag.engines import load_engine, prompt_builder
from tritonrag.errors import TritonragError
from tritonrag.generation import Generation, Usage
from tritonrag.index import Query, Result, Retriever
from tritonrag.index.embedding import BATCH_TEXTS
from tritonrag.padding import Run
from tritonrag.prompting import parse_passages
from tritonrag.settings import ModelArgs
from tritonrag.tokenizing import TextTokenizer
from tritonrag.versions import EMBED, GENERATE, live_version

WARM_UP_S = 0.3


class Search:
    """``search`` in this process."""

    def __init__(self, served: Served, questions: Sequence[str]) -> None:
        """Load what the server has loaded."""
        config = served.config("embed")
        version = live_version(served.repository, EMBED)
        self._tokenizer = TextTokenizer(served.repository, version)
        self._graph = _graph(served, config, served.repository / embedder_dir(version))
        self._retriever = Retriever(served.index_dir, EmbedderManifest.load(served.repository))
        self._questions = questions

    def answer(self, questions: Sequence[str]) -> list[Result]:
        """Return the passages of each question, found in one batch."""
        return self._retriever.search([Query(row) for row in self._embed(questions, "query")])

    def embedded_per_s(self, passages: Sequence[str]) -> float:
        """Return the passages embedded in a second, in the batches that indexing makes."""
        ordered = sorted(passages, key=len, reverse=True)
        began = time.perf_counter()
        for first in range(0, len(ordered), BATCH_TEXTS):
            self._embed(ordered[first : first + BATCH_TEXTS], "passage")
        return len(passages) / (time.perf_counter() - began)

    def throughput(self, batch: int, seconds: float) -> float:
        """Return the questions answered in a second, ``batch`` at a time."""
        return batch / statistics.fmean(self._durations(batch, seconds))

    def latency_ms(self, seconds: float) -> float:
        """Return the median time of one question alone."""
        return statistics.median(self._durations(1, seconds)) * 1e3

    def _durations(self, batch: int, seconds: float) -> list[float]:
        batches = self._batches(batch)
        _timed(self, batches, WARM_UP_S)
        return _timed(self, batches, seconds)

    def _batches(self, size: int) -> Iterator[list[str]]:
        endless = itertools.cycle(self._questions)
        while True:
            yield list(itertools.islice(endless, size))

    def _embed(self, texts: Sequence[str], role: str) -> Any:
        ids, mask = self._tokenizer.encode(texts, [role] * len(texts))
        (embeddings,) = self._graph({"input_ids": ids, "attention_mask": mask})
        return embeddings

    def close(self) -> None:
        """Stop watching the index."""
        self._retriever.close()


class BareEngine:
    """``generate`` in this process: the engine with prompts already built."""

    def __init__(
        self, served: Served, search: Search, questions: Sequence[str], max_tokens: int = 0
    ) -> None:
        """Load the LLM a second time and build a prompt for each question.

        ``max_tokens`` 0 is the default of ``rag``.
        """
        self._max_tokens = max_tokens or DEFAULT_MAX_TOKENS
        version = live_version(served.repository, GENERATE)
        args = ModelArgs("generate", served.repository, served.config("generate"), version)
        self._engine = load_engine(args)
        builder = prompt_builder(served.repository, version)
        self._generations = []
        for question, found in zip(questions, search.answer(questions), strict=True):
            passages = parse_passages([passage.decode() for passage in found.passages])
            prompt = builder.build(question, passages)
            self._generations.append(self._generation(prompt.text, prompt.citations))

    def tokens_per_s(self, batch: int, seconds: float) -> float:
        """Return the tokens of the answers completed in a second, ``batch`` at a time."""
        ended: queue.SimpleQueue[Usage | TritonragError] = queue.SimpleQueue()
        generations = itertools.cycle(self._generations)
        for _ in range(batch):
            self._engine.submit(next(generations), _Sink(ended))
        tokens, began = 0, 0.0
        for count in itertools.count():
            usage = _usage(ended.get())
            now = time.perf_counter()
            if count < batch:
                began = now  # The first answers all began at once; count from when they are done.
            else:
                tokens += usage.generated_tokens or 0
                if now - began > seconds:
                    break
            self._engine.submit(next(generations), _Sink(ended))
        for _ in range(batch - 1):
            ended.get()
        return tokens / (now - began)

    def first_token_ms(self, seconds: float) -> float:
        """Return the median time from a prompt to the first text of its answer, one at a time."""
        ended: queue.SimpleQueue[Usage | TritonragError] = queue.SimpleQueue()
        generations = itertools.cycle(self._generations)
        took: list[float] = []
        end = time.perf_counter() + seconds
        while not took or time.perf_counter() < end:
            sink = _Sink(ended)
            began = time.perf_counter()
            self._engine.submit(next(generations), sink)
            _usage(ended.get())
            if sink.first is not None:
                took.append(sink.first - began)
        return statistics.median(took) * 1e3

    @property
    def prompts(self) -> list[str]:
        """The prompts that it is given."""
        return [each.prompt for each in self._generations]

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _generation(self, prompt: str, citations: Sequence[dict[str, Any]]) -> Generation:
        kept = tuple((each["mark"], each["text"]) for each in citations if each["mark"])
        grounding = self._engine.grounding if kept else "free"
        return Generation(prompt, kept, max_tokens=self._max_tokens, grounding=grounding)


class DirectGenai:
    """ONNX Runtime GenAI as its documentation uses it: a generator per batch, greedy and free."""

    def __init__(self, served: Served, prompts: Sequence[str], max_tokens: int) -> None:
        """Load the LLM a second time, with the library's own thread settings."""
        folder = served.repository / llm_dir(live_version(served.repository, GENERATE))
        self._model = og.Model(str(folder))
        self._tokenizer = og.Tokenizer(self._model)
        self._prompts, self._max_tokens = prompts, max_tokens

    def answers_per_s(self, batch: int, seconds: float) -> float:
        """Return the answers a second, ``batch`` prompts at a time, each batch to its end."""
        prompts = itertools.cycle(self._prompts)
        began, answers = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < seconds or not answers:
            self._answer(list(itertools.islice(prompts, batch)))
            answers += batch
        return answers / took

    def _answer(self, prompts: list[str]) -> None:
        longest = max(len(self._tokenizer.encode(prompt)) for prompt in prompts)
        params = og.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=len(prompts), max_length=longest + self._max_tokens, do_sample=False
        )
        generator = og.Generator(self._model, params)
        generator.append_tokens(self._tokenizer.encode_batch(prompts))
        while not generator.is_done():
            generator.generate_next_token()


@dataclass
class _Sink:
    """Takes one generation and keeps when its text began and how it ended."""

    ended: queue.SimpleQueue[Usage | TritonragError]
    first: float | None = None

    def delta(self, text: str) -> None:
        """Drop the text."""
        if self.first is None:
            self.first = time.perf_counter()

    def finish(self, reason: str, usage: Usage) -> None:
        self.ended.put(usage)

    def fail(self, error: TritonragError) -> None:
        self.ended.put(error)

    def cancelled(self) -> bool:
        return False


def _usage(end: Usage | TritonragError) -> Usage:
    if isinstance(end, TritonragError):
        raise end
    return end


def _timed(search: Search, batches: Iterator[list[str]], seconds: float) -> list[float]:
    took: list[float] = []
    end = time.perf_counter() + seconds
    while not took or time.perf_counter() < end:
        questions = next(batches)
        began = time.perf_counter()
        search.answer(questions)
        took.append(time.perf_counter() - began)
    return took


def _graph(served: Served, config: dict[str, Any], folder: Path) -> Run:
    # The backend's modules import Triton's Python module, which lies in the backend directory.
    sys.path.append(str(served.backends / "python"))
    if config["backend"] == "openvino":
        from tritonrag.backend.openvino import openvino_graph

        return openvino_graph(config, folder)
    from tritonrag.backend.onnx import onnx_graph

    gpus = config["instance_group"][0].get("gpus")
    return onnx_graph(config, folder, gpus[0] if gpus else None)
