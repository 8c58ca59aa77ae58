"""The ``generate`` model's side of a stream: one request in, many responses out."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from tritonrag import contract
from tritonrag.backend.conversions import error_response, response, single, strings, tensor
from tritonrag.contract import MODELS
from tritonrag.engines.caps import CappedEngine
from tritonrag.generation import Generation, Usage, check_key
from tritonrag.graph.citing import Citations
from tritonrag.prompting import NOTHING_FOUND

PACE_S = 0.01
"""The outbox rests so long after it has sent something: 100 responses a second are enough for a
reader, and what an engine makes meanwhile goes out together."""
ASK_S = 0.25
"""How often Triton is asked whether the callers of open streams have gone away: a trip for each."""
CLOSE_S = 5


class Outbox:
    """Sends what streams have ready, from a thread of its own: no engine waits for Triton.

    A response takes Triton a fraction of a millisecond, as long as a GPU takes for a token of a
    small model. What a stream has ready when its turn comes goes out as one response. Nothing but
    this thread touches a request's sender.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._waiting: queue.SimpleQueue[ResponseSink | None] = queue.SimpleQueue()
        self._open: set[ResponseSink] = set()
        self._asked = 0.0
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def post(self, sink: ResponseSink) -> None:
        """Let a sink send when its turn comes."""
        self._waiting.put(sink)

    def close(self) -> None:
        """Send what is ready, then end."""
        self._waiting.put(None)
        self._thread.join(timeout=CLOSE_S)

    def _run(self) -> None:
        while True:
            sent = False
            for sink in (posted := self._posted()):
                if sink is None:
                    return
                sent = sink.send_ready() or sent
            self._ask(posted)
            if sent:
                time.sleep(PACE_S)

    def _posted(self) -> dict[ResponseSink | None, None]:
        """Return the sinks posted since the last time, in order; wait for one, or to ask again."""
        posted: dict[ResponseSink | None, None] = {}
        with contextlib.suppress(queue.Empty):
            posted[self._waiting.get(timeout=ASK_S if self._open else None)] = None
            while True:
                posted[self._waiting.get_nowait()] = None
        return posted

    def _ask(self, posted: Iterable[ResponseSink | None]) -> None:
        self._open.update(sink for sink in posted if sink is not None)
        now = time.monotonic()
        if now - self._asked >= ASK_S:
            self._asked = now
            for sink in self._open:
                sink.ask()
        self._open = {sink for sink in self._open if not sink.ended}


