"""Ask over gRPC with Triton's own client library alone: nothing of tritonrag.

pip install 'tritonclient[grpc]'
python client/ask_grpc.py "When do carried-over days expire?"
"""

from __future__ import annotations

import argparse
import json
import queue
import secrets
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def tensor(name: str, datatype: str, value: Any) -> triton.InferInput:
    """Return an input of shape [1, 1]: a batch of one, one value."""
    made = triton.InferInput(name, [1, 1], datatype)
    made.set_data_from_numpy(np.array([[value]], triton_dtype(datatype)))
    return made


def triton_dtype(datatype: str) -> type[np.generic]:
    return {"BYTES": np.object_, "INT32": np.int32}[datatype]


def text(result: triton.InferResult, name: str) -> str:
    return str(result.as_numpy(name)[0, 0].decode())


def answer(client: triton.InferenceServerClient, question: str, top_k: int) -> None:
    key = tensor("cancel_key", "BYTES", secrets.token_urlsafe().encode())
    inputs = [tensor("question", "BYTES", question.encode()), tensor("top_k", "INT32", top_k), key]
    responses: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: responses.put(error or result))
    client.async_stream_infer("rag", inputs)
    finish_reason, citations = "", "[]"
    try:
        while not finish_reason:
            result = responses.get(timeout=30)
            if isinstance(result, Exception):
                sys.exit(str(result))
            print(text(result, "text"), end="", flush=True)
            citations = text(result, "citations") or citations
            finish_reason = text(result, "finish_reason")
    except KeyboardInterrupt:
        # Closing the stream would not stop the generation: Triton does not tell a model that runs
        # inside an ensemble. The key that only we know does.
        client.async_stream_infer("cancel", [key])
    finally:
        client.stop_stream()
    print()
    for citation in json.loads(citations):
        print(f"[{citation['mark']}] {citation['source']}: {citation['location']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--url", default="127.0.0.1:8001")
    arguments = parser.parse_args()
    with triton.InferenceServerClient(arguments.url) as client:
        answer(client, arguments.question, arguments.top_k)


if __name__ == "__main__":
    main()
