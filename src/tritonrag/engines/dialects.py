"""How the LLM backends of a Triton server are asked and what they answer: vLLM and TensorRT-LLM.

Tensor names and meanings as in ``triton-inference-server/vllm_backend`` and in the LLM API model of
``NVIDIA/TensorRT-LLM`` (``triton_backend/all_models/llmapi``). Neither Triton nor a library of
these is known here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from tritonrag.generation import Generation

Value = str | bool | np.generic
"""What a called model's input of shape [1] holds; a NumPy scalar has the dtype of the tensor."""

Reply = Mapping[str, Sequence[Any]]
"""One response of a called model: its output tensors by name, flattened."""

_INCOMPLETE = "\ufffd"
"""What a tokenizer makes of the first bytes of a character that the next token ends."""


@dataclass(frozen=True)
class Asked:
    """A generation as a backend is asked for it.

    ``text`` is the prompt, ``max_tokens`` what its context has room for, and ``stop_ids`` the
    tokens that end an answer.
    """

    text: str
    generation: Generation
    max_tokens: int
    stop_ids: Sequence[int]


@dataclass(frozen=True)
class Step:
    """What came: a delta of text, how many tokens it is, and how the answer ended, else empty."""

    text: str
    tokens: int
    reason: str = ""


class Dialect(Protocol):
    """One backend's way."""

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]

    def inputs(self, asked: Asked) -> dict[str, Value]:
        """Return the inputs of a request, each of shape [1]."""

    def steps(self, replies: Iterable[Reply], count: Callable[[str], int]) -> Iterator[Step]:
        """Yield what the responses to a request say; ``count`` gives the tokens of a text."""


class Vllm:
    """Triton's vLLM backend: deltas, sampling parameters as JSON."""

    name: ClassVar[str] = "vLLM"
    outputs: ClassVar[tuple[str, ...]] = ("text_output", "finish_reason", "num_output_tokens")

    _REASONS: ClassVar = {"None": "", "stop": "stop", "length": "length", "abort": "cancelled"}

    def inputs(self, asked: Asked) -> dict[str, Value]:
        """Return the request; the stop tokens are named, whatever vLLM reads of the model."""
        generation = asked.generation
        sampling: dict[str, Any] = {
            "max_tokens": asked.max_tokens,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "stop_token_ids": list(asked.stop_ids),
        }
        if generation.top_k:
            sampling["top_k"] = generation.top_k
        if generation.seed is not None:
            sampling["seed"] = generation.seed
        if generation.stop:
            sampling["stop"] = list(generation.stop)
        return {
            "text_input": asked.text,
            "stream": True,
            "exclude_input_in_output": True,
            "return_finish_reason": True,
            "return_num_output_tokens": True,
            "sampling_parameters": json.dumps(sampling),
        }

    def steps(self, replies: Iterable[Reply], count: Callable[[str], int]) -> Iterator[Step]:
        """Yield the deltas; vLLM counts its tokens itself."""
        for reply in replies:
            tokens = sum(reply.get("num_output_tokens", ()))
            reason = next(iter(reply.get("finish_reason", ())), "None")
            yield Step(_text(reply), tokens, self._REASONS.get(reason, "error"))


class TensorRtLlm:
    """TensorRT-LLM's LLM API model: the whole text so far in each response, a tensor a parameter.

    Stop strings are looked for here alone, and the stop tokens are those of the model's own
    ``generation_config.json``: the model takes no ids.
    """

    name: ClassVar[str] = "TensorRT-LLM"
    outputs: ClassVar[tuple[str, ...]] = ("text_output", "finish_reason")

    _REASONS: ClassVar = {
        "None": "", "stop": "stop", "length": "length", "cancelled": "cancelled",
    }  # fmt: skip

    def inputs(self, asked: Asked) -> dict[str, Value]:
        """Return the request; greedy is the one likeliest token."""
        generation = asked.generation
        greedy = generation.temperature == 0
        inputs: dict[str, Value] = {
            "text_input": asked.text,
            "streaming": True,
            "return_finish_reason": True,
            "sampling_param_exclude_input_from_output": True,
            "sampling_param_max_tokens": np.int32(asked.max_tokens),
            "sampling_param_top_k": np.int32(1 if greedy else generation.top_k),
        }
        if not greedy:
            inputs["sampling_param_temperature"] = np.float32(generation.temperature)
            inputs["sampling_param_top_p"] = np.float32(generation.top_p)
        if generation.seed is not None:
            inputs["sampling_param_seed"] = np.uint64(generation.seed)
        return inputs

    def steps(self, replies: Iterable[Reply], count: Callable[[str], int]) -> Iterator[Step]:
        """Yield what each response adds to the one before."""
        sent = 0
        for reply in replies:
            reason = next(iter(reply.get("finish_reason", ())), "None")
            text = _text(reply)
            whole = text if reason != "None" else text.rstrip(_INCOMPLETE)
            delta, sent = whole[sent:], max(sent, len(whole))
            yield Step(delta, count(delta), self._REASONS.get(reason, "error"))


def _text(reply: Reply) -> str:
    return "".join(reply.get("text_output", ()))
