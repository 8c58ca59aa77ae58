"""A server of both real protocols whose models are a few lines of Python.

It decodes requests with tritonclient's own functions, so the client's marshalling is not checked
against itself.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from tritonrag.contract import MODELS, VARIANTS

PASSAGE = {
    "id": "7",
    "text": "Zoë has “25” days of leave.",
    "source": "leave.md",
    "title": "Leave",
    "location": "Leave > Annual",
    "score": 0.75,
    "start": 3,
    "end": 30,
}
CITATIONS = [{"mark": 1, **PASSAGE}, {"mark": None, "dropped": "context", **PASSAGE}]
USAGE = {
    "prompt_tokens": 9,
    "cached_tokens": 1,
    "generated_tokens": 4,
    "time_to_first_token_ms": 1.5,
    "total_ms": 3.5,
}


LOADED = (("search", "1"), ("rag", "1"), ("generate", "1"))


class Fault(Exception):
    """An error of a model: gRPC's code, HTTP's status and Triton's message."""

    def __init__(self, code: grpc.StatusCode, status: int, message: str) -> None:
        super().__init__(message)
        self.code, self.status, self.message = code, status, message


@dataclass
class Request:
    """What a model was sent: flat lists by tensor name, and the shapes."""

    model: str
    id: str
    inputs: dict[str, list[Any]]
    shapes: dict[str, list[int]] = field(default_factory=dict)


