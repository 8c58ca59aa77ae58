"""Generation by another model of the same server: Triton's vLLM backend, or TensorRT-LLM.

Both batch by themselves, so each generation only needs a thread that waits for its tokens. The
other model is reached through a :class:`ModelCaller`; Triton is not known here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from tritonrag.artifacts import SERVED_MODEL, LlmManifest, llm_dir
from tritonrag.engines.admission import CANCEL_POLL_S, Admission
from tritonrag.engines.dialects import Asked, Dialect, Reply, Value
from tritonrag.errors import Cancelled, InternalError, InvalidRequest, TritonragError, Unavailable
from tritonrag.generation import Generation, Sink, TextStream, room_for

LOG = logging.getLogger(__name__)


class ModelCaller(Protocol):
    """Calls another model of the server; may be used by many threads at once."""

    def stream(
        self, model: str, inputs: Mapping[str, Value], outputs: Sequence[str]
    ) -> Generator[Reply, None, None]:
        """Yield the responses to one request, inputs of shape [1].

        Closing the generator early cancels the request, and returns when the model has ended it.

        Raises:
            Unavailable: the model is not loaded.
            Cancelled: the model's side cancelled the request.
            InternalError: it failed; the message is the model's own.
        """


@dataclass(eq=False)
class _Run:
    """One generation; the lock is between its thread and the one that stops it."""

    stream: TextStream
    lock: threading.Lock = field(default_factory=threading.Lock)

    def push(self, text: str) -> bool:
        """Send text; True where nothing more is wanted."""
        with self.lock:
            if not self.stream.ended and text and self.stream.push(text):
                self.stream.finish("stop")
            return self.stream.ended

    def end(self, outcome: str | TritonragError) -> None:
        with self.lock:
            if isinstance(outcome, str):
                self.stream.finish(outcome)
            else:
                self.stream.fail(outcome)


class ServedEngine:
    """The model ``llm`` beside ``generate``, asked in the dialect of its backend."""

    grounding = "free"

    def __init__(
        self,
        repository: Path,
        version: int,
        models: ModelCaller,
        dialect: Dialect,
        *,
        queue_size: int,
    ) -> None:
        """Read the manifest of a version of the LLM; the model is first called by a generation.

        Raises:
            SetupError: no LLM is installed.
        """
        self._manifest = LlmManifest.load(repository, version)
        self._tokenizer = Tokenizer.from_file(str(repository / llm_dir(version) / "tokenizer.json"))
        stops = (self._tokenizer.token_to_id(token) for token in self._manifest.stop_tokens)
        self._stop_ids = [number for number in stops if number is not None]
        self._models = models
        self._dialect = dialect
        self._admission = Admission(queue_size)
        self._threads = ThreadPoolExecutor(queue_size, thread_name_prefix="engine")
        self._running: set[_Run] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._poll_sinks, name="engine-stops", daemon=True).start()

    def submit(self, generation: Generation, sink: Sink) -> None:
        """Start a generation; see :class:`tritonrag.generation.Engine`."""
        if self._closed.is_set():
            raise Unavailable("generate: is being unloaded; try again later")
        if generation.grounding == "quote":
            raise InvalidRequest(
                f"grounding: `quote` constrains the decoder, which {self._dialect.name} is not "
                "asked for; use `free`, or export the LLM with --target genai"
            )
        plain = self._tokenizer.encode(generation.prompt, add_special_tokens=False).ids
        room = room_for(generation, len(plain), self._manifest.context_tokens)
        self._admission.enter()
        run = _Run(TextStream(sink, generation.stop))
        run.stream.usage.prompt_tokens = len(plain)
        run.stream.usage.cached_tokens = None  # neither backend says
        with self._lock:
            self._running.add(run)
        text = self._text(generation.prompt, len(plain))
        asked = Asked(text, generation, min(generation.max_tokens, room), self._stop_ids)
        self._threads.submit(self._generate, run, asked)

    def close(self) -> None:
        """End running generations as cancelled and take no more."""
        self._closed.set()
        for run in self._all_running():
            run.end("cancelled")
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _all_running(self) -> list[_Run]:
        with self._lock:
            return list(self._running)

    def _poll_sinks(self) -> None:
        """Answer those that are to stop at once; their own threads wait for the other model."""
        while not self._closed.wait(CANCEL_POLL_S):
            for run in self._all_running():
                if run.stream.sink.cancelled():
                    run.end("cancelled")

    def _text(self, prompt: str, plain: int) -> str:
        """Return the prompt without a first token that the backend would put there again."""
        first = self._manifest.special_tokens.get("bos_token", "")
        if first and prompt.startswith(first) and len(self._tokenizer.encode(prompt).ids) > plain:
            return prompt[len(first) :]
        return prompt

    # Everything below runs in the generation's own thread.

    def _generate(self, run: _Run, asked: Asked) -> None:
        try:
            if run.stream.sink.cancelled():
                run.end("cancelled")
            else:
                run.end(self._relay(run, asked))
        except Cancelled:
            run.end("cancelled")
        except Unavailable as error:
            run.end(error)
        except Exception:  # whatever the other model said is for the log
            LOG.exception("generate: the model %s failed", SERVED_MODEL)
            run.end(
                InternalError(f"generate: {SERVED_MODEL} failed; the server's log has the cause")
            )
        finally:
            with self._lock:
                self._running.discard(run)
            self._admission.leave()

    def _relay(self, run: _Run, asked: Asked) -> str:
        inputs = self._dialect.inputs(asked)
        replies = self._models.stream(SERVED_MODEL, inputs, self._dialect.outputs)
        try:
            for step in self._dialect.steps(replies, self._count):
                run.stream.usage.count(step.tokens)
                if run.push(step.text):
                    return "cancelled"  # it has been told how it ended, and is not told again
                if step.reason:
                    return step.reason
        finally:
            replies.close()
        return "error"

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
