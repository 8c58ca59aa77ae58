"""The options of export/llm.py, and how the builder is to make a model by them."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrag.artifacts import ENGINES, size
from tritonrag.contract import GROUNDINGS
from tritonrag.errors import SetupError
from tritonrag.exporting import BYTES_PER_PARAMETER, common_options
from tritonrag.llm_config import (
    MAX_PAGED_BATCH,
    USABLE,
    LlmShape,
    PagedCache,
    blocks_that_fit,
    free_for_cache,
    sequences_that_fit,
)

DEMO_MODEL = Path(__file__).parent / "demo_llm" / "model"
ARCHITECTURES = {
    "LlamaForCausalLM": "Llama, SmolLM2",
    "Qwen2ForCausalLM": "Qwen2, Qwen2.5",
    "Qwen3ForCausalLM": "Qwen3",
    "MistralForCausalLM": "Mistral",
    "Phi3ForCausalLM": "Phi-3, Phi-4-mini",
    "GemmaForCausalLM": "Gemma",
    "Gemma2ForCausalLM": "Gemma 2",
    "Gemma3ForCausalLM": "Gemma 3 (text)",
    "SmolLM3ForCausalLM": "SmolLM3",
}
"""What --target genai builds: architectures, and the families that have them."""

MIN_CONTEXT = 256
COMBINATIONS = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp32", "fp16", "bf16", "int8", "int4")}
"""Execution to the precisions that the builder makes for it."""
INT4_METHODS = {
    "rtn": "default", "rtn_last": "rtn_last", "k_quant": "k_quant",
    "k_quant_last": "k_quant_last", "k_quant_mixed": "k_quant_mixed",
}  # fmt: skip
"""--int4-method to the builder's algo_config; ``_last`` keeps the last layer in int8, ``_mixed``
the most sensitive layers too."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Recipe:
    """How the builder is to make the model; ``int4_method`` "" leaves weights as they are."""

    precision: str
    execution: str
    context: int
    int4_method: str
    int4_block_size: int
    paged: PagedCache | None

    @property
    def bytes_per_number(self) -> int:
        """Bytes of one number of the KV cache; quantised weights compute in fp16 on CUDA."""
        return 4 if self.execution == "cpu" or self.precision == "fp32" else 2

    def extras(self) -> list[str]:
        """Return the builder's extra options."""
        # A window's shorter cache is refused for any request shorter than the window.
        extras = {"windowed_kv_cache": "false"}
        if self.int4_method:
            extras |= {
                "algo_config": INT4_METHODS[self.int4_method],
                "block_size": str(self.int4_block_size),
            }
        if self.paged:
            extras |= {
                "use_paged_attention": "true",
                "paged_block_size": str(self.paged.block_size),
                "max_batch_size": str(self.paged.max_batch_size),
            }
            if self.paged.blocks:
                extras["num_blocks"] = str(self.paged.blocks)
        return [f"{key}={value}" for key, value in extras.items()]

    def named(self) -> dict[str, Any]:
        """Return what shaped the export, for its manifest."""
        named = dataclasses.asdict(self)
        if not self.int4_method:
            del named["int4_method"], named["int4_block_size"]
        return named


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export an LLM for the model `generate`. Families: "
        f"{'; '.join(ARCHITECTURES.values())}.",
        epilog="A model whose output differs too much from the original's is not installed.",
    )
    common_options(parser, default=None, default_name="the demo LLM")
    parser.add_argument(
        "--target", choices=ENGINES, default="genai",
        help="genai: ONNX Runtime GenAI inside `generate`; vllm, tensorrtllm: a model beside it "
        "for Triton's vLLM backend or TensorRT-LLM's LLM API (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=tuple(BYTES_PER_PARAMETER),
        help="of the weights (default: int4; with another --target than genai the model's own)",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=int, metavar="TOKENS",
        help="prompt and answer together (default: the model's own limit)",
    )  # fmt: skip
    parser.add_argument(
        "--grounding", choices=GROUNDINGS,
        help="how `generate` answers by default (default: `tritonrag_grounding` in the model's "
        "config.json, else free)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB",
        help=f"memory of the GPU: sizes the KV cache ({USABLE:.0%}% less the weights)",
    )  # fmt: skip
    _genai_options(parser.add_argument_group("--target genai"))
    _served_options(parser.add_argument_group(SERVED_TARGETS))
    return parser.parse_args(arguments)


