"""LLMs of several families, and by stand-ins vLLM and TensorRT-LLM, served by the real server."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from raw import inputs, stream
from servers import REPOSITORY, Served, serve
from tritonclient.utils import InferenceServerException

pytest.importorskip("torch")

import tiny_llms  # noqa: E402

from tritonrag.artifacts import LLM_DIR, SERVED_MODEL  # noqa: E402

# Exporting sets global state of torch that warns of nothing a test could act on.
pytestmark = pytest.mark.filterwarnings("ignore")

llm = tiny_llms.llm_program()

from llm_parity import PROMPTS  # noqa: E402
from llm_parity import TEXTS as OWN_TEXTS  # noqa: E402

TEXTS = OWN_TEXTS + PROMPTS
TOKENS = 32
KEY = "a secret that only we know"


def with_models(folder: Path, *names: str) -> Path:
    """Return a model repository of these models only, without an LLM."""
    ignore = shutil.ignore_patterns(LLM_DIR.name, "__pycache__")
    for name in names:
        shutil.copytree(REPOSITORY / name, folder / "repository" / name, ignore=ignore)
    return folder / "repository"


def export(source: Path, repository: Path, *flags: str) -> None:
    assert llm.main(["--model", str(source), "--repository", str(repository), *flags]) == 0


def text_of(served: Served, prompt: str, **fields: Any) -> tuple[str, str, dict[str, Any]]:
    """Return an answer, how it ended and its usage."""
    responses = list(stream(served.grpc, "generate", prompt=prompt, **fields))
    text = "".join(each["text"] for each in responses)
    return text, responses[-1]["finish_reason"], json.loads(responses[-1]["usage"])


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma"])
def test_a_served_fp32_export_answers_as_transformers_does(family: str, tmp_path: Path) -> None:
    """Greedy, token for token."""
    import torch

    original = tiny_llms.save(tmp_path / "model", family, TEXTS, spread=0.2)
    tokenizer = llm.AutoTokenizer.from_pretrained(tmp_path / "model")
    repository = with_models(tmp_path, "generate")
    export(tmp_path / "model", repository, "--precision", "fp32")
    for served in serve(tmp_path, repository):
        for prompt in PROMPTS:
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                answer = original.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False,
                    max_new_tokens=TOKENS,
                )[0, ids.shape[1] :]  # fmt: skip
            text, reason, usage = text_of(served, prompt, max_tokens=TOKENS)
            wanted = tokenizer.decode(answer, skip_special_tokens=True)
            assert text == wanted.lstrip(), prompt
            assert reason == "length"
            assert usage["prompt_tokens"] == ids.shape[1]
            assert usage["generated_tokens"] == len(answer) == TOKENS
            assert len(set(answer.tolist())) > 1, "an answer of one word again and again"


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``prompt`` and ``generate`` for vLLM, and the stand-in in the place of its backend."""
    folder = tmp_path_factory.mktemp("vllm")
    tiny_llms.save(folder / "model", "llama", TEXTS)
    repository = with_models(folder, "prompt", "generate")
    export(folder / "model", repository, "--target", "vllm")
    model = repository / SERVED_MODEL
    config = (model / "config.pbtxt").read_text()
    # The one difference to what a container serves.
    config = config.replace('backend: "vllm"', 'backend: "python"').replace("_MODEL", "_CPU")
    (model / "config.pbtxt").write_text(config)
    shutil.copy(Path(__file__).parent / "vllm_stand_in.py", model / "1" / "model.py")
    yield from serve(folder, repository)


def test_vllm_streams_deltas_with_usage(vllm: Served) -> None:
    responses = list(stream(vllm.grpc, "generate", prompt="one two three"))
    text = "".join(each["text"] for each in responses)

    assert text == "one two three"
    assert responses[-1]["finish_reason"] == "stop"
    usage = json.loads(responses[-1]["usage"])
    assert usage["generated_tokens"] == 3
    assert 0 < usage["time_to_first_token_ms"] <= usage["total_ms"]


def test_vllm_reads_what_prompt_writes(vllm: Served) -> None:
    passage = {"id": "1", "text": "You have 25 days.", "source": "a.md", "title": "A", "score": 0.5}
    with triton.InferenceServerClient(vllm.grpc) as client:
        fields = {
            "question": "How many days?",
            "passages": [json.dumps(passage | {"location": ""})],
        }
        found = client.infer("prompt", inputs(**fields))
    prompt, citations = (found.as_numpy(name)[0, 0].decode() for name in ("prompt", "citations"))
    responses = list(stream(vllm.grpc, "generate", prompt=prompt, citations=citations))

    assert "You have 25 days." in prompt
    assert "".join(each["text"] for each in responses) == " ".join(prompt.split())
    assert responses[0]["citations"] == citations
    assert responses[-1]["finish_reason"] == "stop"