class ResponseSink:
    """Sends one generation to its client. Each response fills every output, as an ensemble needs.

    The citations go out with the first text, so that the first response is the first token. No
    method raises: where a response cannot be sent, the stream ends and the sink counts as
    cancelled, so that the engine stops.
    """

    def __init__(self, sender: Any, outbox: Outbox) -> None:
        """Take the request's ``InferenceResponseSender``."""
        self._sender = sender
        self._outbox = outbox
        self.citations = Citations()
        """Of the prompt; to be set before anything is sent. The last response has them again, with
        their places in the answer."""
        self.quoted = False
        """Whether the answer is one of quotes; to be set like the citations."""
        self._sent: list[str] = []
        self._ready: deque[str | tuple[str, str] | Exception] = deque()
        self._cancelled = False
        self.ended = False
        """The last response has been sent: only the outbox changes and asks this."""
        outbox.post(self)

    def delta(self, text: str) -> None:
        """Send text."""
        self._post(text)

    def finish(self, reason: str, usage: Usage) -> None:
        """Send the last response."""
        self._post((reason, json.dumps(usage.as_dict())))

    def fail(self, error: Exception) -> None:
        """Send an error as the last response."""
        self._post(error)

    def cancelled(self) -> bool:
        """Return whether the stream has ended or its caller left (not seen behind an ensemble)."""
        return self.ended or self._cancelled

    def ask(self) -> None:
        """Ask Triton whether the caller is still there.

        Not after the last response: Triton 2.51 ends with a segmentation fault.
        """
        with contextlib.suppress(Exception):  # the streams of others go on
            if not self.ended and self._sender.is_cancelled():
                self._cancelled = True

    def send_ready(self) -> bool:
        """Send what has come since the last time, text as one response; return if there was any."""
        some, text = bool(self._ready), ""
        while self._ready:
            each = self._ready.popleft()
            if isinstance(each, str):
                text += each
                continue
            self._send(text)
            text = ""
            if isinstance(each, tuple):
                self._send("", *each)
            else:
                self._fail(each)
        self._send(text)
        return some

    def _post(self, ready: str | tuple[str, str] | Exception) -> None:
        self._ready.append(ready)
        self._outbox.post(self)

    def _send(self, text: str, reason: str = "", usage: str = "") -> None:
        if self.ended or not (text or reason):
            return
        outputs = MODELS["generate"].outputs
        first = not self._sent
        self._sent.append(text)
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reason else 0
        try:
            values = (text, self._cited(first, bool(reason)), reason, usage)
            tensors = [tensor(spec, [[value]]) for spec, value in zip(outputs, values, strict=True)]
            self._sender.send(response(*tensors), flags=flags)
        except Exception as error:
            self._fail(error)
        self.ended = self.ended or bool(reason)

    def _cited(self, first: bool, last: bool) -> str:
        if last:
            return self.citations.located("".join(self._sent), quoted=self.quoted)
        return self.citations.text if first else ""

    def _fail(self, error: Exception) -> None:
        if self.ended:
            return
        self.ended = True
        # A closed sender refuses it too; then the client is gone and nobody is left to tell.
        with contextlib.suppress(Exception):
            self._sender.send(
                error_response(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )


class Streams:
    """Hands requests to an engine; its answers go out by an outbox."""

    def __init__(self, engine: CappedEngine) -> None:
        """Take the engine, which is closed with this."""
        self._engine = engine
        self._outbox = Outbox()

    def begin(self, requests: Sequence[Any]) -> None:
        """Begin to answer each request; an error answers that request."""
        for request in requests:
            sink = ResponseSink(request.get_response_sender(), self._outbox)
            try:
                generate(self._engine, request, sink)
            except Exception as error:
                sink.fail(error)

    def close(self) -> None:
        """End everything that runs; what is ready is sent."""
        self._engine.close()
        self._outbox.close()


def generate(engine: CappedEngine, request: Any, sink: ResponseSink) -> None:
    """Start the generation that a request asks for, or cancel the one whose key it has."""
    key = single(request, contract.CANCEL, None)
    if key is not None:
        check_key("cancel", key)
        engine.cancel(key)
        sink.finish("cancelled", Usage())  # the same, whether there was one
        return
    given = {spec.name: spec for spec in MODELS["generate"].inputs}
    prompt, citations = (single(request, given[name], "") for name in ("prompt", "citations"))
    sink.citations = Citations.parse(citations)
    if not prompt and sink.citations.text == "[]":
        sink.delta(NOTHING_FOUND)
        sink.finish("stop", Usage())
    else:
        generation = _generation(engine, request, prompt, sink.citations.passages)
        sink.quoted = generation.grounding == "quote"
        engine.submit(generation, sink)


def _generation(
    engine: CappedEngine, request: Any, prompt: str, passages: tuple[tuple[int, str], ...]
) -> Generation:
    default = engine.grounding if passages else "free"
    return Generation(
        prompt=prompt,
        passages=passages,
        max_tokens=single(request, contract.MAX_TOKENS, engine.max_tokens),
        temperature=single(request, contract.TEMPERATURE, 0.0),
        top_p=single(request, contract.TOP_P, 1.0),
        top_k=single(request, contract.TOP_K_SAMPLING, 0),
        seed=single(request, contract.SEED, None),
        stop=tuple(strings(request, contract.STOP)),
        grounding=single(request, contract.GROUNDING, default),
        cancel_key=single(request, contract.CANCEL_KEY, None),
        caller=single(request, contract.CALLER, ""),
    )