def _genai_options(group: Any) -> None:
    group.add_argument("--execution", choices=tuple(COMBINATIONS), help="default: cpu")
    group.add_argument(
        "--int4-method", choices=tuple(INT4_METHODS),
        help="rtn rounds, k_quant searches scales; _last keeps the last layer in int8, _mixed "
        "sensitive layers too (default: rtn)",
    )  # fmt: skip
    group.add_argument(
        "--int4-block-size", type=int, choices=BLOCK_SIZES, help="weights per scale (default: 32)"
    )
    group.add_argument(
        "--max-batch-size", type=int, metavar="N",
        help=f"sequences in the paged KV cache, up to {MAX_PAGED_BATCH} (cuda; default: 100)",
    )  # fmt: skip
    group.add_argument(
        "--num-blocks", type=int, metavar="N",
        help="blocks of the paged KV cache (cuda; default: from --gpu-memory, else 60 %% of what "
        "is free at start)",
    )  # fmt: skip
    group.add_argument(
        "--block-size", type=int, metavar="TOKENS",
        help="tokens in a block of the paged KV cache, a power of two from 16 (cuda; default: 256)",
    )  # fmt: skip


def _served_options(group: Any) -> None:
    group.add_argument(
        "--serve-from", metavar="ID_OR_DIR",
        help="where the server finds the model (default: the hub id, or the folder given)",
    )  # fmt: skip
    group.add_argument("--tensor-parallel", type=int, metavar="GPUS", help="default: 1")
    group.add_argument(
        "--gpu-utilization", type=float, metavar="SHARE",
        help=f"of the GPU's memory; for tensorrtllm of what the weights leave (default: {USABLE})",
    )  # fmt: skip


GENAI_ONLY = (
    "execution", "int4_method", "int4_block_size", "max_batch_size", "num_blocks", "block_size"
)  # fmt: skip
INT4_ONLY = ("int4_method", "int4_block_size")
PAGED_ONLY = ("max_batch_size", "num_blocks", "block_size")
SERVED_TARGETS = "--target vllm and --target tensorrtllm"
SERVED_ONLY = ("serve_from", "tensor_parallel", "gpu_utilization")


