"""Named tensors to and from the protocols: KServe v2 in protobuf and JSON, and generate_stream.

Tensors go as raw little-endian bytes in protobuf and as plain values in JSON.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from tritonrag.client.faults import no_reranker, understood
from tritonrag.client.marshalling import Call, Tensors
from tritonrag.contract import MODELS, RETRIEVE_K

_NUMPY: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "BYTES": np.object_,
}


def _datatype(dtype: str) -> str:
    """Return the protocols' name of a config.pbtxt dtype."""
    return "BYTES" if dtype == "STRING" else dtype


def to_protobuf(call: Call) -> service_pb2.ModelInferRequest:
    """Return the KServe v2 gRPC request of a call."""
    version = "" if call.version is None else str(call.version)
    request = service_pb2.ModelInferRequest(
        model_name=call.model.name, model_version=version, id=call.id
    )
    for spec, values in call.inputs():
        request.inputs.add(
            name=spec.name, datatype=_datatype(spec.dtype), shape=call.shape(spec.name)
        )
        request.raw_input_contents.append(_pack(_datatype(spec.dtype), values))
    for output in call.model.outputs:
        request.outputs.add(name=output.name)
    if call.priority:
        request.parameters["priority"].uint64_param = call.priority
    return request


@understood
def from_protobuf(response: service_pb2.ModelInferResponse) -> Tensors:
    """Return the tensors of a KServe v2 gRPC response."""
    return {
        output.name: _unpack(output.datatype, raw).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def to_json(call: Call) -> dict[str, Any]:
    """Return the KServe v2 HTTP request of a call."""
    parameters = {"parameters": {"priority": call.priority}} if call.priority else {}
    return {
        "id": call.id,
        **parameters,
        "inputs": [
            {
                "name": spec.name,
                "datatype": _datatype(spec.dtype),
                "shape": call.shape(spec.name),
                "data": list(values),
            }
            for spec, values in call.inputs()
        ],
        "outputs": [{"name": output.name} for output in call.model.outputs],
    }


@understood
def from_json(response: dict[str, Any]) -> Tensors:
    """Return the tensors of a KServe v2 HTTP response."""
    return {
        output["name"]: np.array(output["data"], _NUMPY[output["datatype"]]).reshape(
            output["shape"]
        )
        for output in response["outputs"]
    }


def to_fields(call: Call) -> dict[str, Any]:
    """Return the ``generate_stream`` request of a call: one field per tensor, and ``id``."""
    tensors = {
        spec.name: values[0] if spec.dims == (1,) else list(values)
        for spec, values in call.inputs()
    }
    return {"id": call.id, **tensors}


def needs_reranker(call: Call) -> bool:
    """Return whether a call gives an input that only the variant with a reranker has."""
    plain = {spec.name for spec in MODELS[call.model.name].inputs}
    return RETRIEVE_K.name in call.values and RETRIEVE_K.name not in plain


@understood
def check_reranker(metadata: dict[str, Any]) -> None:
    """Check by a model's metadata that it has the input of a reranker.

    ``generate_stream`` takes a field that is no input for a parameter, and would ignore it.

    Raises:
        InvalidRequest: it does not.
    """
    if RETRIEVE_K.name not in {each["name"] for each in metadata["inputs"]}:
        raise no_reranker()


@understood
def from_fields(call: Call, response: dict[str, Any]) -> Tensors:
    """Return the tensors of one event of ``generate_stream``, each of shape ``[1, 1]``."""
    return {
        output.name: np.array([[response[output.name]]], np.object_)
        for output in call.model.outputs
    }


def _pack(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype == "BYTES":
        encoded = (value.encode() for value in values)
        return b"".join(struct.pack("<I", len(value)) + value for value in encoded)
    return np.array(values, _NUMPY[datatype]).tobytes()


def _unpack(datatype: str, raw: bytes) -> npt.NDArray[Any]:
    if datatype == "BYTES":
        return np.array(list(_strings(raw)), np.object_)
    return np.frombuffer(raw, _NUMPY[datatype])


def _strings(raw: bytes) -> Iterator[str]:
    start = 0
    while start < len(raw):
        (length,) = struct.unpack_from("<I", raw, start)
        start += 4
        yield raw[start : start + length].decode()
        start += length
