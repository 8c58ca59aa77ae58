"""Checkpoints quantised by GPTQ or AWQ as fp32 models, to compare an export of them with.

Their layouts are those of AutoGPTQ and AutoAWQ. transformers reads them only with packages that
need a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tritonrag.errors import SetupError


def load_dequantised(source: Path, quantised: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return a GPTQ or AWQ checkpoint as an fp32 model, and the weights that it lacks."""
    config = AutoConfig.from_pretrained(source)
    del config.quantization_config
    stored: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        stored |= load_file(path)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    found = model.load_state_dict(dequantised(stored, quantised), strict=False)
    model.tie_weights()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return model, sorted(set(found.missing_keys) - tied)


def dequantised(
    stored: dict[str, torch.Tensor], quantised: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return a state dict of fp32 weights [out, in] from a checkpoint's packed ones."""
    weights: dict[str, torch.Tensor] = {}
    layers = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    for name, tensor in stored.items():
        if name.rpartition(".")[0] not in layers or name.endswith(".bias"):
            weights[name] = tensor.float()
    awq = quantised["quant_method"] == "awq"
    for layer in layers:
        packed = {part: stored.get(f"{layer}.{part}") for part in ("qweight", "qzeros", "scales")}
        absent = [part for part, tensor in packed.items() if tensor is None]
        if absent:
            raise SetupError(f"the quantised layer {layer} has no {absent[0]}")
        groups = stored.get(f"{layer}.g_idx")
        unpack = awq_weight if awq else gptq_weight
        weights[f"{layer}.weight"] = unpack(**packed, groups=groups, quantised=quantised)
    return weights


def gptq_weight(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    groups: torch.Tensor | None,
    quantised: dict[str, Any],
) -> torch.Tensor:
    """Return (code - zero) * scale as [out, in].

    ``qweight`` [in * bits / 32, out] packs along the inputs, ``qzeros`` [group, out * bits / 32]
    along the outputs, lowest bits first; ``scales`` are [group, out], and ``groups`` [in] names the
    group of each input. Format ``gptq`` stores zeros less one, ``gptq_v2`` as they are.
    """
    bits = quantised["bits"]
    codes = unpacked(qweight.T, bits).T
    zeros = unpacked(qzeros, bits)
    if quantised.get("checkpoint_format", "gptq") == "gptq":
        zeros = (zeros + 1) & (2**bits - 1)
    if groups is None:
        groups = _groups(len(codes), len(scales))
    return ((codes - zeros[groups]) * scales.float()[groups]).T.contiguous()


def awq_weight(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    groups: torch.Tensor | None,
    quantised: dict[str, Any],
) -> torch.Tensor:
    """Return (code - zero) * scale as [out, in].

    ``qweight`` [in, out / 8] and ``qzeros`` [group, out / 8] pack along the outputs, each number
    holding the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight from the lowest bits up.
    """
    bits = quantised["bits"]
    # Where the output with this place among its eight lies.
    places = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    codes, zeros = (
        unpacked(each, bits).reshape(len(each), -1, 8)[..., places].reshape(len(each), -1)
        for each in (qweight, qzeros)
    )
    groups = _groups(len(codes), len(scales))
    return ((codes - zeros[groups]) * scales.float()[groups]).T.contiguous()


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the codes in each 32-bit number of [rows, n], lowest first: [rows, n * 32 / bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(1)


def _groups(inputs: int, groups: int) -> torch.Tensor:
    return torch.arange(inputs) // (inputs // groups)
