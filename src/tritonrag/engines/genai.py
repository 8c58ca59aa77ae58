"""Generation on ONNX Runtime GenAI: one thread owns its ``Engine``, which batches the requests.

On CUDA the engine batches continuously over a paged KV cache; on the CPU it runs up to four
requests at a time to their end. It is given as many as it runs; the others wait here, and are taken
from each caller in turn. Every call on the engine and its requests has to come from the thread that
made it, so ``submit`` only puts a command into that thread's queue.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tritonrag.artifacts import LlmManifest, llm_dir, read_json
from tritonrag.engines.admission import CANCEL_POLL_S, Admission, FairQueue
from tritonrag.errors import InternalError, InvalidRequest, SetupError, Unavailable
from tritonrag.generation import Generation, Sink, TextStream, room_for
from tritonrag.graph.escaping import escape_for, special_tokens
from tritonrag.quoting import REFUSAL, check_size, quote_grammar

LOG = logging.getLogger(__name__)

STATIC_BATCH = 4
"""How many requests the engine runs at a time where it does not batch continuously, unless its
config says."""

READING_FACTOR = 3
"""A step that reads prompts may take so many times what it took where the LLM was exported, beyond
``stall_seconds``, before the engine counts as stuck: machines differ, and cores are shared."""

READING_TOKENS_PER_S = 100
"""Taken for that speed where the manifest does not know it."""

_REASONS = {
    og.FinishReason.EOS: "stop",
    og.FinishReason.STOP_STRING: "stop",
    og.FinishReason.MAX_GENERATED_TOKENS: "length",
    og.FinishReason.MAX_SESSION_TOKENS: "length",
    og.FinishReason.CANCELLED: "cancelled",
}


@dataclass
class _Asked:
    """One generation that waits to be given to the engine."""

    generation: Generation
    prompt: npt.NDArray[np.int32]
    grammar: str
    stream: TextStream


@dataclass
class _Turn:
    """One running generation, seen by the engine thread only."""

    stream: TextStream
    request: Any
    decoder: DecodeStream
    turn_id: int = 0
    stopped: bool = False
    """A stop string came, so that the cancel which follows is no cancel of the caller's."""


