"""A Python-based ``onnxruntime`` backend for servers that lack the C++ one.

It serves the same ``config.pbtxt`` as Triton's own ONNX Runtime backend: one ``model.onnx`` in the
version folder, inputs and outputs by name. It honours the options below and refuses to load with
any other, rather than to ignore it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from tritonrag.backend.conversions import Array, respond, response
from tritonrag.errors import SetupError

_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""``optimization { graph { level } }`` as the C++ backend reads it; 0 is also what is not set."""


def _set_intra_op(options: ort.SessionOptions, value: str) -> None:
    options.intra_op_num_threads = int(value)


def _set_inter_op(options: ort.SessionOptions, value: str) -> None:
    options.inter_op_num_threads = int(value)


def _set_execution_mode(options: ort.SessionOptions, value: str) -> None:
    parallel = int(value) == 1
    options.execution_mode = (
        ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    )


_PARAMETERS: Mapping[str, Callable[[ort.SessionOptions, str], None]] = {
    "intra_op_thread_count": _set_intra_op,
    "inter_op_thread_count": _set_inter_op,
    "execution_mode": _set_execution_mode,
}


class OnnxModel:
    """One ONNX Runtime session that answers whole batches. Inputs and outputs are [batch, …]."""

    def __init__(self, config: dict[str, Any], version_folder: Path) -> None:
        """Load ``model.onnx`` with the options of a parsed ``config.pbtxt``.

        Raises:
            SetupError: there is no model file, or the config has an option not honoured here.
        """
        path = version_folder / "model.onnx"
        if not path.is_file():
            raise SetupError(f"{path}: no such file; run `make models` (or export/embedder.py)")
        self._session = ort.InferenceSession(
            path, session_options(config), providers=["CPUExecutionProvider"]
        )
        self._inputs = [each["name"] for each in config["input"]]
        self._outputs = config["output"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests from one run of the session; Triton joins equal shapes only."""
        return respond(requests, self._read, self._run, self._write)

    def _read(self, request: Any) -> list[Array]:
        tensors = (pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs)
        return [tensor.as_numpy() for tensor in tensors]

    def _run(self, batch: list[list[Array]]) -> Sequence[list[Array] | Exception]:
        try:
            return self._run_together(batch)
        except Exception as error:  # what one request made the graph refuse fails that one only
            return [error] if len(batch) == 1 else [self._run([inputs])[0] for inputs in batch]

    def _run_together(self, batch: list[list[Array]]) -> list[list[Array]]:
        columns = zip(self._inputs, zip(*batch, strict=True), strict=True)
        feed = {name: np.concatenate(parts) for name, parts in columns}
        outputs = self._session.run([each["name"] for each in self._outputs], feed)
        ends = np.cumsum([len(inputs[0]) for inputs in batch])[:-1]
        parts = (np.split(output, ends) for output in outputs)
        return [list(one) for one in zip(*parts, strict=True)]

    def _write(self, outputs: list[Array]) -> Any:
        pairs = zip(self._outputs, outputs, strict=True)
        return response(*(pb_utils.Tensor(spec["name"], values) for spec, values in pairs))


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Return the session options that a parsed ``config.pbtxt`` asks for.

    Raises:
        SetupError: an option that this backend does not honour, or a bad value.
    """
    options = ort.SessionOptions()
    for key, parameter in config.get("parameters", {}).items():
        _set(options, key, parameter["string_value"])
    optimization = config.get("optimization") or {}
    if (optimization.get("execution_accelerators") or {}).get("cpu_execution_accelerator"):
        raise SetupError(_refusal("optimization.execution_accelerators.cpu_execution_accelerator"))
    level = int((optimization.get("graph") or {}).get("level", 0))
    if level not in _LEVELS:
        raise SetupError(f"optimization.graph.level is {level}, expected one of {sorted(_LEVELS)}")
    options.graph_optimization_level = _LEVELS[level]
    return options


def _set(options: ort.SessionOptions, key: str, value: str) -> None:
    if key not in _PARAMETERS:
        raise SetupError(_refusal(f"parameter {key}"))
    try:
        _PARAMETERS[key](options, value)
    except ValueError:
        raise SetupError(f"parameter {key} is {value!r}, expected an integer") from None


def _refusal(option: str) -> str:
    return (
        f"{option} is not supported by the Python-based onnxruntime backend, which honours "
        f"{', '.join(_PARAMETERS)} and optimization.graph.level; remove it or use Triton's own"
    )
