"""A Python-based ``onnxruntime`` backend for servers that lack the C++ one.

It serves the same ``config.pbtxt`` as Triton's own ONNX Runtime backend: one ``model.onnx`` in the
version folder, inputs and outputs by name. It honours the options below and refuses to load with
any other, rather than to ignore it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort

from tritonrag.backend.graphs import (
    GraphModel,
    by_length,
    graph_file,
    integer,
    parameters,
    refusal,
)
from tritonrag.errors import SetupError
from tritonrag.padding import Run

_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""``optimization { graph { level } }`` as the C++ backend reads it; 0 is also what is not set."""


def _set_intra_op(options: ort.SessionOptions, value: int) -> None:
    options.intra_op_num_threads = value


def _set_inter_op(options: ort.SessionOptions, value: int) -> None:
    options.inter_op_num_threads = value


def _set_execution_mode(options: ort.SessionOptions, value: int) -> None:
    options.execution_mode = (
        ort.ExecutionMode.ORT_PARALLEL if value == 1 else ort.ExecutionMode.ORT_SEQUENTIAL
    )


_PARAMETERS: Mapping[str, Callable[[ort.SessionOptions, int], None]] = {
    "intra_op_thread_count": _set_intra_op,
    "inter_op_thread_count": _set_inter_op,
    "execution_mode": _set_execution_mode,
}


def onnx_model(config: dict[str, Any], version_folder: Path) -> GraphModel:
    """Return the model of a parsed ``config.pbtxt``; raises as :func:`onnx_graph`."""
    return GraphModel(config, onnx_graph(config, version_folder))


def onnx_graph(config: dict[str, Any], version_folder: Path) -> Run:
    """Load ``model.onnx`` with the options of a parsed ``config.pbtxt``.

    Raises:
        SetupError: there is no model file, or the config has an option not honoured here.
    """
    session = ort.InferenceSession(
        graph_file(version_folder), session_options(config), providers=["CPUExecutionProvider"]
    )
    outputs = [each["name"] for each in config["output"]]
    return by_length(config, partial(session.run, outputs))


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Return the session options that a parsed ``config.pbtxt`` asks for.

    Raises:
        SetupError: an option that this backend does not honour, or a bad value.
    """
    options = ort.SessionOptions()
    # Threads that wait for the next run by spinning take the cores from the server's other
    # processes; on two of them Triton's batchers then missed wake-ups and slept for 500 ms.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for key, value in parameters(config).items():
        if key not in _PARAMETERS:
            raise _refusal(f"parameter {key}")
        _PARAMETERS[key](options, integer(key, value))
    optimization = config.get("optimization") or {}
    if (optimization.get("execution_accelerators") or {}).get("cpu_execution_accelerator"):
        raise _refusal("optimization.execution_accelerators.cpu_execution_accelerator")
    level = int((optimization.get("graph") or {}).get("level", 0))
    if level not in _LEVELS:
        raise SetupError(f"optimization.graph.level is {level}, expected one of {sorted(_LEVELS)}")
    options.graph_optimization_level = _LEVELS[level]
    return options


def _refusal(option: str) -> SetupError:
    honoured = f"{', '.join(_PARAMETERS)} and optimization.graph.level"
    return refusal(option, "onnxruntime", honoured)