class GenaiEngine:
    """The exported LLM of a model repository."""

    def __init__(
        self,
        repository: Path,
        version: int,
        *,
        queue_size: int,
        threads: int = 0,
        stall_seconds: float = 10,
    ) -> None:
        """Load a version of the model and start the engine thread; returns when it is warm.

        Raises:
            SetupError: no LLM is installed, or it cannot be loaded.
        """
        self._manifest = LlmManifest.load(repository, version)
        folder = repository / llm_dir(version)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._escape = escape_for([*special_tokens(self._tokenizer), *self._manifest.stop_tokens])
        engine = read_json(folder / "genai_config.json").get("engine", {})
        self._dynamic = "dynamic_batching" in engine
        batching = engine.get("dynamic_batching") or engine.get("static_batching") or {}
        default = queue_size if self._dynamic else STATIC_BATCH
        self._width = int(batching.get("max_batch_size", default))
        speed = self._manifest.speed.get("prefill_tokens_per_s") or READING_TOKENS_PER_S
        self._reading_s = READING_FACTOR / speed
        self._closed = False
        self._admission = Admission(queue_size, stall_seconds)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ended = False
        self._polled = 0.0
        self._waiting: FairQueue[_Asked] = FairQueue()
        self._turns: dict[int, _Turn] = {}
        ready: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._own, args=(folder, threads, ready), name="engine", daemon=True
        )
        self._thread.start()
        failure = ready.get()
        if failure:
            raise SetupError(f"{folder}: the LLM cannot be loaded: {failure}") from failure

    @property
    def grounding(self) -> str:
        """The default grounding of the installed LLM."""
        return self._manifest.grounding

    def submit(self, generation: Generation, sink: Sink) -> None:
        """Start a generation; see :class:`tritonrag.generation.Engine`."""
        if self._closed:
            raise Unavailable("generate: is being unloaded; try again later")
        prompt, room = self._encode(generation)
        grammar = self._grammar(generation.passages) if generation.grounding == "quote" else ""
        self._admission.enter()
        stream = TextStream(sink, generation.stop)
        stream.usage.prompt_tokens = len(prompt)
        fitting = replace(
            generation,
            max_tokens=min(generation.max_tokens, room),
            # The engine refuses more than there are; 0 is all of them.
            top_k=generation.top_k if generation.top_k < self._tokenizer.get_vocab_size() else 0,
        )
        asked = _Asked(fitting, prompt, grammar, stream)
        self._commands.put(lambda: self._waiting.put(generation.caller, asked))

    def close(self) -> None:
        """Stop the thread; running generations end as cancelled."""
        self._closed = True
        self._commands.put(self._stop)
        self._thread.join(timeout=5)

    def _encode(self, generation: Generation) -> tuple[npt.NDArray[np.int32], int]:
        """Return the prompt's token ids and how many tokens the context leaves for the answer."""
        if generation.seed is not None and generation.temperature > 0 and not self._dynamic:
            raise InvalidRequest(
                "seed: this LLM batches statically (as on the CPU), where one request's sampling "
                "cannot be seeded; leave it out, or set temperature to 0"
            )
        ids = self._ids(generation.prompt)
        room = room_for(generation, len(ids), self._manifest.context_tokens)
        return np.array(ids, dtype=np.int32), room

    def _grammar(self, passages: Sequence[tuple[int, str]]) -> str:
        check_size(passages)
        escaped = [(number, self._escape(text)) for number, text in passages]  # as in the prompt
        return quote_grammar(escaped, self._ids, self._manifest.pointers)

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    # Everything below runs in the engine thread.

    def _own(self, folder: Path, threads: int, ready: queue.SimpleQueue[Exception | None]) -> None:
        try:
            self._model = load_model(folder, threads)
            self._make_engine()
            self._warm_up()
        except Exception as error:  # whatever the library raises, the load has failed
            ready.put(error)
            return
        ready.put(None)
        self._loop()

    def _make_engine(self) -> None:
        self._engine = og.Engine(self._model)
        self._events = self._engine.create_event_buffer(256)

    def _warm_up(self) -> None:
        """Run one constrained token: the first use of guidance builds tables for 0.2 s."""
        request = self._engine.create_request()
        options = og.TurnOptions(request)
        options.set_max_generated_tokens(1)
        options.set_guidance("lark_grammar", self._grammar(()))
        request.begin_turn(np.array(self._ids(REFUSAL), dtype=np.int32), options)
        while self._engine.has_pending_requests():
            self._engine.run(self._events)
        request.close()

    def _loop(self) -> None:
        while not self._ended:
            try:
                self._advance()
            except Exception:  # whatever the library raises: the batch is lost, not the server
                self._start_again()
        self._end_waiting(lambda _: True)
        for turn in list(self._turns.values()):
            self._end(turn, "cancelled")

    def _advance(self) -> None:
        """Carry out the next command; while there is none, generate."""
        if self._commands.empty():  # those that came together begin together
            self._feed()
        try:
            command = self._commands.get(block=not self._turns)
        except queue.Empty:
            self._step()
            self._poll_sinks()
        else:
            command()

    def _feed(self) -> None:
        while len(self._turns) < self._width and (asked := self._waiting.take()):
            self._begin(asked)

    def _begin(self, asked: _Asked) -> None:
        stream = asked.stream
        if stream.sink.cancelled():
            self._admission.leave()
            stream.finish("cancelled")
            return
        try:
            request = self._engine.create_request()
            turn = _Turn(stream, request, DecodeStream(skip_special_tokens=True))
            options = _options(request, asked.generation, asked.grammar)
            turn.turn_id = request.begin_turn(asked.prompt, options)
        except Exception:  # the library's own; nothing of it concerns other requests
            LOG.exception("generate: the engine refused a request")
            self._admission.leave()
            stream.fail(_failure("refused the request"))
            return
        self._turns[id(request)] = turn

    def _step(self) -> None:
        unread = sum(
            turn.stream.usage.prompt_tokens or 0
            for turn in self._turns.values()
            if not turn.stream.usage.generated_tokens
        )
        self._admission.moved(unread * self._reading_s)
        self._engine.run(self._events)
        for event in self._events:
            receiver = self._turns.get(id(event.request))
            if receiver:
                self._take(receiver, event)

    def _take(self, turn: _Turn, event: Any) -> None:
        flags = int(event.flags)
        if flags & int(og.EngineEventFlags.TOKEN) and not turn.stopped:
            turn.stream.usage.count(1)
            text = turn.decoder.step(self._tokenizer, event.token)
            if text and turn.stream.push(text):
                turn.stopped = True
                turn.request.cancel_turn(turn.turn_id)
        if flags & int(og.EngineEventFlags.FAILED):
            self._fail(turn, event.error_code)
        elif flags & int(og.EngineEventFlags.TURN_FINISHED):
            turn.stream.usage.cached_tokens = event.usage.cached_prompt_tokens
            self._end(turn, "stop" if turn.stopped else _REASONS.get(event.finish_reason, "error"))

    def _fail(self, turn: _Turn, code: object) -> None:
        if not self._dynamic:  # a static batch fails as a whole, and its engine takes no more
            raise RuntimeError(f"a static batch failed: {code}")
        LOG.error("generate: the engine failed: %s", code)
        self._end(turn, _failure("failed"))

    def _start_again(self) -> None:
        """End everything that runs and replace the engine; the loaded model stays."""
        LOG.exception("generate: the engine failed and is made anew")
        for turn in list(self._turns.values()):
            self._end(turn, _failure("failed"))
        try:
            self._make_engine()
        except Exception:  # the next request finds the old engine, and is refused by it
            LOG.exception("generate: the engine cannot be made anew")

    def _end(self, turn: _Turn, outcome: str | InternalError) -> None:
        del self._turns[id(turn.request)]
        self._admission.leave()
        if isinstance(outcome, str):
            turn.stream.finish(outcome)
        else:
            turn.stream.fail(outcome)
        with contextlib.suppress(Exception):  # a failed engine refuses even that
            turn.request.close()

    def _end_waiting(self, which: Callable[[_Asked], bool]) -> None:
        for asked in self._waiting.remove(which):
            self._admission.leave()
            asked.stream.finish("cancelled")

    def _stop(self) -> None:
        self._ended = True

    def _poll_sinks(self) -> None:
        if time.monotonic() - self._polled < CANCEL_POLL_S:
            return
        self._polled = time.monotonic()
        self._end_waiting(lambda asked: asked.stream.sink.cancelled())
        for turn in self._turns.values():
            if turn.stream.sink.cancelled():
                turn.request.cancel_turn(turn.turn_id)


def load_model(folder: Path, threads: int = 0) -> og.Model:
    """Load an exported model; ``threads`` 0 is one per core. Raises what the library raises."""
    # Unset, the library used one of two cores; set to both, prefill and decode ran 1.5 to 1.7 times
    # as fast.
    session = {"intra_op_num_threads": threads or len(os.sched_getaffinity(0))}
    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return og.Model(config)


def _options(request: Any, generation: Generation, grammar: str) -> og.TurnOptions:
    options = og.TurnOptions(request)
    options.set_max_generated_tokens(generation.max_tokens)
    sampled = generation.temperature > 0
    options.set_do_sample(sampled)
    if sampled:  # the library refuses these beside greedy decoding
        options.set_temperature(generation.temperature)
        options.set_top_p(generation.top_p)
        options.set_top_k(generation.top_k)
    if sampled and generation.seed is not None:
        options.set_seed(generation.seed)
    if grammar:
        options.set_guidance("lark_grammar", grammar)
    return options


def _failure(what: str) -> InternalError:
    """Return the error for a client; what the library said is in the server's log."""
    return InternalError(f"generate: the engine {what}; the server's log has the cause")
