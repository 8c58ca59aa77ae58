"""Generation by any OpenAI-compatible chat endpoint: vLLM, TGI, a hosted model.

One event loop in a thread of its own runs all streams. ``prompt`` writes the chat messages as JSON
for this engine; any other prompt is sent as one user message.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import openai

from tritonrag.engines.admission import CANCEL_POLL_S, Admission
from tritonrag.errors import InternalError, InvalidRequest, TritonragError, Unavailable
from tritonrag.generation import Generation, Sink, TextStream
from tritonrag.settings import RemoteLlmSettings

_REASONS = {"stop": "stop", "length": "length"}

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
        self._client = openai.AsyncOpenAI(
            base_url=settings.url,
            api_key=settings.key or "none",
            timeout=openai.Timeout(settings.timeout_s, connect=min(5.0, settings.timeout_s)),
            max_retries=1,
        )
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
        stream = TextStream(sink, generation.stop)
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
        except openai.OpenAIError as error:
            return self._fault(error)
        except TritonragError as error:
            return error
        except Exception as error:  # a malformed reply of the endpoint must not lose the request
            return InternalError(f"LLM endpoint {self._settings.url}: bad reply: {error!r}")

    async def _relay(self, generation: Generation, stream: TextStream) -> str:
        reason = ""
        async with await self._client.chat.completions.create(
            **_body(generation, self._settings.model)
        ) as chunks:
            async for chunk in chunks:
                if chunk.usage:
                    stream.usage.prompt_tokens = chunk.usage.prompt_tokens
                    stream.usage.generated_tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    if choice.delta.content and stream.push(choice.delta.content):
                        return "stop"
        if not reason:
            raise InternalError(f"LLM endpoint {self._settings.url} broke off its answer")
        if reason not in _REASONS:
            stream.usage.error = f"LLM endpoint {self._settings.url} ended with {reason!r}"
        return _REASONS.get(reason, "error")

    def _fault(self, error: openai.OpenAIError) -> TritonragError:
        endpoint = f"LLM endpoint {self._settings.url}"
        if isinstance(error, openai.APITimeoutError):
            return Unavailable(f"{endpoint}: no answer within {self._settings.timeout_s:g} s")
        if isinstance(error, openai.APIConnectionError):
            return Unavailable(f"{endpoint}: cannot be reached; check LLM_API_URL")
        if not isinstance(error, openai.APIStatusError):
            return InternalError(f"{endpoint}: {error}")
        said = f"{endpoint} answered {error.status_code}: {error.message}"
        if error.status_code in (401, 403):
            return InternalError(
                f"{endpoint} refused the key ({error.status_code}): check LLM_API_KEY"
            )
        if error.status_code == 429 or error.status_code >= 500:
            return Unavailable(said)
        return InvalidRequest(said)


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