def check_options(options: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is read; fill in defaults."""
    if options.target != "genai":
        _refuse(options, GENAI_ONLY, "--target genai")
        if options.precision not in (None, *DTYPES):
            raise SetupError(
                f"--precision {options.precision}: {options.target} reads weights as they are; "
                f"name a quantised checkpoint (AWQ, GPTQ) as --model, or one of {', '.join(DTYPES)}"
            )
        if options.gpu_utilization is not None:
            _check_range("--gpu-utilization", options.gpu_utilization, 0.05, 1)
        _check_range("--tensor-parallel", options.tensor_parallel or 1, 1, 64)
        return
    _refuse(options, SERVED_ONLY, SERVED_TARGETS)
    options.execution = options.execution or "cpu"
    options.precision = options.precision or "int4"
    if options.precision not in COMBINATIONS[options.execution]:
        raise SetupError(
            f"--precision {options.precision} --execution {options.execution}: the builder makes "
            f"{', '.join(COMBINATIONS[options.execution])} for {options.execution}"
        )
    if options.precision != "int4":
        _refuse(options, INT4_ONLY, "--precision int4")
    if not _is_paged(options):
        _refuse(options, PAGED_ONLY, "--execution cuda and a precision other than fp32")
    _check_range("--max-batch-size", options.max_batch_size or 1, 1, MAX_PAGED_BATCH)
    _check_range("--num-blocks", options.num_blocks or 1, 1, 10**7)
    block = options.block_size or 256
    if block < 16 or block & (block - 1):
        raise SetupError(f"--block-size {block}: expected a power of two from 16")


def _refuse(options: argparse.Namespace, names: Sequence[str], needs: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise SetupError(f"--{name.replace('_', '-')} is only for {needs}; leave it out")


def _check_range(flag: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SetupError(f"{flag} {value:g}: expected {low:g} to {high:g}")


def _is_paged(options: argparse.Namespace) -> bool:
    """The builder pages the cache of models that compute in fp16 or bf16 on CUDA."""
    return options.execution == "cuda" and options.precision != "fp32"


def recipe_of(options: argparse.Namespace, config: dict[str, Any], weights: int) -> Recipe:
    """Return how to build a model of this config whose weights take ``weights`` bytes."""
    quantised = bool(config.get("quantization_config"))
    if quantised:
        _refuse(options, INT4_ONLY, "a model that is not quantised already")
    recipe = Recipe(
        precision=options.precision,
        execution=options.execution,
        context=context_of(options, config),
        int4_method=(options.int4_method or "rtn")
        if options.precision == "int4" and not quantised
        else "",
        int4_block_size=options.int4_block_size or 32,
        paged=None,
    )
    if not _is_paged(options):
        return recipe
    block, blocks = options.block_size or 256, options.num_blocks or 0
    if options.gpu_memory and not blocks:
        free = free_for_cache(options.gpu_memory, weights)
        blocks = blocks_that_fit(LlmShape.of(config), block, recipe.bytes_per_number, free)
        if not blocks:
            raise SetupError(
                f"--gpu-memory {options.gpu_memory:g}: the weights of {size(weights)} leave no "
                "room for a KV cache; choose a smaller --precision or a larger GPU"
            )
    batch = options.max_batch_size or min(100, blocks or 100)
    paged = PagedCache(block_size=block, blocks=blocks, max_batch_size=batch)
    paged.check(recipe.context)
    return dataclasses.replace(recipe, paged=paged)


def context_of(options: argparse.Namespace, config: dict[str, Any]) -> int:
    own = LlmShape.of(config).context_tokens
    if own < MIN_CONTEXT:
        raise SetupError(f"{options.model}: a context of {own} tokens is too short to answer from")
    wanted: int = own if options.context is None else options.context
    if not MIN_CONTEXT <= wanted <= own:
        raise SetupError(f"--context {wanted}: this model takes {MIN_CONTEXT} to {own}")
    return wanted


def cache_lines(
    options: argparse.Namespace, config: dict[str, Any], weights: int
) -> list[tuple[str, str]]:
    """Return what the KV cache takes, and how many sequences fit beside the weights."""
    shape, context = LlmShape.of(config), context_of(options, config)
    if options.target != "genai":
        number, paged = 4 if options.precision == "fp32" else 2, None
    else:
        recipe = recipe_of(options, config, weights)
        number, paged = recipe.bytes_per_number, recipe.paged
    window = (
        f"; the window of {shape.sliding_window} tokens that some layers may have is not counted"
        if shape.sliding_window
        else ""
    )
    lines = [
        ("KV cache", f"{size(shape.kv_bytes(1, number))} per token ({shape.layers} layers, "
         f"{shape.kv_heads} KV heads of {shape.head_dim}, {8 * number} bits), "
         f"{size(shape.kv_bytes(context, number))} per sequence of {context} tokens{window}"),
    ]  # fmt: skip
    if paged and paged.blocks:
        lines.append(
            ("paged", f"{paged.blocks} blocks of {paged.block_size} tokens, up to "
             f"{paged.max_batch_size} sequences at a time")
        )  # fmt: skip
    if options.gpu_memory:
        gpus = options.tensor_parallel or 1
        free = free_for_cache(gpus * options.gpu_memory, weights)
        fit = sequences_that_fit(shape, context, number, free)
        several = f"{gpus} of " if gpus > 1 else ""
        lines.append(
            ("GPU", f"{several}{options.gpu_memory:g} GB, {USABLE:.0%} usable: {size(free)} beside "
             f"the weights, {fit} sequences of {context} tokens")
        )  # fmt: skip
    return lines
