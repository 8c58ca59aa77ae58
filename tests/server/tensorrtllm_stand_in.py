"""A stand-in for TensorRT-LLM's LLM API model: its inputs, outputs and settings, no TensorRT-LLM.

Like that model it lies in a folder of its own, takes ``triton_config`` from the ``model.yaml`` of
the folder that is served, refuses another shape than [1] and sends the whole text so far each time.
It streams the words of the prompt back. A prompt of these words does something else: ``parameters``
streams the sampling parameters, ``fail`` fails, ``slow`` takes 20 ms a word for as many as it may.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
import yaml

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "seed")


def settings() -> dict[str, Any]:
    return yaml.safe_load((Path(pb_utils.get_model_dir()) / "model.yaml").read_text())


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        own = settings()["triton_config"]
        config.set_model_transaction_policy({"decoupled": own["decoupled"]})
        config.set_max_batch_size(own["max_batch_size"])
        return config

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            threading.Thread(target=answer, args=(request, request.get_response_sender())).start()


def answer(request: Any, sender: Any) -> None:
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    prompt = scalar(request, "text_input").decode()
    sampling = {name: scalar(request, f"sampling_param_{name}") for name in SAMPLING}
    assert scalar(request, "streaming")
    assert scalar(request, "return_finish_reason")
    assert scalar(request, "sampling_param_exclude_input_from_output")
    if prompt == "fail":
        error = pb_utils.TritonError("Error generating request: out of memory at /app/x.py")
        sender.send(pb_utils.InferenceResponse([], error), flags=final)
        return
    words = prompt.split() if prompt != "slow" else ["slow"] * 10_000
    words = [json.dumps(sampling)] if prompt == "parameters" else words
    limit = min(len(words), sampling["max_tokens"])
    for number in range(1, limit + 1):
        if prompt == "slow":
            time.sleep(0.02)
        reason = "None" if number < limit else "length" if len(words) > limit else "stop"
        tensors = [
            pb_utils.Tensor(name, np.array([value.encode()], np.object_))
            for name, value in {
                "text_output": " ".join(words[:number]),
                "finish_reason": reason,
            }.items()
        ]
        response = pb_utils.InferenceResponse(tensors)
        sender.send(response, flags=final if number == limit else 0)


def scalar(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy()
    assert values.shape == (1,), f"{name}: the shape is {values.shape}"
    return values.item(0)
