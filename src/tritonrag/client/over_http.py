"""Triton's HTTP protocol: KServe v2 JSON, and server-sent events of ``generate_stream``."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx

from tritonrag.client import wire
from tritonrag.client.addresses import on_this_machine
from tritonrag.client.faults import Deadline, from_http, from_stream, http_errors, understood
from tritonrag.client.marshalling import Call, Tensors
from tritonrag.contract import MODELS
from tritonrag.errors import TritonragError


class HttpTransport:
    """Sends calls over a pool of connections; safe for many threads."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None) -> None:
        """Take ``host:port`` or a whole URL; ``transport`` is for tests."""
        self._url = url
        self._http = httpx.Client(
            base_url=_base(url), transport=transport, verify=_verify(url),
            trust_env=not on_this_machine(url),
        )  # fmt: skip

    def infer(self, call: Call, timeout: float | None) -> Tensors:
        """Return the one response of a call."""
        answer = self._post(_path(call, "infer"), wire.to_json(call), timeout)
        return wire.from_json(answer)

    def versions(self, timeout: float | None) -> dict[str, list[int]]:
        """Return the versions that are loaded, by model."""
        with http_errors(self._url, Deadline(timeout)):
            answers = [self._http.get(f"/v2/models/{name}", timeout=timeout) for name in MODELS]
        return _versions(answers)

    def stream(self, call: Call, timeout: float | None) -> Generator[Tensors, None, None]:
        """Yield the responses of a call, which is sent when the first is asked for."""
        deadline = Deadline(timeout)
        request = self._http.build_request(
            "POST", _path(call, "generate_stream"), json=wire.to_fields(call), timeout=timeout
        )
        with http_errors(self._url, deadline):
            if wire.needs_reranker(call):
                wire.check_reranker(_body(self._http.get(_model_path(call), timeout=timeout)))
            response = self._http.send(request, stream=True)
            with closing(response), _ending(response, deadline):
                if response.is_error:
                    response.read()
                    raise _error(response)
                for line in response.iter_lines():
                    deadline.check()
                    yield from _event(call, line)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _post(self, path: str, body: dict[str, Any], timeout: float | None) -> Any:
        with http_errors(self._url, Deadline(timeout)):
            return _body(self._http.post(path, json=body, timeout=timeout))


class AsyncHttpTransport:
    """As :class:`HttpTransport`, for one event loop."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """Take ``host:port`` or a whole URL; ``transport`` is for tests."""
        self._url = url
        # Deadlines are asyncio's: they bound a call as a whole, httpx's each read.
        self._http = httpx.AsyncClient(
            base_url=_base(url), transport=transport, verify=_verify(url), timeout=None,
            trust_env=not on_this_machine(url),
        )  # fmt: skip

    async def infer(self, call: Call, timeout: float | None) -> Tensors:
        """Return the one response of a call."""
        return wire.from_json(await self._post(_path(call, "infer"), wire.to_json(call), timeout))

    async def versions(self, timeout: float | None) -> dict[str, list[int]]:
        """Return the versions that are loaded, by model."""
        with http_errors(self._url, Deadline(timeout)):
            async with asyncio.timeout(timeout):
                asked = (self._http.get(f"/v2/models/{name}") for name in MODELS)
                answers = await asyncio.gather(*asked)
        return _versions(answers)

    async def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Tensors, None]:
        """Yield the responses of a call, which is sent when the first is asked for."""
        deadline = Deadline(timeout)
        request = self._http.build_request(
            "POST", _path(call, "generate_stream"), json=wire.to_fields(call)
        )
        with http_errors(self._url, deadline):
            async with asyncio.timeout(deadline.remaining()):
                if wire.needs_reranker(call):
                    wire.check_reranker(_body(await self._http.get(_model_path(call))))
                response = await self._http.send(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise _error(response)
                lines = response.aiter_lines()
                while True:
                    async with asyncio.timeout(deadline.remaining()):
                        line = await anext(lines, None)
                    if line is None:
                        break
                    for tensors in _event(call, line):
                        yield tensors
            finally:
                await response.aclose()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _post(self, path: str, body: dict[str, Any], timeout: float | None) -> Any:
        with http_errors(self._url, Deadline(timeout)):
            async with asyncio.timeout(timeout):
                return _body(await self._http.post(path, json=body))


def _base(url: str) -> str:
    return url if "://" in url else f"http://{url}"


def _verify(url: str) -> bool:
    """Whether to read the certificates, for which plain HTTP need not wait (50 ms)."""
    return url.startswith("https:")


def _model_path(call: Call) -> str:
    version = "" if call.version is None else f"/versions/{call.version}"
    return f"/v2/models/{call.model.name}{version}"


def _path(call: Call, method: str) -> str:
    return f"{_model_path(call)}/{method}"


def _body(response: httpx.Response) -> Any:
    if response.is_error:
        raise _error(response)
    return _parsed(response.text)


def _error(response: httpx.Response) -> TritonragError:
    """Return the error of a body ``{"error": …}``, of such an event, or of a proxy's page."""
    text = response.text.strip()
    try:
        message = str(json.loads(text.removeprefix("data:"))["error"])
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {response.status_code}: {text[:200]}"
    if text.startswith("data:"):
        return from_stream(message)
    return from_http(response.status_code, message)


def _event(call: Call, line: str) -> Iterator[Tensors]:
    if not line.startswith("data:"):
        return
    event = _parsed(line.removeprefix("data:"))
    if "error" in event:
        raise from_stream(event["error"])
    yield wire.from_fields(call, event)


@understood
def _parsed(text: str) -> Any:
    return json.loads(text)


def _versions(answers: Iterable[httpx.Response]) -> dict[str, list[int]]:
    """Return the versions that are loaded, from the metadata of each model of the contract."""
    found = {
        model: _loaded(_body(answer))
        for model, answer in zip(MODELS, answers, strict=True)
        if not _unknown(answer)
    }
    return {model: versions for model, versions in found.items() if versions}


@understood
def _loaded(metadata: dict[str, Any]) -> list[int]:
    return sorted(int(version) for version in metadata["versions"])


def _unknown(answer: httpx.Response) -> bool:
    """Return whether a model is not loaded; Triton says so with 400 or 404 and this text."""
    return answer.status_code in (400, 404) and "unknown model" in answer.text


@contextmanager
def _ending(response: httpx.Response, deadline: Deadline) -> Iterator[None]:
    """Shut the connection at the deadline: httpx bounds each read, but not all of them."""
    seconds = deadline.remaining()
    stream = response.extensions.get("network_stream")
    if seconds is None or stream is None:
        yield
        return
    passed = threading.Event()
    timer = threading.Timer(seconds, _shut, (stream.get_extra_info("socket"), passed))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if passed.is_set():
        raise TimeoutError


def _shut(connection: socket.socket, passed: threading.Event) -> None:
    passed.set()
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
