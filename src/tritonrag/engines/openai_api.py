"""Generation by any OpenAI-compatible chat endpoint: vLLM, TGI, a hosted model.

One event loop in a thread of its own runs all streams. ``prompt`` writes the chat messages as JSON
for this engine; any other prompt is sent as one user message.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from openai import AsyncStream
from openai.types.chat import ChatCompletionChunk

from tritonrag.engines.admission import CANCEL_POLL_S, Admission
from tritonrag.engines.endpoint import BadReply, count, failure, openai_client
from tritonrag.errors import InvalidRequest, TritonragError
from tritonrag.generation import Generation, Sink, TextStream, Usage
from tritonrag.settings import RemoteLlmSettings

_REASONS = {"stop": "stop", "length": "length"}

RETRY_AFTER_S = 60
"""The longest wait before its second try that an endpoint may ask the library for."""

MAX_TOKEN_CHARS = 256
"""No token of a known vocabulary is longer: an answer is refused that is longer than its tokens."""

_Outcome = str | TritonragError
"""How a generation ended: a finish reason or an error."""


class OpenAiEngine:
    """A chat endpoint that speaks the OpenAI API."""

    grounding = "free"

    def __init__(self, settings: RemoteLlmSettings, queue_size: int) -> None:
        """Start the event loop; the endpoint is first contacted by a generation."""
        self._settings = settings
        self._admission = Admission(queue_size)
        self._running: dict[asyncio.Task[_Outcome], TextStream] = {}
        self._client = openai_client(settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._poll = asyncio.run_coroutine_threadsafe(self._poll_sinks(), self._loop)

    def submit(self, generation: Generation, sink: Sink) -> None:
        """Start a generation; see :class:`tritonrag.generation.Engine`."""
        if generation.grounding == "quote":
            raise InvalidRequest(
                "grounding: `quote` constrains the decoder, which a remote LLM does not offer; "
                "use `free`, or the local engine"
            )
        self._admission.enter()
        self._loop.call_soon_threadsafe(self._start, generation, sink)

    def close(self) -> None:
        """Stop the event loop; running generations end as cancelled."""
        asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    # Everything below runs in the event loop.

    def _start(self, generation: Generation, sink: Sink) -> None:
        stream = TextStream(sink, generation.stop, Usage(None, None, None))
        if sink.cancelled():
            self._admission.leave()
            stream.finish("cancelled")
            return
        task = self._loop.create_task(self._generate(generation, stream))
        self._running[task] = stream
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[_Outcome]) -> None:
        """Tell the end, also of a task that was cancelled before its first step."""
        stream = self._running.pop(task)
        self._admission.leave()  # first, so that a caller who sees the end finds a free place
        outcome = "cancelled" if task.cancelled() else task.result()
        if isinstance(outcome, str):
            stream.finish(outcome)
        else:
            stream.fail(outcome)

    async def _poll_sinks(self) -> None:
        while True:
            for task, stream in list(self._running.items()):
                if stream.sink.cancelled():
                    task.cancel()
            await asyncio.sleep(CANCEL_POLL_S)

    async def _end_all(self) -> None:
        self._poll.cancel()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._client.close()

    async def _generate(self, generation: Generation, stream: TextStream) -> _Outcome:
        try:
            return await self._relay(generation, stream)
        except Exception as error:  # whatever the endpoint does, the request gets its answer
            return failure(error, self._settings)

    async def _relay(self, generation: Generation, stream: TextStream) -> str:
        reason = ""
        room = MAX_TOKEN_CHARS * generation.max_tokens
        # Each step of a try has its time; this one is for headers that come byte by byte.
        async with asyncio.timeout(2 * self._settings.timeout_s + RETRY_AFTER_S):
            chunks = await self._client.chat.completions.create(
                **_body(generation, self._settings.model)
            )
        async with chunks:
            while chunk := await self._next(chunks):
                if chunk.usage:
                    _take(chunk.usage, stream.usage)
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    text = _text(choice.delta.content)
                    room -= len(text)
                    if room < 0:
                        raise BadReply("sent a longer answer than it was asked for")
                    if text and stream.push(text):
                        return "stop"
        if not reason:
            raise BadReply("broke off its answer")
        if reason not in _REASONS:
            ended = BadReply("ended its answer early", f"finish_reason {reason!r}")
            stream.usage.error = str(failure(ended, self._settings))
        return _REASONS.get(reason, "error")

    async def _next(self, chunks: AsyncStream[ChatCompletionChunk]) -> ChatCompletionChunk | None:
        """Return the next event; keep-alive comments are none, so that they buy no time."""
        async with asyncio.timeout(self._settings.timeout_s):
            return await anext(chunks, None)


def _take(reported: Any, usage: Usage) -> None:
    """Take what an endpoint reports; the library has not checked that it is of the right type."""
    usage.prompt_tokens = count(getattr(reported, "prompt_tokens", None))
    usage.generated_tokens = count(getattr(reported, "completion_tokens", None))
    details = getattr(reported, "prompt_tokens_details", None)
    usage.cached_tokens = count(getattr(details, "cached_tokens", None))


def _text(content: str | None) -> str:
    """Return a delta's text; half of a surrogate pair is JSON, but no text."""
    return (content or "").encode(errors="replace").decode()


def _body(generation: Generation, model: str) -> dict[str, Any]:
    """Return the request; only what the caller set is named, since endpoints refuse extras."""
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(generation.prompt),
        "max_tokens": generation.max_tokens,
        "temperature": generation.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if generation.top_p < 1:
        body["top_p"] = generation.top_p
    if generation.seed is not None:
        body["seed"] = generation.seed
    if generation.top_k:
        body["extra_body"] = {"top_k": generation.top_k}
    return body


def _messages(prompt: str) -> list[dict[str, str]]:
    try:
        listed = json.loads(prompt)
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and all(isinstance(each, dict) for each in listed):
        return listed
    return [{"role": "user", "content": prompt}]
