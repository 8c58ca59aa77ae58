"""Generation by Triton's own vLLM backend, in another model of the same server.

vLLM batches by itself, so each generation only needs a thread that waits for its tokens. The other
model is reached through a :class:`ModelCaller`; Triton is not known here.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from tritonrag.artifacts import VLLM_MODEL, LlmManifest, llm_dir
from tritonrag.engines.admission import Admission
from tritonrag.errors import Cancelled, InternalError, InvalidRequest, TritonragError, Unavailable
from tritonrag.generation import Generation, Sink, TextStream, room_for

LOG = logging.getLogger(__name__)

Reply = Mapping[str, Sequence[Any]]
"""One response of a called model: its output tensors by name, flattened."""

_OUTPUTS = ("text_output", "finish_reason", "num_output_tokens")
_REASONS = {"stop": "stop", "length": "length", "abort": "cancelled"}


class ModelCaller(Protocol):
    """Calls another model of the server; may be used by many threads at once."""

    def stream(
        self, model: str, inputs: Mapping[str, str | bool], outputs: Sequence[str]
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
    """One generation; the lock is between its thread and a cancel from another."""

    generation: Generation
    stream: TextStream
    lock: threading.Lock = field(default_factory=threading.Lock)

    def push(self, text: str) -> bool:
        """Send text; True where nothing more is wanted."""
        with self.lock:
            if not self.stream.ended and self.stream.sink.cancelled():
                self.stream.finish("cancelled")
            if not self.stream.ended and text and self.stream.push(text):
                self.stream.finish("stop")
            return self.stream.ended

    def end(self, outcome: str | TritonragError) -> None:
        with self.lock:
            if isinstance(outcome, str):
                self.stream.finish(outcome)
            else:
                self.stream.fail(outcome)


class VllmEngine:
    """The model ``llm`` on Triton's vLLM backend."""

    grounding = "free"

    def __init__(
        self, repository: Path, version: int, models: ModelCaller, *, queue_size: int
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
        self._admission = Admission(queue_size)
        self._threads = ThreadPoolExecutor(queue_size, thread_name_prefix="engine")
        self._running: set[_Run] = set()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, generation: Generation, sink: Sink) -> None:
        """Start a generation; see :class:`tritonrag.generation.Engine`."""
        if self._closed:
            raise Unavailable("generate: is being unloaded; try again later")
        if generation.grounding == "quote":
            raise InvalidRequest(
                "grounding: `quote` constrains the decoder, which this engine (vLLM) is not asked "
                "for; use `free`, or export the LLM with --target genai"
            )
        plain = self._tokenizer.encode(generation.prompt, add_special_tokens=False).ids
        room = room_for(generation, len(plain), self._manifest.context_tokens)
        self._admission.enter()
        run = _Run(generation, TextStream(sink, generation.stop))
        run.stream.usage.prompt_tokens = len(plain)
        with self._lock:
            self._running.add(run)
        inputs = self._inputs(generation, min(generation.max_tokens, room), len(plain))
        self._threads.submit(self._generate, run, inputs)

    def cancel(self, id: str) -> None:
        """Stop the generations with this request id, also one that arrives a little later."""
        with self._lock:
            named = [run for run in self._running if run.generation.id == id]
        for run in named:
            run.end("cancelled")
        if not named:
            self._admission.cancel_early(id)

    def close(self) -> None:
        """End running generations as cancelled and take no more."""
        self._closed = True
        with self._lock:
            running = list(self._running)
        for run in running:
            run.end("cancelled")
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _inputs(self, generation: Generation, max_tokens: int, plain: int) -> dict[str, str | bool]:
        """Return the request; the stop tokens are named, whatever vLLM reads of the model."""
        sampling: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "stop_token_ids": self._stop_ids,
        }
        if generation.top_k:
            sampling["top_k"] = generation.top_k
        if generation.seed is not None:
            sampling["seed"] = generation.seed
        if generation.stop:
            sampling["stop"] = list(generation.stop)
        return {
            "text_input": self._text(generation.prompt, plain),
            "stream": True,
            "exclude_input_in_output": True,
            "return_finish_reason": True,
            "return_num_output_tokens": True,
            "sampling_parameters": json.dumps(sampling),
        }

    def _text(self, prompt: str, plain: int) -> str:
        """Return the prompt without a first token that vLLM's tokenizer would put there again."""
        first = self._manifest.special_tokens.get("bos_token", "")
        if first and prompt.startswith(first) and len(self._tokenizer.encode(prompt).ids) > plain:
            return prompt[len(first) :]
        return prompt

    # Everything below runs in the generation's own thread.

    def _generate(self, run: _Run, inputs: dict[str, str | bool]) -> None:
        try:
            if self._admission.was_cancelled(run.generation.id):
                run.end("cancelled")
            else:
                run.end(self._relay(run, inputs))
        except Cancelled:
            run.end("cancelled")
        except Unavailable as error:
            run.end(error)
        except Exception:  # whatever the other model said is for the log
            LOG.exception("generate: the model %s failed", VLLM_MODEL)
            run.end(InternalError(f"generate: {VLLM_MODEL} failed; the server's log has the cause"))
        finally:
            with self._lock:
                self._running.discard(run)
            self._admission.leave()

    def _relay(self, run: _Run, inputs: dict[str, str | bool]) -> str:
        replies = self._models.stream(VLLM_MODEL, inputs, _OUTPUTS)
        reason = "error"
        try:
            for reply in replies:
                run.stream.usage.generated_tokens += sum(reply.get("num_output_tokens", ()))
                reason = next(iter(reply.get("finish_reason", ())), "None")
                if run.push("".join(reply.get("text_output", ()))):
                    return "cancelled"  # it has been told how it ended, and is not told again
                if reason in _REASONS:
                    break
        finally:
            replies.close()
        return _REASONS.get(reason, "error")
