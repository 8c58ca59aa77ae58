"""A Python-based ``openvino`` backend for servers that lack the C++ one.

It serves the same ``config.pbtxt`` as Triton's own OpenVINO backend from the same ``model.onnx``,
with the parameters below, named and meant as there; any other is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritonrag.backend.conversions import Array
from tritonrag.backend.graphs import (
    GraphModel,
    TokenLimits,
    by_length,
    graph_file,
    integer,
    parameters,
    refusal,
)
from tritonrag.errors import SetupError
from tritonrag.padding import Run

try:
    import openvino
except ModuleNotFoundError as missing:
    raise SetupError(f"{missing}; install it: pip install 'tritonrag[openvino]'") from None

_THREADS, _STREAMS, _HINT, _BF16 = (
    "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "HINT_BF16"
)  # fmt: skip
_HINTS = ("LATENCY", "THROUGHPUT")


def openvino_model(config: dict[str, Any], version_folder: Path) -> GraphModel:
    """Return the model of a parsed ``config.pbtxt``; raises as :func:`openvino_graph`."""
    run = openvino_graph(config, version_folder)
    return GraphModel(config, run, TokenLimits.beside(version_folder))


def openvino_graph(config: dict[str, Any], version_folder: Path) -> Run:
    """Compile ``model.onnx`` for the CPU with the options of a parsed ``config.pbtxt``.

    Raises:
        SetupError: there is no model file, or the config has an option not honoured here.
    """
    core = openvino.Core()
    bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = properties(config, bf16=bf16)
    compiled = core.compile_model(str(graph_file(version_folder)), "CPU", options)
    outputs = [compiled.output(each["name"]) for each in config["output"]]
    request = compiled.create_infer_request()

    def run(feed: dict[str, Array]) -> list[Array]:
        found = request.infer(feed, share_inputs=True)
        return [found[output] for output in outputs]

    return by_length(config, run)


def properties(config: dict[str, Any], *, bf16: bool) -> dict[str, str | int]:
    """Return the properties of OpenVINO that a parsed ``config.pbtxt`` asks for.

    ``bf16`` tells whether this CPU has instructions for it: without, the hint asks for nothing.

    Raises:
        SetupError: an option that this backend does not honour, or a bad value.
    """
    found: dict[str, str | int] = {}
    for key, value in parameters(config).items():
        if key == _BF16:
            found["INFERENCE_PRECISION_HINT"] = "bf16" if bf16 and value == "YES" else "f32"
        elif key == _HINT and value in _HINTS:
            found[key] = value
        elif key == _THREADS:
            found[key] = integer(key, value)
        elif key == _STREAMS:
            found[key] = value if value in ("AUTO", "NUMA") else integer(key, value)
        elif key == _HINT:
            raise SetupError(f"parameter {key} is {value!r}, expected one of {', '.join(_HINTS)}")
        else:
            raise refusal(
                f"parameter {key}", "openvino", f"{_THREADS}, {_STREAMS}, {_HINT}, {_BF16}"
            )
    return found
