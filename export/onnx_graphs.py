"""ONNX graphs of PyTorch encoders: fused, lowered to half, written, quantised to int8, opened.

What ``embedder.py`` and ``reranker.py`` share. Knows neither pooling nor scores.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers import AttentionInterface, AutoTokenizer
from transformers.masking_utils import AttentionMaskInterface

from tritonrag.errors import SetupError
from tritonrag.exporting import first_line

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
QUANTIZATIONS = ("blocks", "dynamic", "static")
BLOCK = 128
"""Weights that share a scale with ``blocks``."""
FUSED = "tritonrag_fused"
"""Name of the attention below for transformers' ``attn_implementation``."""
MAX_PROTOBUF_BYTES = 2**31 - 2**24
"""A larger model keeps its weights in ``model.onnx.data``: a protobuf file ends at 2 GiB."""


def load_original(auto: Any, folder: Path, unused: str = "-", **options: Any) -> tuple[Any, Any]:
    """Return a model in fp32 by one of transformers' auto classes, and its tokenizer.

    Weights whose names start with ``unused`` may be missing.

    Raises:
        SetupError: it cannot be loaded, lacks weights, or has another model's tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, info = auto.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # transformers and safetensors raise whatever they like
        raise SetupError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        raise SetupError(f"{folder}: its weights lack {len(missing)}, such as {missing[0]}")
    if len(tokenizer) > model.config.vocab_size:
        raise SetupError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{model.config.vocab_size}"
        )
    return model, tokenizer


def lowered(model: Any, precision: str) -> Any:
    """Return the model in the half precision asked for, else as it is."""
    return copy.deepcopy(model).to(DTYPES[precision]) if precision in DTYPES else model


def takes(module: torch.nn.Module, name: str) -> bool:
    """Return whether a module's ``forward`` has a parameter of this name."""
    return name in inspect.signature(module.forward).parameters


def write_onnx(model: torch.nn.Module, folder: Path, inputs: Sequence[str], output: str) -> None:
    """Write ``model.onnx`` into a new folder.

    The inputs, named as in the model's ``forward``, are INT64 [batch, sequence].

    Raises:
        SetupError: the model's graph cannot be exported.
    """
    folder.mkdir()
    large = sum(weight.nbytes for weight in model.parameters()) > MAX_PROTOBUF_BYTES
    batch, sequence = torch.export.Dim("batch", max=4096), torch.export.Dim("sequence", min=2)
    # A tensor for each: one passed twice would be taken for a single input.
    examples = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in inputs)
    try:
        with torch.no_grad():
            torch.onnx.export(
                model, examples, folder / "model.onnx", dynamo=True, verbose=False,
                external_data=large, input_names=list(inputs), output_names=[output],
                dynamic_shapes={name: {0: batch, 1: sequence} for name in inputs},
            )  # fmt: skip
    except OSError:
        raise
    except Exception as error:  # the exporter raises whatever a layer made it raise
        raise SetupError(f"its graph cannot be exported to ONNX: {first_line(error)}") from error


def quantize(folder: Path, how: str, calibration: Calibration | None = None) -> None:
    """Replace the fp32 graph in ``folder`` by one in int8.

    ``blocks``: weights by blocks of 128, activations by block as they come. ``dynamic``: weights by
    channel, activations by batch as they come. ``static``: weights by channel, activations with
    scales that are measured on ``calibration``.
    """
    full, path = folder / "fp32", folder / "model.onnx"
    full.mkdir()
    for file in folder.glob("model.onnx*"):
        file.rename(full / file.name)
    source, external = full / "model.onnx", (full / "model.onnx.data").exists()
    if how == "blocks":
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), external)
    elif how == "static":
        quantize_static(
            source, path, calibration, per_channel=True, weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8, op_types_to_quantize=["MatMul", "Gemm"],
            use_external_data_format=external,
        )  # fmt: skip
    else:
        quantize_dynamic(
            source, path, per_channel=True, weight_type=QuantType.QInt8,
            use_external_data_format=external,
        )  # fmt: skip
    shutil.rmtree(full)


class Calibration(CalibrationDataReader):
    """Inputs that the scales of a static quantisation are measured on."""

    def __init__(self, inputs: Sequence[dict[str, np.ndarray]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session on the CPU.

    Raises:
        SetupError: ONNX Runtime cannot run the graph here.
    """
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own, which have no base
        raise SetupError(
            f"ONNX Runtime cannot run the exported graph on this CPU: {first_line(error)}"
        ) from error


def fused_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention as ONNX Runtime's operator for it; query, key and value [batch, heads, sequence,
    size], the mask [batch, sequence]. For export only: PyTorch cannot run it."""
    batch, heads, sequence, width = query.shape
    operands: list[torch.Tensor | None] = [
        each.transpose(1, 2).reshape(batch, -1, heads * width) for each in (query, key, value)
    ]
    if attention_mask is not None:
        operands += [None, attention_mask.to(torch.int32)]
    found = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention", operands,
        {"num_heads": heads, "scale": float(scaling or width**-0.5)},
        dtype=query.dtype, shape=(batch, sequence, heads * width), version=1,
    )  # fmt: skip
    return found.view(batch, sequence, heads, width), None


AttentionInterface.register(FUSED, fused_attention)
# The operator takes the caller's mask as it is.
AttentionMaskInterface.register(FUSED, lambda *, attention_mask=None, **_: attention_mask)
