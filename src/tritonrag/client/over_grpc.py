"""The KServe v2 gRPC protocol, on the stub that ``tritonclient`` generates.

The stub rather than ``InferenceServerClient``: that one takes a single stream per client, and its
callbacks know neither deadline nor status. Here each stream is a call of its own, many may run on
the one channel, and both kinds of client share everything but ``await``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonrag.client import wire
from tritonrag.client.addresses import on_this_machine
from tritonrag.client.faults import from_stream, grpc_errors
from tritonrag.client.marshalling import Call, Tensors

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
        with grpc_errors(self._url, timeout):
            # The repository's index says as much, but a server may ask a key for it.
            found = self._stub.ModelStatistics(
                service_pb2.ModelStatisticsRequest(), timeout=timeout
            )
        return wire.versions((model.name, model.version) for model in found.model_stats)

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
            found = await self._stub.ModelStatistics(
                service_pb2.ModelStatisticsRequest(), timeout=timeout
            )
        return wire.versions((model.name, model.version) for model in found.model_stats)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _responses(response: Any) -> Iterator[Tensors]:
    """Yield the tensors of a streamed message; the empty one that may end a stream has none."""
    if response.error_message:
        raise from_stream(response.error_message)
    if response.infer_response.outputs:
        yield wire.from_protobuf(response.infer_response)
