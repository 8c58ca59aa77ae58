"""The ``onnxruntime`` backend of the embedded server, in Python; see ``tritonrag.backend.onnx``.

Tensors: those of the model's ``config.pbtxt``, by name, [batch, …].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tritonrag.backend.onnx import onnx_model


class TritonPythonModel:
    """One ONNX Runtime session, on the CPU or on the GPU of this instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load ``model.onnx`` of the served version."""
        folder = Path(args["model_repository"]) / args["model_version"]
        device = int(args["model_instance_device_id"])
        gpu = device if args["model_instance_kind"] == "GPU" else None
        self._model = onnx_model(json.loads(args["model_config"]), folder, gpu)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch."""
        return self._model.execute(requests)