class Models:
    """Answers by the question's text and remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled: dict[str, float] = {}
        self.open = 0
        self.variant = ""
        self.hanging = threading.Event()

    def infer(self, request: Request) -> dict[str, np.ndarray]:
        self.requests.append(request)
        if request.model == "embed_text":
            rows = [[len(text), 0.5] for text in request.inputs["text"]]
            return {"embedding": np.array(rows, np.float32)}
        self._fail(request)
        found = [json.dumps(PASSAGE, ensure_ascii=False)] * request.inputs.get("top_k", [2])[0]
        scores = np.full((1, len(found)), 0.75, np.float32)
        return {"passages": np.array([found], np.object_), "scores": scores}

    def stream(self, request: Request) -> Iterator[tuple[str, str, str, str]]:
        self.requests.append(request)
        if request.inputs.get("cancel") == [True]:
            self.cancelled[request.id] = time.monotonic()
            yield "", "", "cancelled", json.dumps(USAGE)
            return
        self._fail(request)
        self.open += 1
        try:
            yield from self._answer(request)
        finally:
            self.open -= 1

    def _answer(self, request: Request) -> Iterator[tuple[str, str, str, str]]:
        question = (request.inputs.get("question") or request.inputs["prompt"])[0]
        if question == "hang":
            self.hanging.wait(1)
        yield "Zoë ", json.dumps(CITATIONS, ensure_ascii=False), "", ""
        ends = time.monotonic() + 5
        while question == "endless" and time.monotonic() < ends:
            if request.id in self.cancelled:
                yield "", "", "cancelled", json.dumps(USAGE)
                return
            yield "more ", "", "", ""
            time.sleep(0.01)
        if question == "breaks":
            yield "", "", "error", json.dumps({**USAGE, "error": "the engine broke"})
        elif question != "cut off":
            yield "has 25 days [1].", "", "", ""
            yield "", "", "stop", json.dumps(USAGE)

    def inputs(self, model: str) -> list[str]:
        spec = VARIANTS.get(self.variant, MODELS).get(model, MODELS[model])
        return [each.name for each in spec.inputs]

    def _fail(self, request: Request) -> None:
        where = f"in ensemble '{request.model}', "
        unknown = request.inputs.keys() - set(self.inputs(request.model))
        if unknown:
            message = (
                f"[request id: {request.id}] unexpected inference input '{unknown.pop()}' for "
                f"model '{request.model}'"
            )
            raise Fault(grpc.StatusCode.INVALID_ARGUMENT, 400, message)
        if request.inputs.get("question") == [" "]:
            message = where + "INVALID_ARG: question: is blank"
            raise Fault(grpc.StatusCode.INVALID_ARGUMENT, 400, message)
        if request.inputs.get("collection") == ["nope"]:
            message = where + "NOT_FOUND: collection: no collection is called 'nope'"
            raise Fault(grpc.StatusCode.NOT_FOUND, 404, message)
        if request.inputs.get("question") == ["busy"]:
            message = "UNAVAILABLE: generate: its queue is full (1)"
            raise Fault(grpc.StatusCode.UNAVAILABLE, 503, message)
        if request.inputs.get("question") == ["bug"]:
            raise Fault(grpc.StatusCode.INTERNAL, 500, "INTERNAL: internal error; log id 1")


def _unknown(model: str) -> str:
    return f"Request for unknown model: '{model}' is not found"


def _named(values: tuple[str, str, str, str]) -> dict[str, str]:
    return dict(zip(("text", "citations", "finish_reason", "usage"), values, strict=True))


class FakeTriton:
    """Both servers on free ports of this machine."""

    def __init__(self) -> None:
        self.models = Models()
        self._pool = ThreadPoolExecutor(16)
        self._grpc = grpc.server(self._pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            _Servicer(self.models), self._grpc
        )
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self._http = _HttpServer(("127.0.0.1", 0), _handler(self.models))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.urls = {
            "grpc": f"127.0.0.1:{port}",
            "http": f"127.0.0.1:{self._http.server_address[1]}",
        }

    def close(self) -> None:
        self.models.hanging.set()
        self._grpc.stop(0).wait()
        self._pool.shutdown()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, models: Models) -> None:
        self._models = models

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        versions = [version for name, version in LOADED if name == request.name]
        if not versions:
            context.abort(grpc.StatusCode.NOT_FOUND, _unknown(request.name))
        return service_pb2.ModelMetadataResponse(name=request.name, versions=versions)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        try:
            return _response(self._models.infer(_decoded(request)))
        except Fault as fault:
            context.abort(fault.code, fault.message)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
        for request in requests:
            try:
                for values in self._models.stream(_decoded(request)):
                    named = _named(values).items()
                    tensors = {name: np.array([[value]], np.object_) for name, value in named}
                    yield service_pb2.ModelStreamInferResponse(infer_response=_response(tensors))
            except Fault as fault:
                yield service_pb2.ModelStreamInferResponse(error_message=fault.message)
            # As Triton with triton_enable_empty_final_response: no outputs.
            yield service_pb2.ModelStreamInferResponse(
                infer_response=service_pb2.ModelInferResponse(id=request.id)
            )


def _decoded(request: Any) -> Request:
    inputs, shapes = {}, {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        shapes[tensor.name] = list(tensor.shape)
        if tensor.datatype == "BYTES":
            inputs[tensor.name] = [value.decode() for value in deserialize_bytes_tensor(raw)]
        else:
            inputs[tensor.name] = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).tolist()
        assert len(inputs[tensor.name]) == np.prod(tensor.shape)
    return Request(request.model_name, request.id, inputs, shapes)


def _response(tensors: dict[str, np.ndarray]) -> Any:
    response = service_pb2.ModelInferResponse()
    for name, values in tensors.items():
        text = values.dtype == np.object_
        response.outputs.add(
            name=name, datatype="BYTES" if text else "FP32", shape=list(values.shape)
        )
        raw = serialize_byte_tensor(values).item() if text and values.size else values.tobytes()
        response.raw_output_contents.append(raw if values.size else b"")
    return response


def _handler(models: Models) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            model = self.path.split("/")[3]
            versions = [version for name, version in LOADED if name == model]
            if not versions:
                self._json(400, {"error": _unknown(model)})
                return
            inputs = [{"name": name} for name in models.inputs(model)]
            self._json(200, {"versions": versions, "inputs": inputs})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = re.sub("/versions/[0-9]+", "", self.path)
            *_, model, method = path.split("/")
            if method == "infer":
                return self._infer(model, body)
            self._generate_stream(model, body)

        def _infer(self, model: str, body: dict[str, Any]) -> None:
            tensors = {tensor["name"]: tensor for tensor in body["inputs"]}
            inputs = {name: tensor["data"] for name, tensor in tensors.items()}
            shapes = {name: tensor["shape"] for name, tensor in tensors.items()}
            try:
                outputs = models.infer(Request(model, body["id"], inputs, shapes))
            except Fault as fault:
                return self._json(fault.status, {"error": fault.message})
            kinds = {"passages": "BYTES", "scores": "FP32", "embedding": "FP32"}
            listed = [
                {
                    "name": name,
                    "datatype": kinds[name],
                    "shape": list(values.shape),
                    "data": values.ravel().tolist(),
                }
                for name, values in outputs.items()
            ]
            self._json(200, {"outputs": listed})

        def _generate_stream(self, model: str, body: dict[str, Any]) -> None:
            """As Triton: the status is sent with the first response, 400 for any error."""
            request_id = body.pop("id")
            # As Triton: a field that is no input is a parameter, and nobody misses it.
            given = {name: body[name] for name in models.inputs(model) if name in body}
            inputs = {k: v if isinstance(v, list) else [v] for k, v in given.items()}
            responses = models.stream(Request(model, request_id, inputs))
            try:
                first = {"model_name": model} | _named(next(responses))
            except Fault as fault:
                first = {"error": fault.message}
            self.send_response(400 if "error" in first else 200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                self._event(first)
                for values in responses:
                    self._event({"model_name": model} | _named(values))
            finally:
                responses.close()

        def _event(self, value: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
            self.wfile.flush()

        def _json(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
