"""A stand-in for Triton's vLLM backend, served as a Python model: its inputs and outputs, no vLLM.

It streams the words of the prompt back, one a response, up to ``max_tokens``. A prompt of these
words does something else: ``parameters`` streams the sampling parameters, ``fail`` fails after one
word, ``slow`` takes 20 ms a word for as many as it may. It keeps what the backend
does: no batch dimension, tensors that were not asked for are left out, ``finish_reason`` is the
word None until the end, ``num_output_tokens`` counts since the last response.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            threading.Thread(target=answer, args=(request, request.get_response_sender())).start()


def answer(request: Any, sender: Any) -> None:
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    prompt = value(request, "text_input").decode()
    sampling = value(request, "sampling_parameters").decode()
    assert value(request, "stream")
    assert value(request, "exclude_input_in_output")
    words = prompt.split() if prompt != "slow" else ["slow"] * 10_000
    words = [sampling] if prompt == "parameters" else words
    limit = json.loads(sampling)["max_tokens"]
    for number, word in enumerate(words[:limit], 1):
        if prompt == "slow":
            time.sleep(0.02)
        last = number == min(limit, len(words))
        if prompt == "fail":
            error = pb_utils.TritonError("Error generating stream: out of memory at /opt/vllm.py")
            sender.send(pb_utils.InferenceResponse([], error), flags=final)
            return
        reason = "None" if not last else "length" if len(words) > limit else "stop"
        tensors = [
            pb_utils.Tensor("text_output", np.array([f" {word}".encode()], np.object_)),
            pb_utils.Tensor("finish_reason", np.array([reason.encode()], np.object_)),
            pb_utils.Tensor("num_output_tokens", np.array([1], np.uint32)),
        ]
        sender.send(pb_utils.InferenceResponse(tensors), flags=final if last else 0)


def value(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]
