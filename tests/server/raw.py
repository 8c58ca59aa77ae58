"""A question sent with nothing of ours: bare ``tritonclient`` over gRPC."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import tritonclient.grpc as triton

DTYPES = {"top_k": np.int32, "retrieve_k": np.int32, "max_tokens": np.int32, "seed": np.int64,
          "temperature": np.float32, "top_p": np.float32,
          "embedding": np.float32, "min_score": np.float32, "diversity": np.float32,
          "merge": np.bool_}  # fmt: skip


def inputs(**fields: Any) -> list[triton.InferInput]:
    """Return one input a field, batch of one: strings and bytes as BYTES, numbers by name."""
    made = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        if name in DTYPES:
            array = np.array([values], dtype=DTYPES[name])
        else:
            encoded = [each.encode() if isinstance(each, str) else each for each in values]
            array = np.array([encoded], dtype=np.object_)
        dtype = triton._utils.np_to_triton_dtype(array.dtype)
        tensor = triton.InferInput(name, array.shape, dtype)
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def search(url: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the passages of one unary ``search``."""
    with triton.InferenceServerClient(url) as client:
        passages = client.infer("search", inputs(**fields)).as_numpy("passages")
    return [json.loads(passage) for passage in passages[0]]


def stream(
    url: str, model: str = "rag", request_id: str = "", **fields: Any
) -> Iterator[dict[str, str]]:
    """Yield the outputs of every response of one decoupled request, as text."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client = triton.InferenceServerClient(url)
    try:
        client.start_stream(lambda result, error: arrived.put(error or result))
        client.async_stream_infer(
            model, inputs(**fields), request_id=request_id, enable_empty_final_response=True
        )
        while True:
            result = arrived.get(timeout=60)
            if isinstance(result, Exception):
                raise result
            outputs = [each.name for each in result.get_response().outputs]
            if outputs:
                yield {name: result.as_numpy(name).reshape(-1)[0].decode() for name in outputs}
            if result.get_response().parameters["triton_final_response"].bool_param:
                return
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()
