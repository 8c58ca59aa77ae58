"""A Python-based ``onnxruntime`` backend for servers that lack the C++ one.

It serves the same ``config.pbtxt`` as Triton's own ONNX Runtime backend: one ``model.onnx`` in the
version folder, inputs and outputs by name, on the CPU or on a GPU. It honours the options below
and refuses to load with any other, rather than to ignore it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort

from tritonrag.backend.graphs import (
    GraphModel,
    TokenLimits,
    by_length,
    graph_file,
    integer,
    parameters,
    pools,
    refusal,
)
from tritonrag.errors import SetupError
from tritonrag.padding import Cut, Run

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_CUT = Cut(run_cost=4096, run_tokens=1 << 30)
"""On a GPU a run costs by itself what thousands of tokens do: kernels are started one by one."""

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


def onnx_model(
    config: dict[str, Any], version_folder: Path, device: int | None = None
) -> GraphModel:
    """Return the model of a parsed ``config.pbtxt``; arguments and errors as :func:`onnx_graph`."""
    run = onnx_graph(config, version_folder, device)
    return GraphModel(config, run, TokenLimits.beside(version_folder))


def onnx_graph(config: dict[str, Any], version_folder: Path, device: int | None = None) -> Run:
    """Load ``model.onnx`` with the options of a parsed ``config.pbtxt``.

    Args:
        config: the configuration.
        version_folder: where the graph is.
        device: the GPU to run it on, None for the CPU. An ONNX Runtime without CUDA stays on the
            CPU, since Triton reads ``KIND_AUTO`` as the GPU wherever there is one.

    Raises:
        SetupError: there is no model file, the config has an option not honoured here, or CUDA
            cannot be used although this ONNX Runtime has it.
    """
    path, options = graph_file(version_folder), session_options(config)
    if device is None or CUDA not in ort.get_available_providers():
        return _on_cpu(config, path, options)
    session = ort.InferenceSession(path, options, providers=[(CUDA, {"device_id": device}), CPU])
    if CUDA not in session.get_providers():
        raise SetupError(
            "ONNX Runtime cannot use CUDA: the log says which library is missing; put CUDA's and "
            "cuDNN's on the loader's path, or set the kind of the instance group to KIND_CPU"
        )
    return by_length(config, _run(session, config), CUDA_CUT)


def _on_cpu(config: dict[str, Any], path: Path, options: ort.SessionOptions) -> Run:
    """Return a run on the CPU: of one text on all threads, of a batch one thread for each part.

    Threads that share the operators of one graph wait for each other at each; where other processes
    take a core now and then, all of them wait. Parts of a batch need no such company.
    """
    run = _run(ort.InferenceSession(path, options, providers=[CPU]), config)
    threads = options.intra_op_num_threads or len(os.sched_getaffinity(0))
    if threads == 1 or not pools(config):
        return by_length(config, run)
    options.intra_op_num_threads = 1
    alone = _run(ort.InferenceSession(path, options, providers=[CPU]), config)
    workers = ThreadPoolExecutor(threads, thread_name_prefix="embed")
    return by_length(config, run, Cut(at_once=threads), partial(workers.map, alone))


def _run(session: ort.InferenceSession, config: dict[str, Any]) -> Run:
    return partial(session.run, [each["name"] for each in config["output"]])


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
