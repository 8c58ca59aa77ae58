"""The ``generate`` model's side of a stream: one request in, many responses out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from tritonrag import contract
from tritonrag.backend.conversions import error_response, response, single, strings, tensor
from tritonrag.contract import MODELS
from tritonrag.errors import InvalidRequest
from tritonrag.generation import Engine, Generation, Usage
from tritonrag.prompting import NOTHING_FOUND


class ResponseSink:
    """Sends one generation to its client. Each response fills every output, as an ensemble needs.

    The citations go out with the first text, so that the first response is the first token. No
    method raises: where a response cannot be sent, the stream ends and the sink counts as
    cancelled, so that the engine stops.
    """

    def __init__(self, sender: Any, citations: str) -> None:
        """Take the request's ``InferenceResponseSender`` and its citations as JSON."""
        self._sender = sender
        self._citations = citations
        self._ended = False

    def delta(self, text: str) -> None:
        """Send text."""
        self._send(text, "", "")

    def finish(self, reason: str, usage: Usage) -> None:
        """Send the last response."""
        self._send("", reason, json.dumps(usage.as_dict()), final=True)

    def fail(self, error: Exception) -> None:
        """Send an error as the last response."""
        self._ended = True
        # A closed sender refuses it too; then the client is gone and nobody is left to tell.
        with contextlib.suppress(Exception):
            self._sender.send(
                error_response(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )

    def cancelled(self) -> bool:
        """Return whether the stream has ended, or was cancelled (not seen behind an ensemble).

        The sender is not asked after the last response: Triton 2.51 ends with a segmentation fault.
        """
        return self._ended or bool(self._sender.is_cancelled())

    def _send(self, text: str, reason: str, usage: str, final: bool = False) -> None:
        if self._ended:
            return
        outputs = MODELS["generate"].outputs
        values = (text, self._citations, reason, usage)
        self._citations = ""
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        try:
            tensors = [tensor(spec, [[value]]) for spec, value in zip(outputs, values, strict=True)]
            self._sender.send(response(*tensors), flags=flags)
        except Exception as error:
            self.fail(error)
        self._ended = self._ended or final


def stream(requests: Sequence[Any], handle: Callable[[Any, Any], None]) -> None:
    """Hand each request and its response sender to ``handle``; an error answers that request."""
    for request in requests:
        sender = request.get_response_sender()
        try:
            handle(request, sender)
        except Exception as error:
            ResponseSink(sender, "").fail(error)


def generate(engine: Engine, request: Any, sender: Any) -> None:
    """Start the generation that a request asks for, or cancel the one that it names."""
    prompt = single(request, contract.PROMPT, "")
    citations = single(request, MODELS["generate"].inputs[1], "")
    sink = ResponseSink(sender, citations)
    if single(request, contract.CANCEL, False):
        _cancel(engine, request.request_id(), sink)
    elif not prompt and citations == "[]":
        sink.delta(NOTHING_FOUND)
        sink.finish("stop", Usage())
    else:
        engine.submit(_generation(engine, request, prompt, citations), sink)


def _cancel(engine: Engine, request_id: str, sink: ResponseSink) -> None:
    if not request_id:
        raise InvalidRequest("cancel: needs the request id of the generation to stop")
    engine.cancel(request_id)
    sink.finish("cancelled", Usage())


def _generation(engine: Engine, request: Any, prompt: str, citations: str) -> Generation:
    passages = _passages(citations)
    default = engine.grounding if passages else "free"
    return Generation(
        id=request.request_id(),
        prompt=prompt,
        passages=passages,
        max_tokens=single(request, contract.MAX_TOKENS, contract.DEFAULT_MAX_TOKENS),
        temperature=single(request, contract.TEMPERATURE, 0.0),
        top_p=single(request, contract.TOP_P, 1.0),
        top_k=single(request, contract.TOP_K_SAMPLING, 0),
        seed=single(request, contract.SEED, None),
        stop=tuple(strings(request, contract.STOP)),
        grounding=single(request, contract.GROUNDING, default),
    )


def _passages(citations: str) -> tuple[tuple[int, str], ...]:
    try:
        listed = json.loads(citations or "[]")
        found = tuple((_mark(each), each["text"]) for each in listed if each["mark"] is not None)
        "".join(text for _, text in found).encode()  # half of a surrogate pair is JSON, but no text
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidRequest(
            'citations: expected a JSON list of {"mark": number, "text": …} as `prompt` gives it'
        ) from error
    return found


def _mark(citation: dict[str, Any]) -> int:
    mark = citation["mark"]
    if type(mark) is not int or mark < 1:  # True is an int too
        raise ValueError(f"mark {mark!r}")
    return mark
