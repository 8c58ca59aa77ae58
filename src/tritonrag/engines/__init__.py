"""The engines behind ``generate``, and the choice between them.

``LLM_API_URL`` set: any OpenAI-compatible endpoint. Else: the exported model in the repository, on
the engine that its manifest names: ONNX Runtime GenAI in this process, or another model of the
server, on Triton's vLLM backend or TensorRT-LLM. ``prompt`` asks here too, so that it writes what
the chosen engine reads.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from tritonrag.artifacts import ENGINES, LlmManifest, llm_dir
from tritonrag.contract import DEFAULT_MAX_TOKENS
from tritonrag.engines.caps import CappedEngine, Caps
from tritonrag.engines.dialects import Dialect, TensorRtLlm, Vllm
from tritonrag.engines.served import ModelCaller, ServedEngine
from tritonrag.errors import SetupError
from tritonrag.generation import Engine
from tritonrag.graph.chat_template import ChatTemplate
from tritonrag.graph.escaping import escape_for, special_tokens
from tritonrag.prompting import PromptBuilder
from tritonrag.settings import ModelArgs, RemoteLlmSettings

BYTES_PER_TOKEN = 3
"""Cautious estimate of UTF-8 bytes in a token, where the endpoint's tokenizer is not known."""

_DIALECTS: dict[str, Dialect] = {"vllm": Vllm(), "tensorrtllm": TensorRtLlm()}


def load_engine(args: ModelArgs, models: ModelCaller | None = None) -> CappedEngine:
    """Return the engine of the ``generate`` model; ``models`` are the others of its server, if any.

    Its config parameters: ``queue_size`` (generations waiting or running before more are refused),
    ``threads`` and ``stall_seconds`` of the local engine (0 threads is one per core; after so many
    seconds without a step it counts as stuck), and those of :class:`Caps`.

    Raises:
        SetupError: no LLM is installed and no endpoint is named, its engine is not known here, or a
            setting is out of bounds.
    """
    return CappedEngine(_chosen_engine(args, models), Caps.of(args))


def _chosen_engine(args: ModelArgs, models: ModelCaller | None) -> Engine:
    queue_size = args.integer("queue_size", 64, 1, 100_000)
    remote = RemoteLlmSettings.from_environment()
    if remote:
        from tritonrag.engines.openai_api import OpenAiEngine

        return OpenAiEngine(remote, queue_size)
    chosen = LlmManifest.load(args.repository, args.version).engine
    if dialect := _DIALECTS.get(chosen):
        if models is None:
            raise SetupError(f"the installed LLM runs on {dialect.name}: start the server")
        return ServedEngine(args.repository, args.version, models, dialect, queue_size=queue_size)
    if chosen != "genai":
        raise SetupError(f"the LLM's manifest names the engine {chosen!r}, not one of {ENGINES}")
    from tritonrag.engines.genai import GenaiEngine

    return GenaiEngine(
        args.repository,
        args.version,
        queue_size=queue_size,
        threads=args.integer("threads", 0, 0, 1024),
        stall_seconds=args.integer("stall_seconds", 10, 1, 86_400),
    )


def prompt_builder(repository: Path, version: int) -> PromptBuilder:
    """Return the prompt builder for the engine that :func:`load_engine` would choose.

    Raises:
        SetupError: that version of the LLM is not installed and no endpoint is named, or its chat
            template cannot be used.
    """
    remote = RemoteLlmSettings.from_environment()
    if remote:
        return PromptBuilder(
            render=json.dumps,
            count_tokens=lambda text: len(text.encode()) // BYTES_PER_TOKEN,
            context_tokens=remote.context_tokens,
            answer_tokens=DEFAULT_MAX_TOKENS,
        )
    manifest = LlmManifest.load(repository, version)
    tokenizer = Tokenizer.from_file(str(repository / llm_dir(version) / "tokenizer.json"))
    template = ChatTemplate(manifest.chat_template, **manifest.special_tokens)
    template.check()
    return PromptBuilder(
        render=template,
        count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        context_tokens=manifest.context_tokens,
        answer_tokens=min(DEFAULT_MAX_TOKENS, manifest.context_tokens // 4),
        pointers=manifest.pointers,
        escape=escape_for([*special_tokens(tokenizer), *manifest.stop_tokens]),
    )
