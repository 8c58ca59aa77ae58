"""The KServe v2 gRPC protocol, on the stub that ``tritonclient`` generates.

The stub rather than ``InferenceServerClient``: that one takes a single stream per client, and its
callbacks know neither deadline nor status. Here each stream is a call of its own, many may run on
the one channel, and both kinds of client share everything but ``await``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonrag.client import wire
from tritonrag.client.addresses import on_this_machine
from tritonrag.client.faults import from_stream, grpc_errors
from tritonrag.client.marshalling import Call, Tensors
from tritonrag.contract import MODELS

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that starts is found within a second; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def channel_options(url: str) -> list[tuple[str, int]]:
    """Return the options of a channel to ``url``."""
    return [*_OPTIONS, ("grpc.enable_http_proxy", int(not on_this_machine(url)))]


class GrpcTransport:
    """Sends calls over one channel; safe for many threads."""

    def __init__(self, url: str) -> None:
        """Take ``host:port``; nothing is sent yet."""
        self._url = url
        self._channel = grpc.insecure_channel(url, channel_options(url))
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, call: Call, timeout: float | None) -> Tensors:
        """Return the one response of a call."""
        with grpc_errors(self._url, timeout):
            response = self._stub.ModelInfer(wire.to_protobuf(call), timeout=timeout)
        return wire.from_protobuf(response)

    def stream(self, call: Call, timeout: float | None) -> Generator[Tensors, None, None]:
        """Yield the responses of a call, which is sent when the first is asked for."""
        with grpc_errors(self._url, timeout):
            responses = self._stub.ModelStreamInfer(iter([wire.to_protobuf(call)]), timeout=timeout)
            try:
                for response in responses:
                    yield from _responses(response)
            finally:
                responses.cancel()

    def versions(self, timeout: float | None) -> dict[str, list[int]]:
        """Return the versions that are loaded, by model."""
        return loaded_versions(self._stub, self._url, timeout)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """As :class:`GrpcTransport`, for one event loop."""

    def __init__(self, url: str) -> None:
        """Take ``host:port``; nothing is sent yet."""
        self._url = url
        self._channel = grpc.aio.insecure_channel(url, channel_options(url))
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def infer(self, call: Call, timeout: float | None) -> Tensors:
        """Return the one response of a call."""
        with grpc_errors(self._url, timeout):
            response = await self._stub.ModelInfer(wire.to_protobuf(call), timeout=timeout)
        return wire.from_protobuf(response)

    async def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Tensors, None]:
        """Yield the responses of a call, which is sent when the first is asked for."""
        with grpc_errors(self._url, timeout):
            responses = self._stub.ModelStreamInfer([wire.to_protobuf(call)], timeout=timeout)
            try:
                async for response in responses:
                    for tensors in _responses(response):
                        yield tensors
            finally:
                responses.cancel()

    async def versions(self, timeout: float | None) -> dict[str, list[int]]:
        """Return the versions that are loaded, by model."""
        with grpc_errors(self._url, timeout):
            found = await asyncio.gather(*(self._loaded(name, timeout) for name in MODELS))
        return {name: versions for name, versions in zip(MODELS, found, strict=True) if versions}

    async def _loaded(self, model: str, timeout: float | None) -> list[int]:
        request = service_pb2.ModelMetadataRequest(name=model)
        try:
            return _sorted(await self._stub.ModelMetadata(request, timeout=timeout))
        except grpc.RpcError as error:
            return _none_loaded(error)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def loaded_versions(stub: Any, url: str, timeout: float | None) -> dict[str, list[int]]:
    """Return the versions that are loaded of each model of the contract.

    By the models' metadata: what lists them at once, Triton's statistics and the index of its
    repository, is closed to whoever has no key.
    """
    found: dict[str, list[int]] = {}
    with grpc_errors(url, timeout):
        for model in MODELS:
            request = service_pb2.ModelMetadataRequest(name=model)
            try:
                found[model] = _sorted(stub.ModelMetadata(request, timeout=timeout))
            except grpc.RpcError as error:
                found[model] = _none_loaded(error)
    return {model: versions for model, versions in found.items() if versions}


def _sorted(metadata: Any) -> list[int]:
    return sorted(int(version) for version in metadata.versions)


def _none_loaded(error: grpc.RpcError) -> list[int]:
    if error.code() is not grpc.StatusCode.NOT_FOUND:
        raise error
    return []


def _responses(response: Any) -> Iterator[Tensors]:
    """Yield the tensors of a streamed message; the empty one that may end a stream has none."""
    if response.error_message:
        raise from_stream(response.error_message)
    if response.infer_response.outputs:
        yield wire.from_protobuf(response.infer_response)