def test_vllm_is_given_the_sampling_parameters(vllm: Served) -> None:
    fields = {"temperature": 0.5, "top_p": 0.25, "seed": 7, "stop": ["\n"], "max_tokens": 9}
    text, _, _ = text_of(vllm, "parameters", **fields)

    assert json.loads(text) == fields | {"stop_token_ids": [2, 3]}


def test_vllm_ends_at_the_limit_and_at_a_stop_string(vllm: Served) -> None:
    assert text_of(vllm, "a b c", max_tokens=2)[:2] == ("a b", "length")
    assert text_of(vllm, "one two three", stop=["two"])[:2] == ("one ", "stop")


def test_vllm_answers_many_at_once(vllm: Served) -> None:
    prompts = [f"word{n} and {n}" for n in range(24)]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda prompt: text_of(vllm, prompt)[0], prompts))

    assert answers == prompts


def test_vllm_stops_at_a_cancel(vllm: Served) -> None:
    responses = stream(vllm.grpc, "generate", prompt="slow", max_tokens=150, cancel_key=KEY)
    next(responses)
    list(stream(vllm.grpc, "generate", cancel=KEY))
    asked = time.monotonic()

    assert list(responses)[-1]["finish_reason"] == "cancelled"
    assert time.monotonic() - asked < 1


def test_without_the_vllm_model_generate_is_unavailable(vllm: Served, tmp_path: Path) -> None:
    repository = Path(vllm.running.repository)
    shutil.copytree(repository / "generate", tmp_path / "repository" / "generate")
    for served in serve(tmp_path, tmp_path / "repository"):
        with pytest.raises(InferenceServerException, match="UNAVAILABLE: .*llm is not loaded"):
            list(stream(served.grpc, "generate", prompt="x"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "fail"}, "^INTERNAL: generate: llm failed; the server's log has the cause$"),
        (
            {"prompt": "x", "grounding": "quote", "citations": '[{"mark": 1, "text": "A."}]'},
            "^INVALID_ARG: grounding: `quote` constrains the decoder",
        ),
        ({"prompt": "x", "max_tokens": 513}, "^INVALID_ARG: max_tokens: is 513, expected 1 to 512"),
    ],
)
def test_vllm_errors_are_mapped(vllm: Served, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InferenceServerException) as raised:
        list(stream(vllm.grpc, "generate", **fields))

    assert re.search(message, raised.value.message())
    assert text_of(vllm, "still here")[0] == "still here"


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``generate`` for TensorRT-LLM, and the stand-in where its images keep the LLM API model."""
    folder = tmp_path_factory.mktemp("tensorrtllm")
    tiny_llms.save(folder / "model", "llama", TEXTS)
    repository = with_models(folder, "generate")
    export(folder / "model", repository, "--target", "tensorrtllm")
    (folder / "llmapi").mkdir()
    shutil.copy(Path(__file__).parent / "tensorrtllm_stand_in.py", folder / "llmapi" / "model.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTLLM_LLMAPI", str(folder / "llmapi"))
        yield from serve(folder, repository)


def test_tensorrt_llm_streams_deltas_with_usage(tensorrt: Served) -> None:
    responses = list(stream(tensorrt.grpc, "generate", prompt="the river the"))

    assert "".join(each["text"] for each in responses) == "the river the"
    assert responses[-1]["finish_reason"] == "stop"
    assert json.loads(responses[-1]["usage"])["generated_tokens"] >= 3


def test_tensorrt_llm_is_given_the_sampling_parameters(tensorrt: Served) -> None:
    fields = {"temperature": 0.5, "top_p": 0.25, "seed": 7, "max_tokens": 9}
    text, _, _ = text_of(tensorrt, "parameters", **fields)
    assert json.loads(text) == fields | {"top_k": 0}
    text, _, _ = text_of(tensorrt, "parameters", max_tokens=9)
    assert json.loads(text) == dict.fromkeys(fields) | {"max_tokens": 9, "top_k": 1}, "greedy"


def test_tensorrt_llm_ends_at_the_limit_at_a_stop_string_and_at_a_cancel(tensorrt: Served) -> None:
    assert text_of(tensorrt, "a b c", max_tokens=2)[:2] == ("a b", "length")
    assert text_of(tensorrt, "one two three", stop=["two"])[:2] == ("one ", "stop")
    responses = stream(tensorrt.grpc, "generate", prompt="slow", max_tokens=150, cancel_key=KEY)
    next(responses)
    list(stream(tensorrt.grpc, "generate", cancel=KEY))
    assert list(responses)[-1]["finish_reason"] == "cancelled"


def test_a_failure_of_tensorrt_llm_is_for_the_log(tensorrt: Served) -> None:
    with pytest.raises(InferenceServerException, match="^INTERNAL: generate: llm failed"):
        list(stream(tensorrt.grpc, "generate", prompt="fail"))
    assert text_of(tensorrt, "still here")[0] == "still here"
