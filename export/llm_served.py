"""The model that serves an LLM beside ``generate``, on Triton's vLLM backend or TensorRT-LLM.

Both read the original, so nothing is built or compared here: what is written are settings, and what
``prompt`` and ``generate`` need of the model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from llm_options import DTYPES, context_of

from tritonrag.artifacts import (
    SERVED_MODEL,
    LlmManifest,
    installed_versions,
    sha256,
    staged,
)
from tritonrag.errors import SetupError
from tritonrag.exporting import installing, version_of
from tritonrag.llm_config import USABLE
from tritonrag.sources import Source
from tritonrag.versions import GENERATE, installed

MARK = "written by export/llm.py"
TENSORRTLLM_MODEL = Path(__file__).with_name("tensorrtllm_model.py")

VLLM_CONFIG = f"""\
# The LLM on Triton's vLLM backend, called by `generate`; {MARK}.
name: "{SERVED_MODEL}"
backend: "vllm"

# vLLM batches by itself, and decides which GPUs it takes.
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ kind: KIND_MODEL, count: 1 }} ]

input [
  {{ name: "text_input", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "stream", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "sampling_parameters", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "exclude_input_in_output", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "return_finish_reason", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "return_num_output_tokens", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }}
]
output [
  {{ name: "text_output", data_type: TYPE_STRING, dims: [ -1 ] }},
  {{ name: "finish_reason", data_type: TYPE_STRING, dims: [ -1 ] }},
  {{ name: "num_output_tokens", data_type: TYPE_UINT32, dims: [ -1 ] }}
]
"""

TENSORRTLLM_CONFIG = f"""\
# The LLM on TensorRT-LLM's LLM API, called by `generate`; {MARK}.
name: "{SERVED_MODEL}"
backend: "python"

# TensorRT-LLM batches by itself, and decides which GPUs it takes. Its model reads these two from
# model.yaml as well, for servers that complete configs: the same stand there.
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]

input [
  {{ name: "text_input", data_type: TYPE_STRING, dims: [ -1 ] }},
  {{ name: "streaming", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "return_finish_reason", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "sampling_param_exclude_input_from_output", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }},
  {{ name: "sampling_param_max_tokens", data_type: TYPE_INT32, dims: [ 1 ], optional: true }},
  {{ name: "sampling_param_temperature", data_type: TYPE_FP32, dims: [ 1 ], optional: true }},
  {{ name: "sampling_param_top_p", data_type: TYPE_FP32, dims: [ 1 ], optional: true }},
  {{ name: "sampling_param_top_k", data_type: TYPE_INT32, dims: [ 1 ], optional: true }},
  {{ name: "sampling_param_seed", data_type: TYPE_UINT64, dims: [ 1 ], optional: true }}
]
output [
  {{ name: "text_output", data_type: TYPE_STRING, dims: [ -1 ] }},
  {{ name: "finish_reason", data_type: TYPE_STRING, dims: [ -1 ] }}
]
"""  # noqa: E501  a config has no line breaks inside a field's message


def vllm_files(options: argparse.Namespace, found: Source, context: int) -> dict[str, str]:
    """Return the version's files; the backend reads vLLM's engine arguments from ``model.json``."""
    arguments = {
        **_weights(options, found),
        "max_model_len": context,
        "gpu_memory_utilization": options.gpu_utilization or USABLE,
        "tensor_parallel_size": options.tensor_parallel or 1,
        # The same passages head many prompts.
        "enable_prefix_caching": True,
    }
    return {"model.json": json.dumps(arguments, indent=2) + "\n"}


def tensorrtllm_files(options: argparse.Namespace, found: Source, context: int) -> dict[str, str]:
    """Return the version's files; the LLM API's arguments are in ``model.yaml``."""
    arguments = {
        **_weights(options, found),
        "backend": "pytorch",
        "max_seq_len": context,
        "tensor_parallel_size": options.tensor_parallel or 1,
        "kv_cache_config": {
            # Of what the weights leave free; the same passages head many prompts.
            "free_gpu_memory_fraction": options.gpu_utilization or USABLE,
            "enable_block_reuse": True,
        },
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    return {
        "model.yaml": yaml.safe_dump(arguments, sort_keys=False),
        "model.py": TENSORRTLLM_MODEL.read_text(encoding="utf-8"),
    }


@dataclass(frozen=True)
class Backend:
    """What serves the model: its name, its config, and the files of its version."""

    name: str
    config: str
    files: Callable[[argparse.Namespace, Source, int], dict[str, str]]


BACKENDS = {
    "vllm": Backend("Triton's vLLM backend", VLLM_CONFIG, vllm_files),
    "tensorrtllm": Backend("TensorRT-LLM", TENSORRTLLM_CONFIG, tensorrtllm_files),
}
"""By ``--target``, which is the engine in the manifest."""


def write(
    options: argparse.Namespace,
    found: Source,
    config: dict[str, Any],
    described: dict[str, Any],
    tokenizer: Any,
    stop_tokens: Sequence[str],
) -> None:
    """Write the model beside ``generate``, and what ``prompt`` and ``generate`` read of it."""
    backend, context = BACKENDS[options.target], context_of(options, config)
    if described["grounding"] != "free":
        raise SetupError(
            f"{found.folder}: answers by grounding {described['grounding']!r}, which constrains "
            f"the decoder, and {backend.name} is not asked for that; export it with "
            "--grounding free"
        )
    target = options.repository / SERVED_MODEL
    if target.exists() and not is_ours(target):
        raise SetupError(f"{target}: a model of your own has the name that this needs; rename it")
    version = version_of(options, GENERATE)
    with staged(target) as model, installing(options.repository, GENERATE, version) as folder:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        sources = found.hashes()
        LlmManifest(
            **described,
            engine=options.target,
            execution="cuda",
            precision=options.precision or str(config.get("dtype") or "auto"),
            sha256=hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest(),
            bytes=sum(file.bytes for file in found.files()),
            files={"tokenizer.json": sha256(folder / "tokenizer.json")},
            source_files=sources,
            context_tokens=context,
            stop_tokens=list(stop_tokens),
            versions=installed_versions("transformers"),
        ).save(folder)
        (model / "1").mkdir()
        (model / "config.pbtxt").write_text(backend.config, encoding="utf-8")
        for name, text in backend.files(options, found, context).items():
            (model / "1" / name).write_text(text, encoding="utf-8")
    print(f"wrote {target} for {backend.name}; it reads the original, so nothing is compared")


def remove_unused(repository: Path) -> None:
    """Remove the served model where no installed version is generated by it."""
    engines = {LlmManifest.load(repository, n).engine for n in installed(repository, GENERATE)}
    if not engines & set(BACKENDS) and is_ours(repository / SERVED_MODEL):
        shutil.rmtree(repository / SERVED_MODEL)


def is_ours(model: Path) -> bool:
    """Return whether a model's folder is one that this program wrote."""
    config = model / "config.pbtxt"
    return config.is_file() and MARK in config.read_text(encoding="utf-8").partition("\n")[0]


def _weights(options: argparse.Namespace, found: Source) -> dict[str, str]:
    """Return where the server finds the weights and in which precision it is to run them."""
    served = options.serve_from or (found.id if found.revision else str(found.folder.resolve()))
    revision = {"revision": str(found.revision)} if served == found.id else {}
    return {"model": served, **revision, "dtype": DTYPES.get(options.precision, "auto")}
